"""Progress and cancellation of every call that may take long, and the rules by which failures are counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.writing import delete, plan

ROWS = 50

#: Each call on a store that has the entities of `frame`, with progress and cancel.
CALLS: dict[str, Callable[..., Any]] = {
    "exists": lambda store, frame, **more: store.exists(frame, **more),
    "missing": lambda store, frame, **more: store.missing(frame, **more),
    "get": lambda store, frame, **more: store.get(frame, **more),
    "read": lambda store, frame, **more: store.read("note", **more),
    "scan": lambda store, frame, **more: store.scan("note", **more).collect(),
    "scan of all types": lambda store, frame, **more: store.scan(**more).select("id").collect(),
    "plan": lambda store, frame, **more: store.plan(frame.with_columns(content=pl.lit("new")), **more),
    "verify": lambda store, frame, **more: store.verify(**more),
    "delete": lambda store, frame, **more: store.delete(frame, **more),
    "search": lambda store, frame, **more: store.search("text", mode="text", **more),
}


@pytest.fixture
def frame(store: ef.EntityStore) -> pl.DataFrame:
    """Entities that are stored, some of them with typed metadata."""
    rows = pl.DataFrame({"id": [f"n{n:02}" for n in range(ROWS)], "text": "text", "n": range(ROWS)})
    frame: pl.DataFrame = ef.entities(rows, "note", id="id", content="text")
    assert store.upsert(frame, progress=False).counts["created"] == ROWS
    return frame


@pytest.mark.parametrize("name", CALLS)
def test_progress_reaches_its_total(
    store: ef.EntityStore, frame: pl.DataFrame, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number done grows to the total, also in several batches."""
    monkeypatch.setattr(delete, "DELETE_ROWS", 20)
    monkeypatch.setattr(plan, "_CHUNK_ROWS", 20)
    calls: list[tuple[int, int | None]] = []
    CALLS[name](store, frame, progress=lambda done, total: calls.append((done, total)))
    done = [each for each, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1][0] == calls[-1][1] > 0
    if name in ("plan", "delete"):
        assert len(calls) == 3


@pytest.mark.parametrize("call", ["read", "scan"])
def test_progress_of_a_table(store: ef.EntityStore, call: str) -> None:
    """Its rows are the total, and it can be cancelled."""
    table = ef.create_table(store, "numbers", {"n": pl.Int64}, key="n")
    table.upsert(pl.DataFrame({"n": range(ROWS)}), progress=False)
    calls: list[tuple[int, int | None]] = []
    cancel = threading.Event()

    def run() -> pl.DataFrame:
        found = getattr(table, call)(progress=lambda done, total: calls.append((done, total)), cancel=cancel)
        return found.lazy().collect()

    assert run()["n"].sort().to_list() == list(range(ROWS))
    assert calls[-1] == (ROWS, ROWS)
    assert table.scan("n").select(pl.len()).collect().item() == ROWS
    assert table.scan().filter(pl.col("n") > 10).head(3).collect().height == 3
    cancel.set()
    with pytest.raises(ef.StatementCancelledError):
        run()


def test_the_total_of_a_filtered_scan(store: ef.EntityStore, frame: pl.DataFrame) -> None:
    """It is not known if the database filters or limits the rows; those that it returns are counted."""
    calls: list[tuple[int, int | None]] = []
    notes = store.scan("note", progress=lambda done, total: calls.append((done, total)))
    assert notes.filter(pl.col("n") < 7).collect().height == 7
    assert notes.head(5).collect().height == 5
    assert notes.filter(pl.col("n").cast(pl.String).str.contains("1")).collect().height == 14
    assert calls == [(7, None), (5, None), (ROWS, ROWS)]


def test_an_error_of_a_progress_function_ends_a_scan(store: ef.EntityStore, frame: pl.DataFrame) -> None:
    """As it ends any other call."""

    def failing(done: int, total: int | None) -> None:
        raise OSError("the display is gone")

    with pytest.raises(OSError, match="the display is gone"):
        store.scan("note", progress=failing).collect()
    assert store.scan("note").collect().height == ROWS


def test_progress_of_embedding(store: ef.EntityStore, frame: pl.DataFrame) -> None:
    """The number of due entities is the total."""
    calls: list[tuple[int, int | None]] = []
    store.embed(ef.HashingEmbedder(16), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (ROWS, ROWS)


def test_progress_of_embedding_from_its_first_text(store: ef.EntityStore, frame: pl.DataFrame) -> None:
    """Texts count when the embedder returns them, not only when their vectors are written."""
    first = threading.Event()

    class Waiting(ef.HashingEmbedder):
        calls = 0

        def embed(self, texts: Sequence[str], /) -> Any:
            assert self.calls == 0 or first.wait(60)
            self.calls += 1
            return super().embed(texts)

    # Equal texts are embedded at once.
    store.upsert(frame.with_columns(content=pl.format("text of {}", "id")), progress=False)
    calls: list[int] = []
    result = store.embed(Waiting(16, max_batch=10), progress=lambda done, total: (calls.append(done), first.set()))
    assert result.counts["embedded"] == ROWS
    assert calls[0] == 10
    assert calls[-1] == ROWS


def test_the_total_of_a_scan(store: ef.EntityStore, tmp_path: Path) -> None:
    """Of Parquet files it is in their metadata, unless rows are left out; other streams have none."""
    rows = pl.DataFrame({"id": [f"n{n}" for n in range(ROWS)], "text": "text", "n": range(ROWS)})
    for part in (0, 1):
        rows[part::2].write_parquet(tmp_path / f"{part}.parquet")
    scan = pl.scan_parquet(tmp_path / "*.parquet")
    totals: dict[str, set[int | None]] = {}
    given = {
        "plain": scan,
        "columns": scan.with_columns(pl.col("text").str.to_uppercase(), half=pl.col("n") / 2).drop("n"),
        "head": scan.head(10),
        "filter": scan.filter(pl.col("n") < 7),
        "unique": scan.unique("text"),
        "iterator": iter([ef.entities(rows, "note", id="id", content="text")]),
    }
    for name, source in given.items():
        frame = ef.entities(source, "note", id="id", content="text") if name != "iterator" else source
        totals[name] = set()
        store.upsert(frame, progress=lambda done, total, seen=totals[name]: seen.add(total))
    assert totals == {
        "plain": {ROWS}, "columns": {ROWS}, "head": {10}, "filter": {None}, "unique": {None}, "iterator": {None}
    }  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cancelled(store: ef.EntityStore, frame: pl.DataFrame, name: str) -> None:
    """A call that reads raises; one that writes returns outcomes, and nothing is written."""
    cancel = threading.Event()
    cancel.set()
    if name == "delete":
        result = store.delete(frame, cancel=cancel)
        assert result.counts["cancelled"] == ROWS
        assert not result.ok
    else:
        with pytest.raises(ef.StatementCancelledError):
            CALLS[name](store, frame, cancel=cancel)
    assert store.exists(frame)["exists"].all()


def test_a_delete_that_is_cancelled_between_batches(
    store: ef.EntityStore, frame: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was deleted before stays deleted, and the rest is cancelled."""
    monkeypatch.setattr(delete, "DELETE_ROWS", 20)
    cancel = threading.Event()
    result = store.delete(frame, cancel=cancel, progress=lambda done, total: cancel.set())
    deleted = result.outcomes.filter(pl.col("status") == "deleted")
    assert deleted["row"].to_list() == list(range(20))
    assert result.counts["cancelled"] == ROWS - 20
    assert store.exists(frame)["exists"].to_list() == [False] * 20 + [True] * (ROWS - 20)


def test_every_failure_has_a_rule(store: ef.EntityStore) -> None:
    """Rules are short and stable, and `failed_by_reason` counts failures by them, most first."""
    rows = [
        ("note", None, "x", "{}"),
        ("note", None, "y", "{}"),
        ("note", "", "x", "{}"),
        ("note", "a\0b", "x", "{}"),
        ("note", "long" * 300, "x", "{}"),
        ("note", "json", "x", "{nothing"),
        ("note", "null", None, "{}"),
        ("note", "good", "x", "{}"),
    ]
    columns = dict.fromkeys(["entity_type", "id", "content", "metadata"], pl.String)
    result = store.upsert(pl.DataFrame(rows, columns, orient="row"))
    rules = ["null_key", "null_key", "empty_key", "nul_character", "too_long", "invalid_json", "null_content"]
    assert result.failed["rule"].to_list() == rules
    reasons = result.failed_by_reason
    assert reasons.schema == {
        "error_kind": result.outcomes.schema["error_kind"],
        "rule": pl.String,
        "n": pl.UInt32,
        "row": pl.UInt32,
        "error": pl.String,
    }
    assert reasons.row(0) == ("validation", "null_key", 2, 0, "id is null")
    assert reasons["rule"].to_list() == list(dict.fromkeys(rules))
    assert result.outcomes.filter(pl.col("status") == "created")["rule"].to_list() == [None]


def test_a_value_that_does_not_fit_its_declared_dtype_has_a_rule(store: ef.EntityStore, frame: pl.DataFrame) -> None:
    """JSON text has to fit the dtype that a typed column has declared."""
    text = frame.head(1).select("entity_type", pl.lit("z").alias("id"), "content", metadata=pl.lit('{"n":"word"}'))
    assert store.upsert(text).failed["rule"].to_list() == ["wrong_dtype"]


@pytest.mark.parametrize("bad", [1, 3])
def test_a_constraint_of_the_database_is_named(store: ef.EntityStore, sql, engine: str, bad: int) -> None:
    """A row that a CHECK refuses has the name of the constraint in its rule, wherever it is found out."""
    if engine == "duckdb":
        with store._engine.database.file.cursor() as cursor:
            [(ddl,)] = cursor.execute(
                "SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'"
            ).fetchall()
            cursor.execute("DROP TABLE entityframes.entities")
            cursor.execute(ddl.replace(");", ", CHECK (content NOT LIKE 'bad%'));"))
    else:
        sql("ALTER TABLE entityframes.entities ADD CONSTRAINT entities_content_check CHECK (content NOT LIKE 'bad%')")
    contents = ["bad"] * bad + ["good"] * 5
    rows = pl.DataFrame({"id": [str(n) for n in range(len(contents))], "text": contents})
    result = store.upsert(ef.entities(rows, "note", id="id", content="text"))
    assert result.counts["created"] == 5
    assert result.failed["rule"].to_list() == ["check:entities_content_check"] * bad
    assert result.failed_by_reason["n"].to_list() == [bad]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_retries_are_logged(store: ef.EntityStore, sql, caplog: pytest.LogCaptureFixture) -> None:
    """The log message of a retry has the run and batch ids and the error, without any content."""
    sql(
        "CREATE SEQUENCE public.tries",
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('public.tries') = 1 THEN RAISE 'secret content' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON entityframes.entities FOR EACH STATEMENT "
        "EXECUTE FUNCTION public.refuse()",
    )
    try:
        with caplog.at_level(logging.INFO, "entityframes"):
            result = store.upsert(
                ef.entities(pl.DataFrame({"id": ["a"], "text": ["x"]}), "note", id="id", content="text")
            )
    finally:
        sql("DROP TRIGGER refuse ON entityframes.entities", "DROP FUNCTION public.refuse", "DROP SEQUENCE public.tries")
    assert result.counts["created"] == 1
    [message] = [record.getMessage() for record in caplog.records if "retrying" in record.getMessage()]
    assert result.outcomes["batch_id"].item() in message
    assert "TransientError (40001)" in message
    assert "secret" not in caplog.text
