"""The notebooks run in a real kernel and get the results that they speak of; the committed outputs can be shown anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

#: What holds after the last cell, as code that runs in the kernel of the notebook.
CHECKS = {
    "01_quickstart": """
        assert (result.counts["created"], result.counts["duplicate"], result.counts["failed"]) == (19_996, 1, 5)
        assert result.failed["row"].to_list() == [4999, 9999, 14999, 19999, 20001]
        assert second.ok and second.counts["created"] == 5
        assert (again.counts["unchanged"], again.counts["created"], again.counts["updated"]) == (19_996, 0, 0)
        assert plan.counts["update"] == 4
        assert found["found"].to_list() == [True, False, True]
        assert stored.height == 20_001
        assert [stored.schema[name] for name in ("pages", "published", "tags")] == [pl.Int64, pl.Date, pl.List(pl.String)]
        assert early.height == 24
        assert hits["id"][0] == "book-4711"
        assert problems.is_empty()
    """,
    "02_n_plus_one_vs_batch": """
        for measured in (embedded, own, remote):
            assert measured.select("way", "entities").rows() == [
                (way, size) for size in (10, 20) for way in ("N+1", "batch")
            ]
        loop, batch = (remote.filter(way=way)["round_trips"].to_list() for way in ("N+1", "batch"))
        assert loop[1] > loop[0] > 10, loop
        assert max(batch) < 10, batch
    """,
    "03_your_own_tables": """
        assert (result.counts["created"], result.counts["duplicate"], result.counts["failed"]) == (19_991, 2, 9)
        assert dict(result.failed_by_reason.select("rule", "n").iter_rows()) == {
            "null_key": 4, "invalid_text": 2, "foreign_key:products_category_name_fkey": 1, "loses_digits": 1,
            "check:products_price_check": 1,
        }
        assert second.ok and second.counts["created"] == 5
        assert (plan.counts["create"], plan.counts["update"]) == (1, 4)
        assert (applied.counts["created"], applied.counts["updated"], applied.counts["conflict"]) == (1, 3, 1)
        assert left.counts["update"] == 1
        assert now["price"].cast(pl.String).to_list() == ["2.01", "3.02", "3.33", "8.07", None]
        assert now["title"][3] == "Product 7"
    """,
    "04_directory_sync": """
        assert plan.counts["create"] == 4 and plan.counts["invalid"] == 1
        assert first.failed["path"].to_list() == ["broken.md"]
        assert recipes["minutes"].to_list() == [180, 40, 5]
        assert second.ok and second.counts["created"] == 1
        directions = dict(third.outcomes.drop_nulls("direction").select("path", "direction").iter_rows())
        assert directions == {"recipe/soup.md": "export", "recipe/tea.md": "import"}
        assert "minutes: 45" in (notes / "recipe/soup.md").read_text()
        assert (conflict.counts["conflict"], conflict.ok) == (1, False)
        assert settled.ok
        assert (notes / "todo.md").read_text() == "Buy rye flour.\\n"
        assert (last.counts["renamed"], last.counts["deleted"]) == (1, 1)
        assert equal.counts["unchanged"] == 4 == len(equal.frame)
    """,
    "05_embeddings_and_search": """
        assert embedded.ok and embedded.counts["embedded"] == 16
        assert {"solaris", "martian"} <= set(meaning["id"])
        assert {"karenina", "pride"} <= set(romance["id"])
        assert words["id"][0] == both["id"][0] == "holmes"
        years = dict(books.select("id", "year").iter_rows())
        assert older.height == 3 and all(years[id] < 1950 for id in older["id"])
        assert (due, refreshed.counts["embedded"]) == (3, 3)
        assert similar.row(0)[:2] == ("moby", "moby-2")
        assert (found["id"].to_list(), found["heading"][0]) == (["coffee"], "Coffee machine > Cleaning")
        assert (edited.calls, edited.counts["embedded"]) == (1, 1)
    """,
    "06_etl_recipes": """
        assert (first.counts["created"], first.counts["duplicate"]) == (2_600, 100)
        assert (second.counts["created"], second.counts["updated"], second.counts["unchanged"]) == (100, 50, 650)
        assert third.ok and third.counts["unchanged"] == third.rows == 150
        assert dict(dead.select("row", "rule").iter_rows()) == {1: "not_null:customer", 2: "invalid_text", 3: "null_key"}
        assert redelivered.ok and redelivered.counts["created"] == 2
        assert plan.counts["delete"] == mirrored.counts["deleted"] == 54
        assert "has no rows" in refused
        assert (from_pandas.counts["created"], from_duckdb.counts["created"], top.height) == (500, 52, 3)
        assert same == {"customer": True, "invoice": True}
        assert archived.ok and archived.counts["created"] == 2_649
    """,
}


@pytest.mark.slow
@pytest.mark.duckdb
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs, and the results are what the text says."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(dedent(CHECKS[path.stem])))
    monkeypatch.setenv("BENCH_SIZES", "10,20")
    monkeypatch.delenv("BENCH_POSTGRES", raising=False)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_every_notebook_is_checked() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path: Path) -> None:
    """They are those of one run from top to bottom, and JupyterLab shows them without trusting the notebook."""
    # Small enough for code hosting sites to render.
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    types = {kind for output in outputs for kind in output.get("data", {})}
    assert types <= {"text/plain", "text/html", "image/png"}
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert not re.search(r"/(home|root|Users|work|dev/shm)/", json.dumps(outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links(path: Path) -> None:
    """Links lead to files that are there."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
