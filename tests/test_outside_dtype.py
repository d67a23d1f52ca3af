"""Values outside the range of their dtype, which Arrow allows: their rows fail, and the type stays readable."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import entityframes as ef

#: 39 digits, in a dtype of 38; and 4 in one of 3.
FAR = {(38, 0): 10**38, (3, 1): -1_000, (10, 10): 10**10}
IDS = pa.array(["a", "b", "c"])


def decimals(dtype: tuple[int, int], *values: int) -> pa.Array:
    """Decimals with these digits, whatever their precision."""
    raw = b"".join(value.to_bytes(16, "little", signed=True) for value in values)
    return pa.Array.from_buffers(pa.decimal128(*dtype), len(values), [None, pa.py_buffer(raw)])


def listed(items: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(items) + 1), pa.int32()), items)


#: The nesting of the value.
DEPTHS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "plain": lambda items: items,
    "list": listed,
    "struct": lambda items: pa.StructArray.from_arrays([items, IDS], ["x", "y"]),
    "fixed size list": lambda items: pa.FixedSizeListArray.from_arrays(items, 1),
    "list of structs of lists": lambda items: listed(pa.StructArray.from_arrays([listed(items)], ["x"])),
}
FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "PyArrow": lambda table: table,
    "Polars": pl.from_arrow,
    "stream": pl.from_arrow,
    "reader": lambda table: table.to_reader(),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_decimals_over_their_precision(store: ef.EntityStore, form: str) -> None:
    """The row fails with field and dtype, the others are stored, and stored values can be read; at every depth."""
    for number, (dtype, nest) in enumerate(itertools.product(FAR, DEPTHS.values())):
        column = nest(decimals(dtype, 1, FAR[dtype], 10 ** dtype[0] - 1))
        given, name = FORMS[form](pa.table({"id": IDS, "n": column})), f"t{number}"
        frame = ef.entities(given, name, id="id")
        result = store.upsert(frame.lazy() if form == "stream" else frame, progress=False)
        assert result.counts["created"] == 2
        assert "metadata field 'n' contains a value outside its dtype" in result.failed["error"].item()
        assert result.failed.select("id", "error_kind").rows() == [("b", "validation")]
        read = store.read(name)
        assert read["id"].to_list() == ["a", "c"]
        assert read["n"].equals(pl.from_arrow(pa.table({"n": column}))["n"].gather([0, 2]))
    assert store.verify().is_empty()


def test_a_hugeint_of_39_digits(store: ef.EntityStore) -> None:
    """As DuckDB returns it."""
    rows = duckdb.sql(
        "SELECT * FROM (VALUES ('a', 1::HUGEINT), ('b', 170141183460469231731687303715884105727)) t(id, n)"
    )
    result = store.upsert(ef.entities(rows, "t", id="id"), progress=False)
    assert result.failed["id"].to_list() == ["b"]
    assert store.read("t")["n"].to_list() == [Decimal(1)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_times_out_of_range(store: ef.EntityStore, depth: str) -> None:
    """Polars turns them into nulls: the frame is refused, so that no value silently becomes null."""
    raw = np.array([0, 86_400_000_000, 5], np.int64).tobytes()
    times = pa.Array.from_buffers(pa.time64("us"), 3, [None, pa.py_buffer(raw)])
    with pytest.raises(ef.SchemaError, match=r"column 'at' contains times"):
        store.upsert(ef.entities(pa.table({"id": IDS, "at": DEPTHS[depth](times)}), "t", id="id"), progress=False)
    fine = pa.table({"id": IDS, "at": DEPTHS[depth](pa.array([0, None, 5], pa.time64("us")))})
    assert store.upsert(ef.entities(fine, "t", id="id"), progress=False).ok


def test_a_day_of_24_hours_in_a_relation(store: ef.EntityStore) -> None:
    """A relation is read again if a time became null."""
    with pytest.raises(ef.SchemaError, match=r"column 'at' contains times"):
        ef.entities(duckdb.sql("SELECT 'a' AS id, TIME '24:00:00' AS at"), "t", id="id")
    fine = ef.entities(duckdb.sql("SELECT 'a' AS id, NULL::TIME AS at, TIME '23:59:59' AS o"), "t", id="id")
    assert store.upsert(fine, progress=False).ok


def _broken() -> dict[str, pa.Array]:
    indices = pa.py_buffer(np.array([0, 7, 0], np.int32).tobytes())
    kind = pa.dictionary(pa.int32(), pa.string())
    return {
        "dictionary": pa.DictionaryArray.from_buffers(kind, 3, [None, indices], pa.array(["x"])),
        "negative": pa.DictionaryArray.from_arrays(pa.array([0, -1, 0], pa.int32()), pa.array(["x"]), safe=False),
    }


@pytest.mark.parametrize("name", ["dictionary", "negative"])
@pytest.mark.parametrize("depth", ["plain", "list", "struct"])
def test_arrow_that_contradicts_itself(name: str, depth: str) -> None:
    """Indices outside of their dictionary: a SchemaError and no panic."""
    with pytest.raises(ef.SchemaError, match="not valid Arrow data"):
        ef.entities(pa.table({"id": IDS, "c": DEPTHS[depth](_broken()[name])}), "t", id="id")


def test_invalid_text_at_every_depth(store: ef.EntityStore) -> None:
    """Bytes that are not UTF-8 in lists and structs fail their row."""
    offsets, bytes_ = pa.py_buffer(np.array([0, 2, 4, 6], np.int32).tobytes()), pa.py_buffer(b"ok\xff\xfefi")
    for number, (depth, nest) in enumerate(DEPTHS.items()):
        texts = nest(pa.Array.from_buffers(pa.string(), 3, [None, offsets, bytes_]))
        result = store.upsert(ef.entities(pa.table({"id": IDS, "c": texts}), f"t{number}", id="id"), progress=False)
        assert result.failed["id"].to_list() == ["b"], depth
        assert store.read(f"t{number}")["id"].to_list() == ["a", "c"]
