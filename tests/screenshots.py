"""Screenshots of notebooks in JupyterLab, light and dark: `python -m tests.screenshots FOLDER [NAME ...]`.

They show every view and the notebooks of this repository as they are when they are opened, which is without trust; bars
in motion and the interrupt button, in a kernel; and what of that is there when the notebook is opened again, with and
without trust. Names are those of pictures, such as views, live or 01_quickstart. Needs JupyterLab and the package in one
environment, and Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import nbformat
import polars as pl

import entityframes as ef
from entityframes import results, views
from tests.browser import THEMES, Lab, jupyterlab

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
EVIL = "<b>bold</b> & 'quoted' \x1b[31m"
LONG = "Ada Lovelace wrote the first program for a machine that was never built. " * 8


def all_views(folder: Path) -> Iterator[tuple[str, str]]:
    """A title and the HTML of every view."""
    with ef.connect(folder / "store.duckdb") as store:
        yield "a new store", store._repr_html_()
        years = pl.int_range(2_000, eager=True)
        notes = pl.DataFrame(
            {"id": years.cast(pl.String), "content": "a note on a program", "year": years, "title": f"a title, {EVIL}"}
        )
        rows = ef.entities(notes, "note", id="id", content="content")
        store.upsert(rows[:1500], progress=False)
        store.upsert(rows[:3].with_columns(entity_type=pl.lit("person"), content=pl.lit(LONG)), progress=False)
        mixed = pl.concat([rows, rows[:20].with_columns(content=pl.lit("new text"))])
        mixed = mixed.with_columns(id=pl.when(pl.int_range(pl.len()) % 97 == 5).then(None).otherwise("id"))
        mixed = mixed.with_columns(
            content=pl.when(pl.int_range(pl.len()) == 50).then(pl.lit("a\0")).otherwise("content")
        )
        changed = rows[:3].with_columns(
            content=pl.lit("other"), metadata=pl.struct(year=pl.lit(1, pl.Int64), title=pl.lit(EVIL))
        )
        yield "a plan", store.plan(pl.concat([changed, mixed[5:6], rows[1500:1600]]))._repr_html_()
        yield "a result", store.upsert(mixed, progress=False)._repr_html_()
        yield "a result without failures", store.upsert(rows[:100], progress=False)._repr_html_()
        counts = dict.fromkeys(results.UPSERT_STATUSES, 10)
        yield "every status", views.result("UpsertResult", counts, ["80 rows in 1 batch, 0.01 s"], [])
        yield "jobs", store.jobs()._repr_html_()  # type: ignore[operator]
        yield "an embedding", store.embed(ef.HashingEmbedder(64), progress=False)._repr_html_()
        yield "a store", store._repr_html_()
        yield "text search", store.search("programs, machine", mode="text", k=5)._repr_html_()
        yield "nothing found", store.search("zebra", mode="text")._repr_html_()
        yield "verify", store.verify()._repr_html_()
        with store._engine.database.session(writing=True) as session:
            session._cursor.execute("DELETE FROM entityframes.batches")
        yield "verify, inconsistent", store.verify()._repr_html_()
        table = ef.create_table(
            store, "people", {"id": pl.Int64, "name": pl.String, "born": pl.Date, "pay": pl.Decimal(10, 2)}, key="id"
        )
        people = pl.DataFrame({"id": [1, 2, 3], "name": ["Ada", "Bob", EVIL]})
        table.upsert(people, progress=False)
        yield "a table", table._repr_html_()
        planned = table.plan(people.with_columns(name=pl.lit("Cid"))[1:], mirror=True)
        yield "a plan of a table", planned._repr_html_()
        files = folder / "files"
        (files / "idea").mkdir(parents=True)
        for number in range(12):
            (files / "idea" / f"{number}.md").write_text(f"idea {number}")
        (files / "idea" / "bad.md").write_text("---\nyear: [\n---\n")
        sync = ef.DirectorySync(store, files, types=["idea"])
        yield "a plan of a sync", sync.plan()._repr_html_()
        yield "a sync", sync.sync(progress=False)._repr_html_()


#: Cells that are run, and whether the interrupt button is pressed while their bar moves.
LIVE: list[tuple[str, str, bool]] = [
    (
        "setup",
        """
        import time
        from pathlib import Path

        import polars as pl

        import entityframes as ef

        store = ef.connect(":memory:")


        def notes(start, rows):
            numbers = pl.DataFrame({"n": range(start, start + rows)})
            id = pl.when(pl.col("n") % 50 > 3).then(pl.format("n{}", "n"))
            return numbers.select(entity_type=pl.lit("note"), id=id, content=pl.format("text {} ", "n"))


        def pages():
            for start in range(0, 20_000, 500):
                time.sleep(0.1)
                yield notes(start, 500)
            raise OSError("the web service is down")


        class Slow(ef.HashingEmbedder):
            def embed(self, texts, /):
                time.sleep(0.05)
                return super().embed(texts)
        """,
        False,
    ),
    ("upsert", "store.upsert(notes(0, 1_000_000), batch_size=500)", True),
    ("stream", "store.upsert(pages())", False),
    ("embed", "store.embed(Slow(16, max_batch=20))", True),
    ("done", "store.upsert(notes(0, 100_000), batch_size=1_000)", False),
    (
        "sync",
        """
        files = Path("files/file")
        files.mkdir(parents=True, exist_ok=True)
        for n in range(3_000):
            (files / f"{n}.md").write_text(f"file {n}")
        ef.DirectorySync(store, "files", types=["file"]).sync()
        """,
        False,
    ),
    ("store", "store", False),
]


def cells(codes: list[str]) -> nbformat.NotebookNode:
    """A notebook with these cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(dedent(code).strip()) for code in codes], metadata={"kernelspec": kernel}
    )


def with_views(shown: list[tuple[str, str]]) -> nbformat.NotebookNode:
    """A notebook whose outputs are the views."""
    notebook = cells([f"# {title}" for title, _ in shown])
    for cell, (_, view) in zip(notebook.cells, shown, strict=True):
        cell.execution_count = 1
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/html": view}, execution_count=1)]
    return notebook


def run_live(lab: Lab, theme: str, target: Path) -> None:
    """Run the cells of `LIVE`, and take pictures while bars move and at the end."""
    lab.open(f"live-{theme}.ipynb", theme, kernel=True)
    for number, (name, _, interrupted) in enumerate(LIVE):
        lab.start(number)
        if interrupted:
            lab.browser.wait(f"{lab.cell(number)}.outputArea.node.innerText.includes('/s')")
            time.sleep(2.0)
            lab.picture(target / f"{theme}-moving-{name}.png")
            lab.interrupt()
        lab.await_idle()
    lab.picture(target / f"{theme}-live.png")
    lab.save()


def main(target: Path, only: Sequence[str]) -> None:
    """Write the pictures; all of them if no names are given."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as root:
        served = Path(root)
        (Path(scratch) / "views").mkdir()
        nbformat.write(with_views(list(all_views(Path(scratch) / "views"))), served / "views.ipynb")
        for notebook in NOTEBOOKS:
            shutil.copy(notebook, served)
        for theme in THEMES:
            nbformat.write(cells([code for _, code, _ in LIVE]), served / f"live-{theme}.ipynb")
        with jupyterlab(served, Path(scratch)) as lab:
            for theme in THEMES:
                for name in ["views", *(notebook.stem for notebook in NOTEBOOKS)]:
                    if not only or name in only:
                        lab.open(f"{name}.ipynb", theme)
                        lab.picture(target / f"{theme}-{name}.png")
                if only and "live" not in only:
                    continue
                run_live(lab, theme, target)
                lab.open("views.ipynb", theme)
                lab.open(f"live-{theme}.ipynb", theme)
                lab.picture(target / f"{theme}-reopened.png")
                # As if somebody else had made it: what is trusted is known by its content.
                others = nbformat.read(served / f"live-{theme}.ipynb", as_version=4)
                others.metadata["title"] = "of somebody else"
                nbformat.write(others, served / "others.ipynb")
                lab.open("others.ipynb", theme)
                lab.picture(target / f"{theme}-untrusted.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
