"""Types that the store does not have, and the reported outcomes when a run ends in an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes.reading import lookup
from tests.command import run


def rows(count: int, *, kind: str = "note", **metadata: object) -> pl.DataFrame:
    """Entities with metadata of these values."""
    fields = {"metadata": [metadata] * count} if metadata else {}
    return pl.DataFrame({"entity_type": [kind] * count, "id": [str(n) for n in range(count)], "content": "x", **fields})


def test_read_and_scan_of_an_unknown_type(store: ef.EntityStore) -> None:
    """The result is empty, and a warning lists the existing types."""
    with pytest.warns(UserWarning, match="no entities of type 'note': the store has no entities"):
        assert store.read("note").is_empty()
    for kind in ("note", "person"):
        store.upsert(rows(2, kind=kind), progress=False)
    with pytest.warns(UserWarning, match="no entities of type 'notes': the store has note, person") as caught:
        assert store.read("notes").is_empty()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="no entities of type 'Person': the store has note, person") as caught:
        assert store.scan("Person").collect().is_empty()
    assert caught[0].filename == __file__


def test_types_that_are_known(store: ef.EntityStore) -> None:
    """A type with entities, one whose entities were deleted but whose fields are recorded, and all types at once."""
    store.upsert(rows(2), progress=False)
    store.upsert(rows(2, kind="gone", n=1), progress=False)
    store.delete(rows(2, kind="gone"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read("note").height == 2
        assert store.scan("note").collect().height == 2
        assert store.read("gone").columns[2] == "n"
        assert store.scan("gone").collect().is_empty()
        assert store.scan().collect().height == 2
        assert not store.get(ef.ids("other", ["1"]))["found"].any()
    assert lookup.unknown_type_message(store._engine, "gone") is None


def test_many_types(store: ef.EntityStore) -> None:
    """Twenty are listed."""
    many = pl.DataFrame({"entity_type": [f"t{n:02}" for n in range(25)], "id": "a", "content": "x"})
    store.upsert(many, progress=False)
    message = lookup.unknown_type_message(store._engine, "other")
    assert message is not None
    assert message.endswith("t18, t19, ...")


@pytest.mark.duckdb
def test_the_command_line_of_unknown_types(tmp_path: Path) -> None:
    """An export is an error; a lookup of ids prints a note, and ends as for any id that does not exist."""
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(rows(2), progress=False)
    message = "no entities of type 'notes': the store has note"
    for words, code in (
        (("export", "notes"), 2),
        (("get", "--type", "notes", "1"), 1),
        (("exists", "--type", "notes", "1"), 1),
        (("delete", "--type", "notes", "1"), 0),
    ):
        ended = run(*words, "--store", "x.duckdb", cwd=tmp_path)
        assert (ended.returncode, message in ended.stderr) == (code, True), ended
    assert run("export", "notes", "--store", "x.duckdb", "--out", "o.csv", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "o.csv").exists()


def stream(*frames: pl.DataFrame) -> Iterator[pl.DataFrame]:
    yield from frames


def test_the_message_when_a_stream_ends_in_an_error(store: ef.EntityStore) -> None:
    """Rows stored before the error are counted and in last_result; with a whole frame none is stored."""
    wrong = rows(3, n="text")
    with pytest.raises(ef.SchemaError, match=r"other dtypes .*; before that, 5 created, which are kept \(see last_res"):
        store.upsert(stream(rows(5, n=1), wrong), batch_size=5, progress=False)
    assert store.last_result.counts["created"] == 5
    assert store.stats()["entities"].to_list() == [5]
    with pytest.raises(ef.SchemaError, match="; nothing was written: "):
        store.upsert(wrong, progress=False)
    with pytest.raises(ef.SchemaError, match="; nothing was written: "):
        store.upsert(stream(wrong), progress=False)
    with pytest.raises(ef.SchemaError, match="unknown columns 'odd'.*; before that, 5 created"):
        store.upsert(stream(rows(5, kind="b"), rows(2).with_columns(odd=1)), batch_size=5, progress=False)


def test_the_message_for_repeated_keys(connect: Callable[..., ef.EntityStore]) -> None:
    """In a stream, rows before the batch with the repeated keys are stored, unless batches are written concurrently."""
    store = connect(workers=1)
    twice = pl.concat([rows(3, kind="twice")] * 2)
    with pytest.raises(ef.DuplicateError, match=r"repeat.*; before that, 4 created"):
        store.upsert(stream(rows(4), twice), batch_size=4, on_duplicate="error", progress=False)
    with pytest.raises(ef.DuplicateError, match=r"repeat.*; nothing was written: "):
        store.upsert(twice, on_duplicate="error", progress=False)
    assert store.stats()["entities"].to_list() == [4]
