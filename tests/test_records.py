"""Python objects as rows: what is accepted, what a missing key means, and what happens to values that do not fit."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import ipaddress
import json
import sqlite3
import uuid
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pydantic
import pytest
from hypothesis import given, settings

import entityframes as ef
from entityframes.frames import records, sources
from entityframes.frames.values import Conversion, Path
from entityframes.metadata import dtypes
from entityframes.rejected import Inputs
from tests.examples import examples
from tests.test_database_refusals import checked
from tests.test_interrupt import press

__all__ = ["checked"]

ROWS: list[dict[str, Any]] = [
    {"entity_type": "note", "id": "a", "content": "one", "metadata": {"n": 1, "tags": ["x"]}},
    {"entity_type": "note", "id": "b", "content": "two", "metadata": {"n": 2, "tags": []}},
]


@dataclasses.dataclass
class Note:
    entity_type: str
    id: str
    content: str
    metadata: Any = None


@dataclasses.dataclass
class Fields:
    n: int
    tags: list[str]


class Model(pydantic.BaseModel):
    entity_type: str
    id: str
    content: str
    metadata: dict[str, Any]


@attrs.define
class Attrs:
    entity_type: str
    id: str
    content: str
    metadata: dict[str, Any]


Tuple = namedtuple("Tuple", ["entity_type", "id", "content", "metadata"])


def note(id: Any, content: str | None = "text", **metadata: Any) -> dict[str, Any]:
    return {"entity_type": "note", "id": id, "content": content, "metadata": metadata}


def metadata(store: ef.EntityStore, id: str = "a") -> dict[str, Any]:
    found = store.get_entity("note", id)
    assert found is not None
    return found["metadata"]


# What is accepted.

FORMS: dict[str, Callable[[], Any]] = {
    "list of dicts": lambda: ROWS,
    "tuple of dicts": lambda: tuple(ROWS),
    "list of pages": lambda: [[ROWS[0]], [], [ROWS[1]]],
    "dict of columns": lambda: {
        "entity_type": "note",
        "id": pl.Series(["a", "b"]),
        "content": np.array(["one", "two"]),
        "metadata": [row["metadata"] for row in ROWS],
    },
    "dataclasses": lambda: [Note("note", row["id"], row["content"], Fields(**row["metadata"])) for row in ROWS],
    "models": lambda: [Model(**row) for row in ROWS],
    "attrs objects": lambda: [Attrs(**row) for row in ROWS],
    "named tuples": lambda: [Tuple(**row) for row in ROWS],
    "iterator of dicts": lambda: iter(ROWS),
    "generator of pages": lambda: ([row] for row in ROWS),
    "generator of dataclasses": lambda: (Note(**row) for row in ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(store: ef.EntityStore, form: str) -> None:
    """All are stored like the frame with the same rows, which is unchanged afterwards; lookups accept them, too."""
    assert store.upsert(FORMS[form]()).counts["created"] == 2
    assert store.upsert(pl.DataFrame(ROWS)).counts["unchanged"] == 2
    assert store.read("note").select("id", "content", "n", "tags").rows() == [
        ("a", "one", 1, ["x"]),
        ("b", "two", 2, []),
    ]
    assert store.plan(FORMS[form]()).counts["unchanged"] == 2
    assert store.exists(FORMS[form]())["exists"].to_list() == [True, True]
    assert store.missing(FORMS[form]()).height == 0
    assert store.get(FORMS[form]())["found"].to_list() == [True, True]
    assert store.delete(FORMS[form]()).counts["deleted"] == 2


@pytest.mark.duckdb
def test_rows_of_a_cursor(tmp_path) -> None:
    """Rows that know their column names."""
    with sqlite3.connect(":memory:") as connection, ef.connect(tmp_path / "x.duckdb") as store:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT 'note' AS entity_type, 'a' AS id UNION ALL SELECT 'note', 'b'")
        assert store.upsert(rows).counts["created"] == 2
    connection.close()


def test_entities_of_dicts() -> None:
    """Keys become columns; one that a dict lacks is null."""
    rows = [{"key": 1, "bio": "x", "n": 1}, {"key": 2, "bio": None, "at": dt.date(2024, 1, 5)}]
    made = ef.entities(rows, "person", id="key", content="bio")
    assert made.rows() == [
        ("person", "1", "x", {"n": 1, "at": None}),
        ("person", "2", "", {"n": None, "at": dt.date(2024, 1, 5)}),
    ]
    assert made.equals(ef.entities(iter([rows]), "person", id="key", content="bio"))
    columns = {"key": [1, 2], "bio": ["x", None], "n": [1, None], "at": [None, dt.date(2024, 1, 5)]}
    assert made.equals(ef.entities(columns, "person", id="key", content="bio"))


REFUSED: dict[str, tuple[Any, str]] = {
    "a value": ([{"id": 1}, {"id": "b"}], r"row 1: id is 'b' \(str\), expected Int64$"),
    "values": ([{"id": 1}, {"id": "b"}, {"id": "c"}, {"id": 2}], r"row 1: .* \(and 1 more rows\)"),
    "nested": ([{"id": "a", "x": {"y": [1, 2, "b"]}}], r"row 0: x\.y\[\] is 'b' \(str\), expected Int64"),
    "no record": ([{"id": "a"}, 5], "row 1: expected a dict, dataclass or model, got int"),
    "a column": ({"id": ["a", 1]}, r"row 1: id is 1 \(int\), expected String"),
    "lengths": ({"id": ["a", "b"], "n": [1]}, "differ in their number of values: 'id' has 2, 'n' has 1"),
    "an array": ({"id": ["a"], "n": np.array([object()])}, "column 'n'"),
    "one dict": ({"id": "a", "n": 1}, "wrap the dict of one row in a list"),
    "a dict of dicts": ({"id": {"0": "a"}}, "column 'id' is a dict: pass a list of its values"),
    "one object": (Note("note", "a", "x"), "expected a frame, got one Note: wrap it in a list"),
    "numbers": (iter([1]), "expected a frame, got int"),
    "text": ("a", "expected a frame, got str"),
    "keys": ([{str(n): n} for n in range(1_001)], "the rows have 1,001 distinct keys, over the limit of 1,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    """Where failures are not reported row by row, the error names the first row and its column."""
    given, message = REFUSED[case]
    with pytest.raises(ef.SchemaError, match=message):
        ef.entities(given, "note", id="id")


def test_a_key_that_is_not_text(store: ef.EntityStore) -> None:
    """It fails its row, which is reported with its id."""
    result = store.upsert(iter([ROWS[0], ROWS[1] | {5: 6}]))  # type: ignore[dict-item]
    assert result.failed.select("id", "rule", "error").rows() == [
        ("b", "invalid_key", "the row has the key 5 (int), which is not text")
    ]


def test_frames_and_dicts_in_one_iterator(store: ef.EntityStore) -> None:
    """The error says so, and the rows before are stored."""
    with pytest.raises(ef.SchemaError, match="consist either of frames, or of dicts.* before that, 1 created"):
        store.upsert(iter([ROWS[0], pl.DataFrame(ROWS)]))


# Missing keys.


@pytest.mark.parametrize("form", [list, iter])
def test_a_missing_key_is_absent(store: ef.EntityStore, form: Callable[[Any], Any]) -> None:
    """It keeps the stored value, unlike None; also if the rows of a page have different keys."""
    full = [note(id, id, n=1, at=dt.date(2024, 1, 5), user={"name": "x", "age": 5}) for id in "abcd"]
    store.upsert(full)
    rows = [
        {"entity_type": "note", "id": "a", "metadata": {"n": 2}},
        {"entity_type": "note", "id": "b", "content": "new"},
        note("c", None, n=None) | {"content": "c"},
        {"entity_type": "note", "id": "d", "metadata": {"user": {"name": "y"}}},
        {"entity_type": "note", "id": "e", "metadata": {"n": 3}},
    ]
    result = store.upsert(form(rows))
    assert result.outcomes["status"].to_list() == ["updated"] * 4 + ["created"]
    read = store.read("note").drop("created_at", "updated_at", "content_hash")
    user = {"name": "x", "age": 5}
    assert read.rows() == [
        ("a", "a", 2, dt.date(2024, 1, 5), user),
        ("b", "new", 1, dt.date(2024, 1, 5), user),
        ("c", "c", None, dt.date(2024, 1, 5), user),
        # A field is replaced as a whole.
        ("d", "d", 1, dt.date(2024, 1, 5), {"name": "y", "age": None}),
        ("e", "", 3, None, None),
    ]
    assert metadata(store, "d")["user"] == {"name": "y"}
    assert metadata(store, "e") == {"n": 3}
    assert store.upsert(form(rows)).counts["unchanged"] == 5
    cleared = store.upsert(form(rows), absent="clear")
    assert cleared.counts == cleared.counts | {"updated": 4, "unchanged": 1}
    assert [store.get_entity("note", id)["content"] for id in "ab"] == ["", "new"]
    assert metadata(store, "b") == {}


def test_nulls_at_every_depth(store: ef.EntityStore) -> None:
    """They keep their places in lists, also in lists of lists and of dicts."""
    values = {
        "a": [[1], None, []], "b": [{"x": None}, None], "c": [None], "d": None, "e": {"l": [[None, [2]], None]},
    }  # fmt: skip
    store.upsert([note("a", **values), note("b", a=None, e={"l": None})])
    assert metadata(store, "a") == values
    assert metadata(store, "b") == {"a": None, "e": {"l": None}}


def test_keys_that_a_whole_page_lacks(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are absent there too, although the page before has them: neither content nor a field is cleared."""
    monkeypatch.setattr(records, "LEAST_PAGE_ROWS", 3)
    monkeypatch.setattr(records, "PAGE_ROWS", 3)
    full = [note(id, f"text {id}", n=1, m=2) for id in "abcdef"]
    store.upsert(full)
    later = [{"entity_type": "note", "id": id, "metadata": {"n": 5}} for id in "def"]
    result = store.upsert(iter([*full[:3], *later]))
    assert result.outcomes["status"].to_list() == ["unchanged"] * 3 + ["updated"] * 3
    read = store.read("note").select("id", "content", "n", "m")
    assert read.rows() == [(id, f"text {id}", 5 if id in "def" else 1, 2) for id in "abcdef"]
    assert all(metadata(store, id) == {"n": 5, "m": 2} for id in "def")


def test_many_sets_of_keys_in_one_batch(store: ef.EntityStore) -> None:
    """Each row keeps its own missing fields, in one transaction; types do not get the fields of other types."""
    names = [f"f{bit}" for bit in range(9)]
    store.upsert([note(str(n), **dict.fromkeys(names, 0)) for n in range(512)])
    rows = [note(str(n), **{name: 1 for bit, name in enumerate(names) if n >> bit & 1}) for n in range(512)]
    result = store.upsert(iter([*rows, {"entity_type": "task", "id": "x", "metadata": {"done": True}}]))
    assert (result.batches, result.counts["created"], result.counts["updated"]) == (1, 1, 511)
    for n in (0, 5, 511):
        assert metadata(store, str(n)) == {name: n >> bit & 1 for bit, name in enumerate(names)}
    assert store.read("task").columns == ["id", "content", "done", "content_hash", "created_at", "updated_at"]
    assert "done" not in store.read("note").columns


def test_whether_a_row_is_unchanged_does_not_depend_on_its_page(store: ef.EntityStore, monkeypatch) -> None:
    """A key that a nested dict lacks is not stored as null because another row of the page has it."""
    monkeypatch.setattr(records, "PAGE_ROWS", 2)
    rows = [note(id, user={"name": id} | ({"age": 1} if id > "c" else {})) for id in "abcde"]
    store.upsert(iter(rows))
    assert store.upsert(iter(rows[1:])).counts["unchanged"] == 4
    assert store.upsert(rows).counts["unchanged"] == 5
    assert metadata(store, "a") == {"user": {"name": "a"}}


def test_a_missing_id_fails_its_row(store: ef.EntityStore, monkeypatch) -> None:
    """Also if it is missing in all rows of a page; but not if there is none at all."""
    monkeypatch.setattr(records, "PAGE_ROWS", 1)
    rows = [ROWS[0], {"entity_type": "note"}, {"id": "b"}]
    result = store.upsert(iter(rows))
    assert result.failed["error"].to_list() == ["id is null", "entity_type is null"]
    assert [each["value"] for each in result.rejected] == rows[1:]
    with pytest.raises(ef.SchemaError, match="needs columns 'id', which are missing"):
        store.upsert(iter([{"entity_type": "note"}]))


# Values.


def test_one_odd_value_fails_its_row(store: ef.EntityStore) -> None:
    """The row is reported with the value, and its position in the whole input; the others are stored."""
    rows = [note(str(n), n=n, deep={"list": [{"x": n}]}) for n in range(6_000)]
    rows[5] = note("5", n="five", deep=None)
    rows[5_500] = note("5500", n=1, deep={"list": [{"x": 1}, {"x": True}]})
    rows[5_900] = {"entity_type": "note", "id": 5_900}
    rows[5_950] = rows[5_950] | {"titel": "a typo"}
    result = store.upsert(rows[start : start + 100] for start in range(0, 6_000, 100))
    assert (result.counts["created"], result.counts["failed"]) == (5_996, 4)
    assert list(result.rejected) == [
        {"row": 5, "value": rows[5], "rule": "wrong_dtype", "error": "metadata.n is 'five' (str), expected Int64"},
        {
            "row": 5_500,
            "value": rows[5_500],
            "rule": "wrong_dtype",
            "error": "metadata.deep.list[].x is True (bool), expected Int64",
        },
        {"row": 5_900, "value": rows[5_900], "rule": "wrong_dtype", "error": "id is 5900 (int), expected String"},
        {
            "row": 5_950,
            "value": rows[5_950],
            "rule": "unknown_column",
            "error": result.rejected[3]["error"],
        },
    ]
    assert result.rejected[3]["error"].startswith("'titel' is not a column: expected entity_type, id, content")
    assert result.failed["error_kind"].to_list() == ["validation"] * 4
    assert result.failed["id"].to_list() == ["5", "5500", None, "5950"]
    assert store.upsert(rows).counts == result.counts | {"created": 0, "unchanged": 5_996}


def test_the_store_decides_the_dtype(store: ef.EntityStore) -> None:
    """Values are converted to the dtypes that a type already has, if that is exact; the others fail."""
    typed = pl.DataFrame(
        {"id": ["x"], "f": [1.5], "i": pl.Series([1], dtype=pl.Int8), "e": pl.Series(["a"], dtype=pl.Enum(["a", "b"]))}
    )
    store.upsert(ef.entities(typed, "note", id="id"))
    rows = [
        note("a", f=2, i=3, e="b"),
        note("b", f=2**53 + 1),
        note("c", i=200),
        note("d", i=2.5),
        note("e", e="z"),
        note("f", f="x"),
    ]
    assert store.upsert(iter(rows)).failed.select("row", "rule").rows() == [
        (1, "out_of_range"), (2, "out_of_range"), (3, "wrong_dtype"), (4, "wrong_dtype"), (5, "wrong_dtype"),
    ]  # fmt: skip
    assert store.read("note").filter(id="a").select("f", "i", "e").row(0) == (2.0, 3, "b")
    # Without entities, a type can get other dtypes.
    store.delete(store.read("note").select(pl.lit("note").alias("entity_type"), "id"))
    assert store.upsert(iter([note("a", f="x")])).ok


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


UTC = dt.UTC
NOON = dt.datetime(2024, 7, 1, 12)
#: A value, and the value that is read, or the rule by which its row fails.
VALUES: list[tuple[Any, Any]] = [
    (2**63, 2**63),
    (2**127, "out_of_range"),
    (10**5_000, "out_of_range"),
    (float("nan"), None),
    (Decimal("1.50"), Decimal("1.5")),
    (Decimal("1e30"), Decimal(10**30)),
    (Decimal("1e-99999"), "out_of_range"),
    (Decimal("NaN"), "out_of_range"),
    (NOON, NOON),
    (NOON.replace(tzinfo=ZoneInfo("Europe/Berlin")), dt.datetime(2024, 7, 1, 10, tzinfo=UTC)),
    (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5))), "out_of_range"),
    (dt.date(1, 1, 1), dt.date(1, 1, 1)),
    (dt.time(1, 2, 3, 4), dt.time(1, 2, 3, 4)),
    (dt.time(1, tzinfo=UTC), "wrong_dtype"),
    (dt.timedelta(days=-1, microseconds=1), dt.timedelta(days=-1, microseconds=1)),
    (dt.timedelta.max, "out_of_range"),
    (b"\0\xff", b"\0\xff"),
    (bytearray(b"x"), b"x"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
    (pydantic.AnyUrl("https://example.org/x"), "https://example.org/x"),
    (PurePosixPath("a/b"), "a/b"),
    (Colour.RED, "red"),
    (Number.ONE, 1),
    ((1, 2), [1, 2]),
    (np.int64(5), 5),
    (np.float32(0.5), 0.5),
    (np.array([1, 2]), [1, 2]),
    (np.datetime64("2024-01-05"), dt.date(2024, 1, 5)),
    (np.datetime64("2024-01-05T00:00:00.000000001"), "wrong_dtype"),
    (pd.Timestamp(NOON), NOON),
    (pd.Timestamp(1), "wrong_dtype"),
    (pd.NaT, None),
    (Fields(1, ["x"]), {"n": 1, "tags": ["x"]}),
    ({}, {}),
    ({1: 2}, "invalid_key"),
    ({"a\0": 2}, "invalid_key"),
    ("a\0", "nul_character"),
    ("\ud800", "not_utf8"),
    ({1, 2}, "wrong_dtype"),
    (object(), "wrong_dtype"),
]  # fmt: skip


@pytest.mark.parametrize(
    "number", range(len(VALUES)), ids=[f"{type(value).__name__}{n}" for n, (value, _) in enumerate(VALUES)]
)
def test_values(store: ef.EntityStore, number: int) -> None:
    """A value is converted exactly, or fails its row; the row beside it is stored."""
    value, expected = VALUES[number]
    result = store.upsert([note("a", v=value), note("b", v=None)])
    assert result.outcomes["status"].to_list()[1] == "created"
    if result.failed.height:
        assert result.failed["rule"].to_list() == [expected]
        assert result.rejected[0]["value"]["metadata"]["v"] is value
    elif expected is None and value is not pd.NaT:
        assert np.isnan(store.read("note")["v"][0])
    else:
        assert store.read("note")["v"].to_list() == [expected, None]
        assert store.upsert(iter([note("a", v=value)])).counts["unchanged"] == 1


def nested(depth: int) -> Any:
    return {"x": nested(depth - 1)} if depth else 1


def test_values_without_end(store: ef.EntityStore) -> None:
    """Values that contain themselves, or are nested deeper than 64 levels, fail their row."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    result = store.upsert([note("a", v=loop), note("b", v={"y": 1}), note("c", v=nested(70))])
    assert result.failed.select("row", "rule").rows() == [(0, "too_deep"), (2, "too_deep")]
    assert "metadata.v.x.x" in result.failed["error"][1]


@pytest.mark.parametrize(
    ("values", "expected", "rows"),
    [
        ([1, 2.5, "x"], pl.Float64(), [2]),
        (["x", 1], pl.String(), [1]),
        ([1, True, False], pl.Boolean(), [0]),
        ([None, 1, None], pl.Int64(), []),
        ([2.5, Decimal("1.5"), Decimal("2"), 3], pl.Decimal(38, 1), [0]),
        ([Decimal("1.25"), Decimal("9e36"), Decimal("0.5")], pl.Decimal(38, 2), [1]),
        ([NOON, NOON.date(), NOON.date()], pl.Date(), [0]),
        ([NOON, NOON.replace(tzinfo=UTC), NOON], pl.Datetime("us"), [1]),
        ([[1], [2.5, None], [], ["x"]], pl.List(pl.Float64()), [3]),
        ([{"a": 1}, {"b": []}, {"b": ["x"]}], pl.Struct({"a": pl.Int64(), "b": pl.List(pl.String())}), []),
        ([{"a": 1}, [1], {"a": 2}], pl.Struct({"a": pl.Int64()}), [1]),
    ],
)
def test_the_dtype_of_most_values(values: list[Any], expected: pl.DataType, rows: list[int]) -> None:
    """Of equally many, that of the first; whole numbers join fractions, and None fits everything."""
    conversion = Conversion()
    column = conversion.column(Path("v"), values, range(len(values)))
    assert column.dtype == column.series("v").dtype == expected
    assert sorted(conversion.problems) == rows


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
    "str": TEXT,
    "bytes": st.binary(max_size=4),
    "datetime": st.datetimes(),
    "instant": st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(UTC)),
    "duration": st.timedeltas(dt.timedelta(-(10**6)), dt.timedelta(10**6)),
    "decimal": st.decimals(-(10**9), 10**9, places=3),
}
KINDS = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: st.tuples(inner) | st.dictionaries(st.sampled_from(["", "a", "B", "é", "id"]), inner, max_size=3),
    max_leaves=5,
)


def values_of(kind: Any, all_keys: bool) -> st.SearchStrategy[Any]:
    """Values of one kind: of a leaf, lists (a tuple of the kind of the items), or dicts, in which keys may be missing."""
    if isinstance(kind, str):
        return LEAVES[kind] | st.none()
    if isinstance(kind, tuple):
        return st.lists(values_of(kind[0], all_keys), max_size=3)
    inner = {name: values_of(each, all_keys) for name, each in kind.items()}
    return st.fixed_dictionaries(inner) if all_keys else st.fixed_dictionaries({}, optional=inner)


def filled(value: Any, kind: Any) -> Any:
    """The value with None for missing keys."""
    if isinstance(kind, tuple) and value is not None:
        return [filled(item, kind[0]) for item in value]
    if isinstance(kind, dict) and value is not None:
        return {name: filled(value.get(name), each) for name, each in kind.items()}
    return value


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None, database=None)
@given(st.data())
def test_nested_values(data: st.DataObject) -> None:
    """All are kept, at every depth; dicts with all keys have the JSON that a frame has."""
    kind = data.draw(KINDS)
    all_keys = data.draw(st.booleans())
    values = data.draw(st.lists(values_of(kind, all_keys), min_size=1, max_size=4))
    conversion = Conversion()
    column = conversion.column(Path("v"), values, range(len(values)))
    assert not conversion.problems
    series = column.series("v")
    assert series.dtype == column.dtype

    def kept(found: Any, value: Any) -> bool:
        if isinstance(value, dict) and isinstance(found, dict):
            return all(kept(found.get(name), value.get(name)) for name in found.keys() | value.keys())
        if isinstance(value, list) and isinstance(found, list):
            return len(found) == len(value) and all(map(kept, found, value))
        return found == value or (value is not None and found is None and not any(value.values()))

    assert all(map(kept, series.to_list(), [filled(value, kind) for value in values]))
    if all_keys:
        whole = dtypes.encode(series.to_frame().to_struct()).to_list()
        assert [f'{{"v":{text}}}' for text in column.text()] == whole
    for text, value in zip(column.text(), values, strict=True):
        assert _keys(json.loads(text)) == _keys(value)


def _keys(value: Any) -> Any:
    """The keys of a value, at every depth."""
    if isinstance(value, dict):
        return {name: _keys(inner) for name, inner in value.items()}
    return [_keys(item) for item in value] if isinstance(value, list) else None


# Failures.


def test_rejected_by_the_database(store: ef.EntityStore, checked: None) -> None:
    """The objects of the rows that the database refuses are kept, too, beside those that validation refuses."""
    rows = [Note("note", str(n), "forbidden" if n % 1_000 == 7 else "fine") for n in range(9_000)]
    rows[8_500] = Note("note", "x" * 1_025, "fine")
    result = store.upsert(iter(rows), batch_size=1_000)
    assert [each["row"] for each in result.rejected] == [*range(7, 8_500, 1_000), 8_500]
    assert all(each["value"] is rows[each["row"]] for each in result.rejected)
    assert [each["row"] for each in store.upsert(rows).rejected] == [each["row"] for each in result.rejected]


@pytest.mark.parametrize("policy", ["rollback", "raise"])
def test_policies(store: ef.EntityStore, policy: str) -> None:
    """A value that does not fit is a failure like any other."""
    rows = [note(str(n), n="x" if n == 2_500 else n) for n in range(4_000)]
    if policy == "raise":
        with pytest.raises(ef.ValidationError, match=r"row 2500 \(note/2500\): metadata.n is 'x'"):
            store.upsert(iter(rows), batch_size=1_000, on_error="raise")
    else:
        result = store.upsert(iter(rows), batch_size=1_000, on_error="rollback")
        assert (result.counts["created"], result.counts["failed"]) == (3_000, 1_000)
    rejected = store.last_result.rejected
    assert {"row": 2_500, "value": rows[2_500]}.items() <= rejected[500].items()
    assert [each["row"] for each in rejected] == list(range(2_000, 3_000))


def test_plan(store: ef.EntityStore) -> None:
    """A row that cannot be converted is invalid, in the plan and when it is applied; missing keys are absent."""
    store.upsert([note("a", "x", n=1, m=1), note("b", "y", n=1)])
    rows = [{"entity_type": "note", "id": "a", "metadata": {"n": 2}}, note("b", n="x"), note("c", n=3)]
    plan = store.plan(iter(rows))
    assert plan.frame["action"].to_list() == ["update", "invalid", "create"]
    assert plan.frame["error"][1] == "metadata.n is 'x' (str), expected Int64"
    result = plan.apply()
    assert result.outcomes["status"].to_list() == ["updated", "failed", "created"]
    assert result.rejected == [{"row": 1, "value": rows[1], "rule": "wrong_dtype", "error": plan.frame["error"][1]}]
    assert metadata(store) == {"n": 2, "m": 1}


def test_objects_beyond_the_limit_are_in_a_file() -> None:
    """In order of their rows, whatever the order of the outcomes; what cannot be pickled stays in memory."""
    inputs = Inputs(keep=2)
    objects: list[dict[str, Any]] = [{"n": n} for n in range(10)]
    objects[7]["f"] = lambda: None
    inputs.add(objects[:6])
    inputs.add(objects[6:])
    for rows in ([8, 9, 5, 6], [0, 1, 2, 3, 4, 7]):
        status = ["created" if row == 3 else "failed" for row in rows]
        inputs.resolve(pl.DataFrame({"row": rows, "status": status}, schema_overrides={"row": pl.UInt32}))
    assert [inputs.of(row) for row in range(10)] == [None if n == 3 else objects[n] for n in range(10)]
    assert [row for row in range(10) if inputs.of(row) is objects[row]] == [7, 8, 9]


def test_rejected_is_a_sequence(store: ef.EntityStore) -> None:
    """It can be indexed, sliced and compared like a list; for frames it has no values."""
    rows = [note(None, content=str(n)) for n in range(5)]
    rejected = store.upsert(iter(rows)).rejected
    assert [each["value"] for each in rejected[1:3]] == rows[1:3]
    assert rejected[-1] == {"row": 4, "value": rows[4], "rule": "null_key", "error": "id is null"}
    assert rejected == list(rejected)
    assert repr(rejected).endswith(", ... 2 more]")
    with pytest.raises(IndexError):
        rejected[5]
    frame = pl.DataFrame({"entity_type": "note", "id": [None, "a"]})
    assert store.upsert(frame).rejected[0]["value"] is None
    assert store.upsert(iter([ROWS[0]])).rejected == []


def test_mirror(store: ef.EntityStore) -> None:
    """Missing keys are absent; an object with a known key is not deleted, whatever else is wrong with it."""
    store.upsert([note(id, id, n=1, m=1) for id in "abc"])
    rows = [{"entity_type": "note", "id": "a", "metadata": {"n": 2}}, note("b", n="x")]
    result = store.mirror(iter(rows), max_delete=1)
    assert result.outcomes.select("id", "status").rows() == [("a", "updated"), ("b", "failed"), ("c", "deleted")]
    assert [each["value"] for each in result.rejected] == rows[1:]
    assert metadata(store) == {"n": 2, "m": 1}
    unknown = store.mirror([ROWS[0], note(5)], max_delete=1)
    assert unknown.outcomes["status"].to_list() == ["updated", "failed", "cancelled"]


def test_fields_that_hold_any_json(store: ef.EntityStore) -> None:
    """A field that JSON text has given no dtype takes any JSON; other values fail their row."""
    store.upsert_entity("note", "a", metadata={"v": {"x": 1}, "n": 1})
    values = ["text", {"z": 1.0, "b": [Colour.RED]}, None, NOON, {1: 2}]
    rows = [note(id, v=v, n=2) for id, v in zip("abcde", values, strict=True)]
    result = store.upsert(iter(rows))
    assert result.failed.select("id", "rule").rows() == [("d", "invalid_json"), ("e", "invalid_json")]
    assert [metadata(store, id)["v"] for id in "abc"] == ["text", {"b": ["red"], "z": 1}, None]
    assert store.read("note")["v"].to_list() == ['"text"', '{"b":["red"],"z":1}', None]
    assert store.upsert(iter(rows)).counts["unchanged"] == 3
    assert store.verify().is_empty()


# Tables.


@pytest.fixture
def table(store: ef.EntityStore, sql: Callable[..., Any], engine: str) -> ef.Table:
    """A table with defaults, and a column of JSON."""
    types = ("jsonb", "numeric(10,2)") if engine == "postgresql" else ("json", "decimal(10,2)")
    sql(
        f"CREATE TABLE people (id bigint PRIMARY KEY, name text DEFAULT 'nobody', born date, doc {types[0]}, score {types[1]})"
    )
    return store.table("people")


def rows_of(table: ef.Table) -> list[tuple[Any, ...]]:
    """The rows of the table, with JSON as values."""
    return [(*row[:3], None if row[3] is None else json.loads(row[3]), *row[4:]) for row in table.read().rows()]


@pytest.mark.parametrize("form", [list, iter])
def test_rows_of_a_table(table: ef.Table, form: Callable[[Any], Any]) -> None:
    """A missing key is a default in a new row, and keeps the value of a stored one; JSON columns take any JSON."""
    rows = [
        {"id": 1, "name": "Ada", "born": "1815-12-10", "doc": {"a": 1, "b": [1, "x"]}, "score": 1.5},
        {"id": 2, "doc": [1, {"c": None}]},
        {"id": 3, "name": None},
    ]
    assert table.upsert(form(rows)).counts["created"] == 3
    born, score = dt.date(1815, 12, 10), Decimal("1.50")
    first = (1, "Ada", born, {"a": 1, "b": [1, "x"]}, score)
    assert rows_of(table) == [first, (2, "nobody", None, [1, {"c": None}], None), (3, None, None, None, None)]
    assert table.upsert(form(rows)).counts["unchanged"] == 3
    changes = [
        {"id": 1, "score": 2},
        {"id": 2, "doc": None},
        {"id": 3, "name": "Cid"},
        {"id": 4, "name": None, "score": 4},
    ]
    plan = table.plan(form(changes))
    assert plan.frame["action"].to_list() == ["update"] * 3 + ["create"]
    assert [[each["field"] for each in changed] for changed in plan.frame["changes"][:3]] == [
        ["score"],
        ["doc"],
        ["name"],
    ]
    result = plan.apply() if form is list else table.upsert(form(changes))
    assert result.counts == result.counts | {"updated": 3, "created": 1}
    assert rows_of(table) == [
        (*first[:4], Decimal("2.00")),
        (2, "nobody", None, None, None),
        (3, "Cid", None, None, None),
        (4, None, None, None, Decimal("4.00")),
    ]
    kept = table.upsert(form([{"id": 1, "name": None, "doc": None}, {"id": 5, "name": None}]), nulls="keep")
    assert kept.outcomes["status"].to_list() == ["unchanged", "created"]
    assert rows_of(table)[4][1] == "nobody"


def test_odd_rows_of_a_table(table: ef.Table, monkeypatch) -> None:
    """They fail by themselves, also in a page of their own; keys may be given as dicts in every call."""
    monkeypatch.setattr(records, "PAGE_ROWS", 4)
    rows = [
        *({"id": n, "born": dt.date(2000, 1, n), "score": n} for n in (1, 2, 3)),
        {"id": "x"},
        {"id": 4, "born": "2000-01-01"},
        {"id": 5, "born": None, "nam": "a typo"},
        {"id": 6, "doc": NOON},
        {"name": "no key"},
        {"id": 7, "score": 1.005},
        5,
    ]
    result = table.upsert(iter(rows))
    assert result.counts["created"] == 3
    assert [(each["value"], each["rule"]) for each in result.rejected] == [
        (rows[3], "wrong_dtype"),
        (rows[4], "wrong_dtype"),
        (rows[5], "unknown_column"),
        (rows[6], "invalid_json"),
        (rows[7], "null_key"),
        (rows[8], "loses_digits"),
        (rows[9], "not_a_record"),
    ]
    assert table.plan(rows).counts["invalid"] == 7
    keys = [{"id": 1}, {"id": 9}]
    assert table.exists(keys)["exists"].to_list() == table.exists([1, 9])["exists"].to_list() == [True, False]
    assert table.missing(iter(keys)).rows() == [(9,)]
    assert table.get(keys)["found"].to_list() == [True, False]
    mirrored = table.mirror([{"id": 1}, {"id": 2, "score": "many"}], max_delete=1)
    assert mirrored.outcomes.select("id", "status").rows() == [(1, "unchanged"), (2, "failed"), (3, "deleted")]
    assert table.delete(keys).outcomes["status"].to_list() == ["deleted", "missing"]


# Streams.


@dataclasses.dataclass(eq=False)
class Counted:
    entity_type: str
    id: str | None


@pytest.mark.slow
def test_objects_are_held_only_until_their_outcome_is_known(store: ef.EntityStore) -> None:
    """In a stream, those of a few batches are in memory at a time; afterwards those of failed rows."""
    alive: weakref.WeakSet[Counted] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[Counted]:
        nonlocal most
        for n in range(60_000):
            item = Counted("note", None if n % 10_000 == 0 else str(n))
            alive.add(item)
            most = max(most, len(alive)) if n % 500 == 0 else most
            yield item

    result = store.upsert(source(), embed=False)
    assert result.counts["created"] == 59_994
    assert {each["value"] for each in result.rejected} == set(alive)
    assert most < 30_000


def test_a_dict_that_is_filled_again_and_again(store: ef.EntityStore) -> None:
    """Each row is what it was when it was yielded."""

    def source() -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {"entity_type": "note"}
        for n in range(3):
            row["id"] = str(n) if n else None
            yield row

    result = store.upsert(source())
    assert result.outcomes["id"].to_list() == [None, "1", "2"]
    assert result.rejected[0]["value"] == {"entity_type": "note", "id": None}


def test_objects_that_cannot_be_read(store: ef.EntityStore) -> None:
    """Only their rows fail."""

    class Broken(pydantic.BaseModel):
        def model_dump(self, **options: Any) -> dict[str, Any]:
            raise RuntimeError("no fields today")

    items = [ROWS[0], None, Broken(), ["a"], ROWS[1]]
    result = store.upsert(iter(items))
    assert result.outcomes["status"].to_list() == ["created", "failed", "failed", "failed", "created"]
    assert result.failed["rule"].to_list() == ["not_a_record"] * 3
    assert result.failed["error"].to_list() == [
        "expected a dict, dataclass or model, got NoneType",
        "the fields of the Broken cannot be read: no fields today",
        "expected a dict, dataclass or model, got str",
    ]


def test_a_source_that_raises(store: ef.EntityStore) -> None:
    """The rows before that are stored."""

    def source() -> Iterator[dict[str, Any]]:
        yield from (note(str(n)) for n in range(1_500))
        raise OSError("the service is down")

    with pytest.raises(OSError, match="the service is down"):
        store.upsert(source(), batch_size=1_000)
    assert store.last_result.counts["created"] == store.stats()["entities"].sum() == 1_500


def test_ctrl_c_between_pages(store: ef.EntityStore) -> None:
    """Outcomes and objects of what was written before are in the last result."""

    def pages() -> Iterator[list[dict[str, Any]]]:
        for start in range(0, 10_000, 500):
            if start == 8_000:
                press()
            yield [note(str(n), n="x" if n == 10 else n) for n in range(start, start + 500)]

    with pytest.raises(KeyboardInterrupt):
        store.upsert(pages(), batch_size=1_000, progress=False)
    result = store.last_result
    assert result.counts["created"] == store.stats()["entities"].sum() > 0
    assert [each["value"]["id"] for each in result.rejected] == ["10"]
    assert store.upsert([note("10", n=10)]).counts["created"] == 1


def test_pages_are_bounded_by_text(monkeypatch) -> None:
    """Many large objects are not gathered into one page."""
    monkeypatch.setattr(records, "PAGE_CHARACTERS", 10_000)
    rows = ({"id": "a", "content": "x" * 900, "metadata": {"y": "y" * 1_600}} for _ in range(10))
    assert [frame.height for frame in sources.iterate(rows)] == [4, 4, 2]
