"""How many questions find their page: a vector for each passage against a vector for each whole text. And what an edit
of a long page makes new.

It measures the quality of cutting and model, outside a store: texts are cut and embedded, and a page is ranked by the
best of its vectors. `questions/<folder>.csv` has questions, the page that answers each, and the heading it stands
under. They were written before the first run, for the documentation of these projects:

| folder | project | commit | folder of the project |
|-|-|-|-|
| jj | github.com/jj-vcs/jj (Apache-2.0) | 9d905d5432869c7aa9539e6e5c7fece5842bed37 | docs |
| uv | github.com/astral-sh/uv (MIT or Apache-2.0) | 26a9dd4b2125bc271b47855e1fa0c49af3365db5 | docs |
| hugo | github.com/gohugoio/hugoDocs (Apache-2.0) | 1c613349f4220ae84070df25979d720c43e5cfa6 | content/en |
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

import entityframes as ef
from benchmarks.measure import OURS, Measurements, chosen

QUESTIONS = Path(__file__).parent / "questions"
#: Metadata fields that front matter often has.
TITLE = ("title", "description")
#: A page with a longer content is long: the local model reads only that much of it.
SHORT = 800


class Way(NamedTuple):
    """A way to turn pages into vectors."""

    name: str
    #: None for one vector for each whole text.
    passages: ef.Passages | None
    titled: bool
    max_chars: int = SHORT


WAYS = (
    Way("whole texts", None, titled=False),
    Way("whole texts, to their end", None, titled=False, max_chars=1_000_000),
    Way("whole texts, with titles", None, titled=True),
    Way(OURS, ef.Passages(), titled=False),
    Way(f"{OURS}, with titles", ef.Passages(), titled=True),
    Way(f"{OURS}, size=400, with titles", ef.Passages(size=400), titled=True),
)


def run(
    measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None,
    folders: tuple[Path, ...],
) -> None:  # fmt: skip
    """Each folder is named like its questions."""
    if not folders:
        names = ", ".join(sorted(path.stem for path in QUESTIONS.glob("*.csv")))
        raise SystemExit(f"name folders of documentation, which benchmarks/passages.py describes: {names}")
    found, edits = [], []
    for folder in folders:
        pages, questions = read(folder), pl.read_csv(QUESTIONS / f"{folder.name}.csv")
        unknown = questions.join(pages, on="file", how="anti")["file"].to_list()
        if unknown:
            raise SystemExit(f"{folder} does not have {', '.join(unknown)}")
        edits += [(folder.name, *edit) for edit in edited(pages, random.Random(measurements.seed))]
        for way in WAYS:
            if chosen(way.name, only):
                with measurements.timed(way.name, database="no store", phase=folder.name, rows=pages.height):
                    table = vectors(pages, way)
                ranked = ranks(questions, table)
                found.append(
                    ranked.with_columns(folder=pl.lit(folder.name), way=pl.lit(way.name), vectors=table.height)
                )
    print(markdown(recall(pl.concat(found))))
    print(markdown(renewed(pl.DataFrame(edits, schema=["folder", "edit", "new"], orient="row"))))


def read(folder: Path) -> pl.DataFrame:
    """The pages of a folder: file, title, content."""
    with ef.connect(":memory:") as store:
        ef.DirectorySync(store, folder).import_files(progress=False).raise_for_failures()
        kinds = store.types()["entity_type"]
        pages = pl.concat([store.read(kind).with_columns(kind=pl.lit(kind)) for kind in kinds], how="diagonal_relaxed")
    file = pl.when(kind="note").then(pl.format("{}.md", "id")).otherwise(pl.format("{}/{}.md", "kind", "id"))
    fields = [field for field in TITLE if field in pages.columns]
    title = pl.concat_str(fields, separator=". ", ignore_nulls=True) if fields else pl.lit("")
    return pages.select(file=file, title=title, content="content")


def vectors(pages: pl.DataFrame, way: Way) -> pl.DataFrame:
    """One row for each vector: file, long, heading, vector."""
    rows = []
    for file, title, content in pages.iter_rows():
        shown = title if way.titled else ""
        if way.passages:
            texts = [passage.text for passage in way.passages.cut(content, shown)]
        else:
            texts = ["\n".join(part for part in (shown, content) if part)]
        rows += [(file, len(content) > SHORT, text) for text in texts if text.strip()]
    table = pl.DataFrame(rows, schema=["file", "long", "text"], orient="row")
    # Texts of one length in a batch: the model pads them all to the longest.
    table = table.sort(pl.col("text").str.len_chars())
    embedder = ef.WordLlamaEmbedder(max_chars=way.max_chars)
    size = embedder.max_batch if way.max_chars == SHORT else 1
    texts = table["text"].to_list()
    embedded = np.concatenate([embedder.embed(texts[at : at + size]) for at in range(0, len(texts), size)])
    return table.with_columns(vector=embedded)


def ranks(questions: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """For each question: whether its page is long, the page's rank, and whether its passage is in the first 10.

    A page is ranked by the best of its vectors; the passage is one of the page that contains the heading.
    """
    scores = ef.WordLlamaEmbedder().embed(questions["question"].to_list()) @ table["vector"].to_numpy().T
    found = []
    for (_, file, heading), row in zip(questions.iter_rows(), scores, strict=True):
        scored = table.select("file", "long", score=row, text=pl.col("text").str.replace_all("`", ""))
        scored = scored.sort("score", descending=True)
        pages = scored.unique("file", keep="first", maintain_order=True)
        under = scored.head(10).filter(pl.col("text").str.contains(heading.replace("`", ""), literal=True), file=file)
        found.append((pages.filter(file=file)["long"].item(), pages["file"].index_of(file) + 1, not under.is_empty()))
    return pl.DataFrame(found, schema={"long": pl.Boolean, "rank": pl.Int64, "under": pl.Boolean}, orient="row")


def recall(found: pl.DataFrame) -> pl.DataFrame:
    """A row for each folder and way, and for all folders: the share of questions whose page is found."""

    def share(at: int, kind: pl.Expr) -> pl.Expr:
        return (pl.col("rank") <= at).filter(kind).mean()

    every, long = pl.lit(True), pl.col("long")
    shares = {
        "recall at 1": share(1, every), "at 3": share(3, every), "at 10": share(10, every),
        "at 10, short pages": share(10, ~long), "at 10, long pages": share(10, long),
        "passage in the first 10": (pl.col("under") & pl.col("way").str.starts_with(OURS)).mean(),
    }  # fmt: skip
    both = pl.concat([found, found.with_columns(folder=pl.lit("all"))])
    return both.group_by("folder", "way", maintain_order=True).agg(
        vectors=pl.when(pl.col("folder").first() != "all").then(pl.col("vectors").first()),
        short=(~long).sum(), long=long.sum(), **shares,
    )  # fmt: skip


def edited(pages: pl.DataFrame, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Edits of one line of the ten longest pages, and how many new passages each makes."""
    for content in pages.sort(pl.col("content").str.len_chars(), descending=True)["content"].head(10):
        before = {passage.text for passage in ef.Passages().cut(content)}
        lines = content.splitlines(keepends=True)
        for _ in range(30):
            at = rng.randrange(len(lines))
            kind = "heading" if lines[at].startswith("#") else "code fence" if "```" in lines[at] else "line"
            changes = {
                f"{kind} deleted": [], f"{kind} changed": [lines[at].replace("e", "a", 1) + "x\n"],
                "line inserted": ["A new line, with some words.\n", lines[at]],
            }  # fmt: skip
            for edit, new in changes.items():
                text = "".join([*lines[:at], *new, *lines[at + 1 :]])
                yield edit, len({passage.text for passage in ef.Passages().cut(text)} - before)
        appended = f"{content}\nAn appended line.\n"
        yield "line appended", len({passage.text for passage in ef.Passages().cut(appended)} - before)


def renewed(edits: pl.DataFrame) -> pl.DataFrame:
    """A row for each kind of edit, over all folders."""
    new = pl.col("new")
    return edits.group_by("edit").agg(
        edits=pl.len(), mean=new.mean(), **{"more than two": (new > 2).mean(), "most": new.max()}
    ).sort("edit", descending=True)  # fmt: skip


def markdown(table: pl.DataFrame) -> str:
    """A table, with shares of two digits."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "-|" * table.width]
    for row in table.iter_rows():
        cells = ["" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else f"{cell}" for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
