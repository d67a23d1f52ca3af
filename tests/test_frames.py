"""Frames that are not entity frames are refused as a whole, before any write, and the error names the columns."""

from __future__ import annotations

import datetime as dt
import re

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import entityframes as ef
from entityframes.frames.schema import in_key_order

KEYS = {"entity_type": ["t"], "id": ["a"]}


@pytest.fixture
def refused(store: ef.EntityStore):
    """Asserts that a frame is refused with a message, and that nothing of it was stored."""

    def check(frame, message: str) -> None:
        with pytest.raises(ef.SchemaError, match=message):
            store.upsert(frame)
        assert store.stats().height == 0

    return check


def test_no_columns(refused) -> None:
    """An empty frame without columns."""
    refused(pl.DataFrame(), "'entity_type', 'id'.*no columns")


@pytest.mark.parametrize("column", ["entity_type", "id", "content"])
def test_missing_and_wrong_case_columns(refused, column: str) -> None:
    """The message lists missing and existing columns; content may be absent, so `Content` is an unknown column."""
    frame = pl.DataFrame({**KEYS, "content": ["x"]}).rename({column: column.upper()})
    missing = f"'{column}'.*missing.*'{column.upper()}'"
    refused(frame, "unknown columns 'CONTENT'.*case-sensitive" if column == "content" else missing)


@pytest.mark.parametrize("kind", ["table", "pandas", "reader", "iterator"])
def test_duplicate_columns(refused, kind: str) -> None:
    """Arrow and pandas allow duplicate column names, which are ambiguous."""
    table = pa.Table.from_arrays([pa.array(["t"])] * 4, names=["entity_type", "id", "content", "content"])
    forms = {"table": table, "pandas": table.to_pandas(), "reader": table.to_reader(), "iterator": iter([table])}
    refused(forms[kind], "duplicate column names: .*'content'")


def test_duplicate_metadata_columns(refused) -> None:
    """The same in a struct, and in a frame that is passed to `entities`."""
    struct = pa.StructArray.from_arrays([pa.array([1])] * 2, ["same", "same"])
    columns = [pa.array(["t"])] * 3
    refused(
        pa.Table.from_arrays([*columns, struct], names=["entity_type", "id", "content", "metadata"]),
        "'same'",
    )
    with pytest.raises(ef.SchemaError, match="duplicate column names: 'v'"):
        ef.entities(pa.Table.from_arrays(columns, names=["k", "v", "v"]), "t", id="k")


def test_no_rows(store: ef.EntityStore) -> None:
    """In any form, with or without dtypes: nothing happens, and the outcomes have their columns."""
    schema = {"entity_type": pl.String, "id": pl.String, "content": pl.String}
    none = pl.DataFrame(schema=schema)
    forms = (none, none.lazy(), iter([]), iter([none]), none.to_arrow(), none.to_pandas())
    for form in forms:
        result = store.upsert(form)
        assert (result.ok, result.batches, result.outcomes.height) == (True, 0, 0)
        assert (
            result.outcomes.columns
            == store.upsert(pl.DataFrame([("t", "a", "x")], schema, orient="row")).outcomes.columns
        )
    assert store.stats()["entities"].to_list() == [1]


@pytest.mark.parametrize("column", ["entity_type", "id", "content"])
@pytest.mark.parametrize(
    "values",
    [
        pl.Series([1]),
        pl.Series([1.5]),
        pl.Series([2**63], dtype=pl.UInt64),
        pl.Series([1], dtype=pl.Int128),
        pl.Series([{"a": 1}]),
        pl.Series([["a"]]),
        pl.Series(["a"], dtype=pl.Categorical),
        pl.Series([object()], dtype=pl.Object),
        pl.Series([None], dtype=pl.Null),
    ],
    ids=lambda series: str(series.dtype),
)
def test_another_dtype_where_text_belongs(refused, column: str, values: pl.Series) -> None:
    """The message names the column and its dtype."""
    frame = pl.DataFrame({**KEYS, "content": ["x"]}).with_columns(values.alias(column))
    refused(frame, f"'{column}'")


@pytest.mark.parametrize("column", ["entity_type", "id", "content"])
def test_all_null_column(refused, column: str) -> None:
    """A column that is all null is an error in the source, not a frame of bad rows."""
    frame = pl.DataFrame({"entity_type": ["t"] * 2, "id": ["a", "b"], "content": ["x"] * 2})
    refused(frame.with_columns(pl.lit(None, pl.String).alias(column)), f"'{column}'.*only nulls")


@pytest.mark.parametrize("column", ["id", "content", "metadata"])
def test_a_duplicate_column_of_arrow(refused, column: str) -> None:
    """Arrow allows duplicate columns, which are ambiguous."""
    table = pa.table({**KEYS, "content": ["x"], "metadata": ["{}"]})
    refused(table.append_column(column, pa.array(["y"])), column)


def test_unknown_column(refused) -> None:
    """A column that would be lost is refused, and the message explains how to keep it."""
    refused(pl.DataFrame({**KEYS, "content": ["x"], "title": ["y"]}), "'title'.*metadata")


@pytest.mark.parametrize(
    "metadata", [pl.Series([1]), pl.Series([["{}"]]), pl.Series([True])], ids=lambda s: str(s.dtype)
)
def test_metadata_of_another_dtype(refused, metadata: pl.Series) -> None:
    """Metadata is a Struct or JSON text."""
    refused(pl.DataFrame({**KEYS, "content": ["x"], "metadata": metadata}), "metadata")


def test_metadata_column_that_cannot_be_kept() -> None:
    """The message names column and dtype."""
    rows = pl.DataFrame({"k": ["a"], "thing": pl.Series([object()], dtype=pl.Object)})
    with pytest.raises(ef.SchemaError, match="'thing' is Object"):
        ef.entities(rows, "t", id="k")


def test_metadata_columns_of_odd_names(store: ef.EntityStore, refused) -> None:
    """A NUL in a name, also a nested one, is refused on both engines; a column with an empty name is kept."""
    for metadata in ({"n\0": 1}, {"a": {"n\0": 1}}, {"a": [{"n\0": 1}]}):
        refused(pl.DataFrame({**KEYS, "content": ["x"], "metadata": [metadata]}), "NUL")
    store.upsert(pl.DataFrame({**KEYS, "content": ["x"], "metadata": ['{"": 1, "b": 2}']}))
    store.upsert(pl.DataFrame({"entity_type": ["t"], "id": ["b"], "content": ["x"], "metadata": ['{"": "mixed"}']}))
    assert store.read("t").select("id", "", "b").rows() == [("a", "1", 2), ("b", '"mixed"', None)]


def test_conflicting_dtype_is_refused_and_more_columns_widen(store: ef.EntityStore) -> None:
    """A second frame may add columns; it may not change a dtype."""
    store.upsert(ef.entities(pl.DataFrame({"k": ["a"], "n": [1]}), "t", id="k"))
    with pytest.raises(ef.SchemaError, match="'n' is Int64 there and String here"):
        store.upsert(ef.entities(pl.DataFrame({"k": ["b"], "n": ["one"]}), "t", id="k"))
    assert store.stats()["entities"].to_list() == [1]
    store.upsert(ef.entities(pl.DataFrame({"k": ["b"], "n": [2], "day": [dt.date(2026, 1, 1)]}), "t", id="k"))
    assert store.read("t").select("id", "n", "day").rows() == [("a", 1, None), ("b", 2, dt.date(2026, 1, 1))]


def test_dtypes_of_several_types_at_once(store: ef.EntityStore) -> None:
    """Those of a new type are recorded, also next to a type that has them already."""
    rows = pl.DataFrame({"k": ["a"], "day": ["2026-01-01"]}).with_columns(pl.col("day").str.to_date())
    store.upsert(ef.entities(rows, "old", id="k"))
    store.upsert(pl.concat([ef.entities(rows, name, id="k") for name in ("old", "new")]))
    assert store.read("new").schema["day"] == store.read("old").schema["day"] == pl.Date


def test_a_field_that_has_the_name_of_a_column(store: ef.EntityStore) -> None:
    """What `read` returns is written back unchanged."""
    store.upsert_entity("note", "a", "text", {"content": "inner", "n": 1})
    found = store.read("note")
    assert {"metadata.content", "n"} < set(found.columns)
    frame = ef.entities(found, "note", id="id", content="content", metadata=["metadata.content", "n"])
    assert store.upsert(frame).counts["unchanged"] == 1


def test_key_order() -> None:
    """By type and then by id, in the order of their bytes, however many types there are."""
    for types in (["b"], ["b", "a"], ["b", "é", "a"]):
        frame = pl.DataFrame({"id": ["A", "a", "é", "\U0001f986"]}).join(
            pl.DataFrame({"entity_type": types}), how="cross"
        )
        keys = in_key_order(frame).select("entity_type", "id").rows()
        assert keys == sorted(keys, key=lambda key: [part.encode() for part in key])
    two = pl.DataFrame({"entity_type": ["b", "a"], "id": ["1", "2"]})
    assert in_key_order(two)["entity_type"].to_list() == ["a", "b"]


def test_a_type_without_entities_may_change_its_dtypes(store: ef.EntityStore) -> None:
    """Deleting the entities that were imported with a wrong dtype allows the right one."""
    store.upsert(ef.entities(pl.DataFrame({"k": ["a"], "n": [1]}), "t", id="k"))
    store.delete(ef.ids("t", ["a"]))
    store.upsert(ef.entities(pl.DataFrame({"k": ["a"], "n": ["one"]}), "t", id="k"))
    assert store.read("t")["n"].to_list() == ["one"]


@pytest.mark.parametrize("kind", ["polars", "lazy", "iterator", "pandas", "pyarrow", "reader", "relation", "list"])
def test_any_frame_in(store: ef.EntityStore, kind: str) -> None:
    """The same rows in every supported form give the same outcomes and the same entities."""
    frame = pl.DataFrame(
        {
            "entity_type": ["t"] * 3,
            "id": ["a", "b", "c"],
            "content": ["x", "y", "z"],
            "metadata": [{"n": n} for n in (1, 2, 3)],
        }
    )
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    connection = duckdb.connect()
    forms = {
        "polars": lambda: frame,
        "lazy": lambda: frame.lazy(),
        "iterator": lambda: iter([frame[:1], frame[1:]]),
        "list": lambda: [frame[:1], frame[1:].to_arrow()],
        "pandas": lambda: pd.DataFrame(
            {**frame.drop("metadata").to_dict(as_series=False), "metadata": frame["metadata"].to_list()}
        ),
        "pyarrow": lambda: table,
        "reader": lambda: pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=1)),
        "relation": lambda: connection.from_arrow(table),
    }
    result = store.upsert(forms[kind]())
    assert result.outcomes["status"].to_list() == ["created"] * 3
    assert result.outcomes["id"].to_list() == ["a", "b", "c"]
    assert store.read("t").select("id", "content", "n").rows() == [("a", "x", 1), ("b", "y", 2), ("c", "z", 3)]
    connection.close()


def test_a_filtered_pandas_frame_leaves_its_index_behind(store: ef.EntityStore) -> None:
    """The index that pandas adds is not metadata."""
    rows = pd.DataFrame({"k": ["a", "b"], "n": [1, 2]})
    store.upsert(ef.entities(rows[rows.n > 1], "t", id="k"))
    assert store.get_entity("t", "b")["metadata"] == {"n": 2}


def test_entities_keeps_all_columns_but_id_and_content() -> None:
    """All other columns are metadata, with their dtypes."""
    rows = pl.DataFrame({"code": [1, 2], "text": ["x", None], "size": [1.5, 2.5], "day": [dt.date(2026, 1, 1)] * 2})
    made = ef.entities(rows, "thing", id="code", content="text")
    assert made.schema == {
        "entity_type": pl.String,
        "id": pl.String,
        "content": pl.String,
        "metadata": pl.Struct({"size": pl.Float64, "day": pl.Date}),
    }
    assert made.drop("metadata").rows() == [("thing", "1", "x"), ("thing", "2", "")]


def test_entities_with_expressions_and_chosen_metadata() -> None:
    """A key can be built from several columns, and metadata can be selected."""
    rows = pl.DataFrame({"a": ["x"], "b": ["y"], "c": [1]})
    made = ef.entities(rows, "pair", id=pl.concat_str("a", "b", separator="/"), content=pl.col("b"), metadata=["c"])
    assert made.rows() == [("pair", "x/y", "y", {"c": 1})]
    assert ef.entities(rows, "pair", id="a", metadata=[]).columns == ["entity_type", "id"]


def test_entities_of_a_lazy_frame_stays_lazy() -> None:
    """Nothing is read until the store needs it."""
    assert isinstance(ef.entities(pl.LazyFrame({"a": ["x"]}), "t", id="a"), pl.LazyFrame)


def test_entities_refuses_unstable_ids() -> None:
    """A float has no unique text representation; a missing column is named."""
    with pytest.raises(ef.SchemaError, match="'f' is Float64"):
        ef.entities(pl.DataFrame({"f": [1.0]}), "t", id="f")
    with pytest.raises(ef.SchemaError, match="'g'.*missing.*'f'"):
        ef.entities(pl.DataFrame({"f": [1.0]}), "t", id="g")
    with pytest.raises(ef.SchemaError, match="content 'f' is Float64"):
        ef.entities(pl.DataFrame({"f": [1.0], "k": ["a"]}), "t", id="k", content="f")
    with pytest.raises(ef.SchemaError, match="expected a frame, got int"):
        ef.entities(1, "t", id="a")


@pytest.mark.parametrize(
    ("frame", "entity_type", "id", "message"),
    [
        (pd.DataFrame({"k": ["a"], "n": [1]}).set_index("k"), "t", "k", "'k', which are in the index of the frame"),
        (pd.DataFrame({"k": ["a"]}), "t", 0, "id must be a column name or an expression, got int"),
        (pd.DataFrame({"k": ["a"]}), 5, "k", "entity_type must be a string, got int"),
        (pd.DataFrame({"k": ["a"]}), pl.col("k"), "k", "a frame with the columns entity_type, id and content"),
        (pd.DataFrame({"k": ["a", "b"], "n": [1, 2**70]}), "t", "k", "column 'n' cannot be read"),
        (pd.DataFrame({"k": ["a", "b"], "n": [1, "x"]}), "t", "k", "column 'n' cannot be read"),
    ],
)
def test_unsupported_arguments_of_entities(frame: pd.DataFrame, entity_type: object, id: object, message: str) -> None:
    """It is reported in terms of the call's parameters, with the column."""
    with pytest.raises(ef.SchemaError, match=re.escape(message)):
        ef.entities(frame, entity_type, id=id)  # type: ignore[arg-type]


def test_a_series_is_not_a_frame(store: ef.EntityStore) -> None:
    """Nor is a fraction a number of rows."""
    with pytest.raises(ef.SchemaError, match="needs columns"):
        store.upsert(pl.Series(["a"]))
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer or None, got 1\.5"):
        store.upsert(pl.DataFrame(schema=["entity_type", "id", "content"]), batch_size=1.5)  # type: ignore[arg-type]


def test_ids() -> None:
    """Ids of one type as a frame; numbers become strings."""
    assert ef.ids("t", ["b", "a"]).rows() == [("t", "b"), ("t", "a")]
    assert ef.ids("t", (n for n in (1, 2))).rows() == [("t", "1"), ("t", "2")]
    assert ef.ids("t", pl.Series(["x"], dtype=pl.Categorical)).rows() == [("t", "x")]
    assert ef.ids("t", []).schema == {"entity_type": pl.String, "id": pl.String}
    with pytest.raises(ef.SchemaError, match="one string"):
        ef.ids("t", "abc")
    with pytest.raises(ef.SchemaError, match="Float64"):
        ef.ids("t", [1.5])


def test_a_stream_with_another_dtype_half_way_is_refused_there(store: ef.EntityStore) -> None:
    """Earlier batches are stored and reported; the error names the column."""
    one = ef.entities(pl.DataFrame({"k": ["a"], "n": [1]}), "t", id="k")
    two = ef.entities(pl.DataFrame({"k": ["b"], "n": ["x"]}), "t", id="k")
    with pytest.raises(ef.SchemaError, match="n"):
        store.upsert(iter([one, two]))
    assert store.last_result.counts["created"] == store.stats()["entities"].sum()
