"""Screenshots of what notebooks show, light and dark: `python -m tests.screenshots FOLDER`.

Writes a page for each theme and views.ipynb, and takes pictures of the pages if Chromium is installed. The notebook is
not trusted: open it in JupyterLab to see what its sanitizer leaves of the views.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import polars as pl

import entityframes as ef
from entityframes import results, views

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


def page(shown: list[tuple[str, str]], text: str, background: str) -> str:
    """A page with all views."""
    body = "".join(f"<h4 style='margin:1.5em 0 0.3em'>{title}</h4>{view}" for title, view in shown)
    style = f"color:{text};background:{background};font:14px sans-serif;margin:1em"
    return f"<!doctype html><meta charset='utf-8'><body style='{style}'>{body}"


def notebook(shown: list[tuple[str, str]]) -> nbformat.NotebookNode:
    """A notebook whose outputs are the views."""
    cells = []
    for title, view in shown:
        cell = nbformat.v4.new_code_cell(f"# {title}", execution_count=1)
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/html": view}, execution_count=1)]
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def main(target: Path) -> None:
    """Write the pages, the notebook and the pictures."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shown = list(all_views(Path(folder)))
    nbformat.write(notebook(shown), target / "views.ipynb")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    for theme, text, background in (("light", "#111111", "#ffffff"), ("dark", "#eeeeee", "#111111")):
        (target / f"{theme}.html").write_text(page(shown, text, background), "utf-8")
        if chromium is not None:
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,4200"]
            picture = f"--screenshot={target / f'{theme}.png'}"
            subprocess.run([chromium, *options, picture, (target / f"{theme}.html").as_uri()], check=True, timeout=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
