"""The calls for single entities do what the calls for frames do, also where they take a shorter path."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
import pytest

import entityframes as ef

#: What is stored before: typed columns, JSON text with fields of one dtype or of several, or nothing.
STORED: dict[str, pl.DataFrame | None] = {
    "nothing": None,
    "typed": pl.DataFrame({"id": ["a"], "content": ["x"], "metadata": [{"n": 1, "t": "s", "f": 0.5, "b": True}]}),
    "dates": pl.DataFrame({"id": ["a"], "content": ["x"], "metadata": [{"n": dt.date(2020, 1, 1)}]}),
    "json": pl.DataFrame({"id": ["a"], "content": ["x"], "metadata": ['{"n": 1, "t": "s", "f": 0.5, "b": true}']}),
    "mixed": pl.DataFrame({"id": ["a", "c"], "content": ["x", "y"], "metadata": ['{"n": 1}', '{"n": "s"}']}),
    "null": pl.DataFrame({"id": ["a"], "content": ["x"], "metadata": ['{"n": null}']}),
    "bare": pl.DataFrame({"id": ["a"], "content": ["x"]}),
}
CONTENTS = ["x", "", "new", "a\0b", "\ud800", None]
METADATA: list[Mapping[str, Any] | str | None] = [
    None,
    {},
    {"n": 1, "t": "s", "f": 0.5, "b": True},
    {"b": False, "f": 1.5, "n": 2, "t": None},
    {"n": 1},
    {"n": "s"},
    {"n": 0.1},
    {"n": 10**20},
    {"n": [1, {"k": 2}]},
    {"n": None},
    {"n": "2021-02-03"},
    {"t": "a\0b"},
    '{"n": 1.0, "t": "s", "f": 5e-1, "b": true}',
    '{"n": 0.1000000000000000055511151231257827}',
    '{"n": 1, "n": 2}',
    "[1]",
    "{",
]


def attempt(call: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[str, str]:
    """The status of a call, or the error that it raised."""
    try:
        return "done", call(*arguments)["status"]
    except ef.EntityFramesError as error:
        return type(error).__name__, str(error).replace("single", "frame")


def upsert_frame(store: ef.EntityStore, frame: pl.DataFrame) -> dict[str, Any]:
    """What `upsert_entity` would do, with a frame."""
    return store.upsert(frame, on_error="raise", progress=False).outcomes.row(0, named=True)


def stored(store: ef.EntityStore, entity_type: str) -> list[dict[str, Any]]:
    """What is stored of a type, without times."""
    frame = store.scan().filter(pl.col("entity_type") == entity_type).sort("id").collect()
    return frame.select("id", "content", "metadata", "content_hash").to_dicts()


@pytest.mark.slow
@pytest.mark.parametrize("before", STORED)
def test_like_a_frame_of_one_row(store: ef.EntityStore, before: str) -> None:
    """The same outcome, error, content, metadata and dtypes, for each content and metadata over each stored entity."""
    pairs = [*itertools.product(["new"], METADATA), *itertools.product(CONTENTS, [None, METADATA[2]])]
    for number, (content, metadata) in enumerate(pairs):
        ones, frames = f"single{number}", f"frame{number}"
        for entity_type in (ones, frames):
            if (frame := STORED[before]) is not None:
                store.upsert(frame.with_columns(entity_type=pl.lit(entity_type)), progress=False)
        # Of the second call the fields are known.
        for id in ("a", "b", "b"):
            row = {"entity_type": frames, "id": id}
            row |= {} if content is None else {"content": content}
            text = metadata if isinstance(metadata, str) else json.dumps(metadata, ensure_ascii=False)
            row |= {} if metadata is None else {"metadata": text}
            columns = {name: [value.encode("utf-8", "surrogatepass")] for name, value in row.items()}
            frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Binary))

            expected = attempt(upsert_frame, store, frame)
            assert attempt(store.upsert_entity, ones, id, content, metadata) == expected, (content, metadata, id)
        assert stored(store, ones) == stored(store, frames), (content, metadata)
        assert store.read(ones).schema == store.read(frames).schema if stored(store, ones) else True
    assert store.verify().is_empty()


def test_a_single_entity_is_found_like_many(store: ef.EntityStore) -> None:
    frame = pl.DataFrame(
        {"entity_type": ["t", "t", "u"], "id": ["a", "é", "a"], "content": ["x", "", "z"], "metadata": [{"n": 1}] * 3}
    )
    store.upsert(frame, progress=False)
    keys = [
        *frame.select("entity_type", "id").rows(),
        ("t", "b"),
        ("v", "a"),
        ("t", ""),
        ("", ""),
        ("t", "a\0"),
        ("t", "\ud800"),
    ]
    for entity_type, id in keys:
        ids = pl.DataFrame(
            {"entity_type": [entity_type.encode()], "id": [id.encode("utf-8", "surrogatepass")]},
            schema={"entity_type": pl.Binary, "id": pl.Binary},
        )
        row = store.get(ids).row(0, named=True)
        found = store.get_entity(entity_type, id)
        assert store.entity_exists(entity_type, id) == row["found"] == store.exists(ids)["exists"][0]
        if found is None:
            assert not row["found"]
        else:
            assert row.pop("found")
            assert found == row | {"metadata": {"n": 1}}
            assert list(found) == list(row)
            assert (found["created_at"].tzinfo, found["updated_at"].utcoffset()) == (
                row["created_at"].tzinfo,
                dt.timedelta(),
            )


def test_times_of_a_single_entity(store: ef.EntityStore) -> None:
    """created_at stays to the microsecond when the content changes; updated_at moves."""
    store.upsert_entity("t", "a", "x", {"n": 1})
    first = store.get_entity("t", "a")
    assert store.upsert_entity("t", "a", "y", {"n": 1})["status"] == "updated"
    second = store.get_entity("t", "a")
    assert first is not None
    assert second is not None
    assert first["created_at"] == second["created_at"] == first["updated_at"] < second["updated_at"]
    assert store.upsert_entity("t", "a", "y", {"n": 1})["status"] == "unchanged"
    assert store.get_entity("t", "a") == second


def test_jobs_and_ledger_of_single_entities(store: ef.EntityStore) -> None:
    """Each call that changes content makes a job of its own, unless it is not to be embedded or the content is empty."""
    store.upsert_entity("t", "warm", "w", {"n": 1}, embed=False)
    outcomes = [
        store.upsert_entity("t", "a", "x", {"n": 1}),
        store.upsert_entity("t", "a", "x", {"n": 2}),
        store.upsert_entity("t", "a", "y", {"n": 2}, embed=False),
        store.upsert_entity("t", "b", "", {"n": 2}),
        store.upsert_entity("t", "a", "z", {"n": 2}),
        store.upsert_entity("t", "a", "z", {"n": 2}),
    ]
    assert [row["status"] for row in outcomes] == ["created", "updated", "updated", "created", "updated", "unchanged"]
    assert [row["job_id"] is not None for row in outcomes] == [True, False, False, False, True, False]
    assert sorted(store.jobs()["job_id"]) == sorted(row["job_id"] for row in outcomes if row["job_id"])
    assert store.last_result is not None
    assert store.last_result.outcomes.row(0, named=True) == outcomes[-1]
    assert store.verify().is_empty()


def test_fields_that_another_writer_has_recorded_are_kept(url: str) -> None:
    """The fields that a call knows may be a second old; an entity with further ones is merged, not overwritten."""
    with ef.connect(url) as one, ef.connect(url) as other:
        one.upsert_entity("t", "a", "x", {"n": 1})
        assert one.upsert_entity("t", "a", "y", {"n": 1})["status"] == "updated"
        other.upsert_entity("t", "a", "z", {"n": 1, "more": 2})
        assert one.upsert_entity("t", "a", "last", {"n": 3})["status"] == "updated"
        found = one.get_entity("t", "a")
        assert found is not None
        assert (found["content"], found["metadata"]) == ("last", {"n": 3, "more": 2})
