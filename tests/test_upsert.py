"""Upsert: every row gets one outcome, and the store contains what the outcomes report."""

from __future__ import annotations

import threading

import polars as pl
import pytest

import entityframes as ef
from entityframes.results import UPSERT_STATUSES
from tests.conftest import IDS_OF_JOB, engine_and_keys

engine = engine_and_keys


def frame(*rows: tuple[str, str], entity_type: str = "note", metadata: list[str | None] | None = None) -> pl.DataFrame:
    """An entity frame of (id, content) pairs."""
    columns = {"entity_type": [entity_type] * len(rows), "id": [r[0] for r in rows], "content": [r[1] for r in rows]}
    schema = dict.fromkeys(columns, pl.String)
    result = pl.DataFrame(columns, schema=schema)
    return result if metadata is None else result.with_columns(metadata=pl.Series(metadata, dtype=pl.String))


def statuses(result: ef.UpsertResult) -> list[str]:
    return result.outcomes["status"].to_list()


def contents(store: ef.EntityStore, *ids: str) -> list[str | None]:
    return store.get(ef.ids("note", ids))["content"].to_list()


def test_created_then_unchanged_then_updated(store: ef.EntityStore) -> None:
    """A first run creates, a second run changes nothing, and a changed row is the only one updated."""
    rows = frame(("a", "one"), ("b", "two"), ("c", "three"))
    assert statuses(store.upsert(rows)) == ["created"] * 3
    assert statuses(store.upsert(rows)) == ["unchanged"] * 3
    assert statuses(store.upsert(frame(("a", "one"), ("b", "TWO"), ("d", "four")))) == [
        "unchanged",
        "updated",
        "created",
    ]
    assert contents(store, "a", "b", "c", "d") == ["one", "TWO", "three", "four"]


def test_outcome_columns_and_dtypes(store: ef.EntityStore) -> None:
    """The outcome frame has the documented columns in input order."""
    outcomes = store.upsert(frame(("b", "x"), ("a", "y"))).outcomes
    assert outcomes.schema == {
        "row": pl.UInt32,
        "entity_type": pl.String,
        "id": pl.String,
        "status": pl.Enum(UPSERT_STATUSES),
        "batch_id": pl.String,
        "job_id": pl.String,
        "error_kind": pl.Enum(["validation", "database", "connection", "timeout", "resource", "embedder"]),
        "rule": pl.String,
        "error": pl.String,
        "sqlstate": pl.String,
    }
    assert outcomes["row"].to_list() == [0, 1]
    assert outcomes["id"].to_list() == ["b", "a"]
    assert outcomes["batch_id"].n_unique() == 1


def test_created_at_stays_and_updated_at_moves_with_changes_only(store: ef.EntityStore) -> None:
    """created_at never changes; updated_at changes only with content or metadata."""
    store.upsert(frame(("a", "one"), ("b", "two")))
    before = store.get(ef.ids("note", ["a", "b"]))
    store.upsert(frame(("a", "one"), ("b", "changed")))
    after = store.get(ef.ids("note", ["a", "b"]))
    assert after["created_at"].to_list() == before["created_at"].to_list()
    assert after["updated_at"][0] == before["updated_at"][0]
    assert after["updated_at"][1] > before["updated_at"][1]


def test_metadata_is_compared_as_json(store: ef.EntityStore) -> None:
    """Key order, whitespace, escapes and the notation of numbers do not matter."""
    store.upsert(frame(("a", "x"), metadata=['{"b": 1, "a": "é", "c": [1.0, {"z": 1e2, "y": null}]}']))
    same = '{"a":"\\u00e9","c":[1,{"y":null,"z":100}],   "b":1.00000000000000000000}'
    assert statuses(store.upsert(frame(("a", "x"), metadata=[same]))) == ["unchanged"]
    assert statuses(store.upsert(frame(("a", "x"), metadata=['{"a":"é"}']), absent="clear")) == ["updated"]


def test_metadata_alone_creates_no_job(store: ef.EntityStore) -> None:
    """A change of metadata is an update, but the content is still embedded."""
    first = store.upsert(frame(("a", "x"), metadata=['{"v": 1}'])).outcomes
    second = store.upsert(frame(("a", "x"), metadata=['{"v": 2}'])).outcomes
    assert first["job_id"].null_count() == 0
    assert second["status"].to_list() == ["updated"]
    assert second["job_id"].null_count() == 1


def test_one_job_per_batch_with_the_written_keys(store: ef.EntityStore, sql, engine: str) -> None:
    """1,000 entities at batch_size=100 make 10 batches, 10 ledger rows and 10 jobs."""
    rows = frame(*((f"e{n}", f"text {n}") for n in range(1000)))
    result = store.upsert(rows, batch_size=100)
    assert result.batches == 10
    assert result.outcomes["job_id"].n_unique() == 10
    assert sql("SELECT count(*), sum(created) FROM entityframes.batches") == [(10, 1000)]
    jobs = sql(f"SELECT job_id::text, {IDS_OF_JOB[engine]} FROM entityframes.embedding_jobs WHERE state = 'pending'")
    listed = {job: set(ids) for job, ids in jobs}
    reported = result.outcomes.group_by("job_id").agg("id")
    assert listed == {job: set(ids) for job, ids in reported.iter_rows()}


def test_no_job_for_empty_content_or_without_embed(store: ef.EntityStore, sql) -> None:
    """There is nothing to embed in empty content, and embed=False creates no job."""
    assert store.upsert(frame(("a", ""))).outcomes["job_id"].to_list() == [None]
    assert store.upsert(frame(("b", "text")), embed=False).outcomes["job_id"].to_list() == [None]
    assert sql("SELECT count(*) FROM entityframes.embedding_jobs") == [(0,)]


def test_an_unchanged_run_writes_nothing(store: ef.EntityStore, sql) -> None:
    """No ledger row, no job, no touched entity."""
    rows = frame(("a", "x"), ("b", "y"))
    store.upsert(rows)
    before = sql("SELECT count(*) FROM entityframes.batches"), sql("SELECT * FROM entityframes.entities ORDER BY id")
    store.upsert(rows)
    assert before == (
        sql("SELECT count(*) FROM entityframes.batches"),
        sql("SELECT * FROM entityframes.entities ORDER BY id"),
    )


@pytest.mark.parametrize(("policy", "kept"), [("last", "three"), ("first", "one")])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_duplicates_in_a_frame(store: ef.EntityStore, policy: str, kept: str, batch_size: int | None) -> None:
    """One row of a key is written, also across the batches of a frame; the others are duplicates."""
    rows = frame(("a", "one"), ("b", "x"), ("a", "two"), ("a", "three"))
    result = store.upsert(rows, on_duplicate=policy, batch_size=batch_size)
    expected = (
        ["duplicate", "created", "duplicate", "created"]
        if policy == "last"
        else ["created", "created", "duplicate", "duplicate"]
    )
    assert statuses(result) == expected
    assert contents(store, "a") == [kept]


def test_duplicates_can_be_refused(store: ef.EntityStore) -> None:
    """on_duplicate="error" names the keys and writes nothing."""
    with pytest.raises(ef.DuplicateError, match="note/a"):
        store.upsert(frame(("a", "one"), ("b", "x"), ("a", "two")), on_duplicate="error")
    assert contents(store, "a", "b") == [None, None]


def test_a_bad_row_does_not_replace_a_good_one(store: ef.EntityStore) -> None:
    """Of two rows with one key the valid one is stored, even if the invalid one is last."""
    rows = frame(("a", "good"), ("a", "bad\0"))
    assert statuses(store.upsert(rows, batch_size=1)) == ["created", "failed"]
    assert contents(store, "a") == ["good"]


def test_a_later_batch_of_a_stream_updates_an_earlier_one(store: ef.EntityStore) -> None:
    """In a stream, duplicates across batches are allowed, and the batches take effect in order."""
    frames = (frame(("a", f"version {n}"), (f"other {n}", "x")) for n in range(20))
    result = store.upsert(frames, batch_size=2)
    assert result.counts["created"] == 21
    assert result.counts["updated"] == 19
    assert contents(store, "a") == ["version 19"]


def test_keys_are_compared_by_bytes(store: ef.EntityStore) -> None:
    """Composed and decomposed characters, upper and lower case are different ids."""
    ids = ["é", "e\u0301", "A", "a", "a ", "ａ"]
    assert statuses(store.upsert(frame(*((id, id) for id in ids)))) == ["created"] * 6
    assert contents(store, *ids) == ids


def test_same_id_in_two_types(store: ef.EntityStore) -> None:
    """The type is part of the key."""
    both = pl.concat([frame(("a", "note")), frame(("a", "task"), entity_type="task")])
    assert statuses(store.upsert(both)) == ["created", "created"]
    assert store.get(ef.ids("task", ["a"]))["content"].to_list() == ["task"]


def test_progress_callable_gets_rows_done_and_total(store: ef.EntityStore) -> None:
    """It is called after each batch, with the total if it is known."""
    seen: list[tuple[int, int | None]] = []
    store.upsert(frame(*((str(n), "x") for n in range(10))), batch_size=4, progress=lambda *call: seen.append(call))
    assert sorted(done for done, _ in seen)[-1] == 10
    assert len(seen) == 3
    assert {total for _, total in seen} == {10}


def test_cancel_before_the_start_cancels_every_row(store: ef.EntityStore) -> None:
    """The result has an outcome for all rows and the store is untouched."""
    cancel = threading.Event()
    cancel.set()
    result = store.upsert(frame(("a", "x"), ("b", "y")), cancel=cancel)
    assert statuses(result) == ["cancelled", "cancelled"]
    assert not result.ok
    assert contents(store, "a", "b") == [None, None]


def test_cancel_in_the_middle_keeps_finished_batches(store: ef.EntityStore) -> None:
    """Committed rows are reported as created, the rest as cancelled, and the store agrees."""
    cancel = threading.Event()
    rows = frame(*((f"{n:05}", "x") for n in range(5000)))
    result = store.upsert(rows, batch_size=50, cancel=cancel, progress=lambda done, total: done > 500 and cancel.set())
    counts = result.counts
    assert counts["created"] + counts["cancelled"] == 5000
    assert 500 <= counts["created"] < 5000
    stored = store.exists(rows)["exists"]
    assert (stored == (result.outcomes["status"] == "created")).all()


def test_the_callers_exception_propagates_and_the_result_is_kept(store: ef.EntityStore) -> None:
    """An iterator that raises ends the run after its rows are written; a callback ends it too; last_result is kept."""

    def source():
        yield frame(("a", "x"))
        yield frame(("b", "y"))
        raise RuntimeError("the source broke")

    for batch_size, status in ((1, "created"), (None, "unchanged")):
        with pytest.raises(RuntimeError, match="the source broke"):
            store.upsert(source(), batch_size=batch_size)
        assert contents(store, "a", "b") == ["x", "y"]
        assert store.last_result.counts[status] == 2

    def callback(done: int, total: int | None) -> None:
        raise RuntimeError("the callback broke")

    with pytest.raises(RuntimeError, match="the callback broke"):
        store.upsert(frame(("c", "z")), progress=callback)
    assert store.last_result.counts["created"] == 1


def test_a_frame_that_has_row_numbers(store: ef.EntityStore) -> None:
    """Like frames that the store returned: rows are numbered anew."""
    given = frame(("b", "z"), ("a", "z")).with_columns(row=pl.Series([7, 7], dtype=pl.UInt32))
    for again in (given, given.lazy(), iter([given])):
        assert store.upsert(again).outcomes["row"].to_list() == [0, 1]
    assert store.plan(given).counts["unchanged"] == 2
    assert store.exists(given)["exists"].all()
    assert store.delete(given).counts["deleted"] == 2


def test_empty_frame_is_a_no_op(store: ef.EntityStore) -> None:
    """Zero rows give an empty outcome frame."""
    result = store.upsert(frame())
    assert result.outcomes.height == 0
    assert result.ok
    assert result.batches == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"on_duplicate": "both"}, "on_duplicate"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_options_out_of_range(store: ef.EntityStore, options: dict, message: str) -> None:
    """An invalid option is named, and nothing is written."""
    with pytest.raises(ValueError, match=message):
        store.upsert(frame(("a", "x")), **options)
    assert contents(store, "a") == [None]


def test_the_callers_frame_is_not_changed(store: ef.EntityStore) -> None:
    """A frame is read, never written."""
    rows = frame(("a", "x"), metadata=['{"b":1, "a":2}'])
    before = rows.clone()
    store.upsert(rows)
    assert rows.equals(before)


def test_get_then_upsert_is_unchanged(store: ef.EntityStore) -> None:
    """The result of `get` can be written back as it is."""
    typed = ef.entities(pl.DataFrame({"k": ["a"], "n": [1.0], "x": [2.5], "s": ["é"]}), "note", id="k")
    store.upsert(typed)
    assert statuses(store.upsert(store.get(typed))) == ["unchanged"]
