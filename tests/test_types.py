"""Every dtype is restored exactly, and the JSON in between is canonical."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entityframes as ef
from entityframes.metadata import conformance, dtypes
from entityframes.metadata.canonical_json import canonical_json
from tests.examples import examples

INTS = [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.UInt128]
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -2.5,
    0.1,
    1e-5,
    1.5e-7,
    0.000012345,
    1e15,
    1e16,
    1e300,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
]


def _ends(dtype: type[pl.DataType]) -> list[int]:
    bits = int(dtype.__name__.removeprefix("U").removeprefix("Int"))
    return [0, 2**bits - 1] if dtype.__name__.startswith("U") else [-(2 ** (bits - 1)), 0, 2 ** (bits - 1) - 1]


def _physical(dtype: pl.DataType) -> pl.Series:
    """Both ends of the range of a 64-bit temporal dtype, and values in between."""
    return pl.Series([-(2**63) + 1, -1, 0, 1, 2**40 + 123, 2**63 - 1], dtype=pl.Int64).cast(dtype)


SERIES = {
    **{dtype.__name__: pl.Series(_ends(dtype), dtype=dtype) for dtype in INTS},
    "Float64": pl.Series(FLOATS),
    "Float32": pl.Series([0.1, 1e20, 3.4e38, 1e-45, math.nan, -math.inf, -0.0, 16777216.0, 1e-5], dtype=pl.Float32),
    "Float16": pl.Series([0.1, 65504.0, 6e-8, math.nan, -0.0], dtype=pl.Float16),
    "Decimal": pl.Series(
        [Decimal("12345678901234567890.12"), Decimal("-0.01"), Decimal("1.10")], dtype=pl.Decimal(38, 2)
    ),
    "Boolean": pl.Series([True, False]),
    "String": pl.Series(
        ["", "a", 'quote " back \\ slash', "\t\n\r\b\f\x01\x1f\x7f", "é € 🦆 \u2028", "NaN", "null", "1"]
    ),
    "Binary": pl.Series([b"", b"\x00\xff", b"text"]),
    "Date": pl.Series([dt.date(1, 1, 1), dt.date(2026, 2, 28), dt.date(9999, 12, 31)]),
    "Date at the ends": pl.Series([-(2**31) + 1, 2**31 - 1], dtype=pl.Int32).cast(pl.Date),
    "Time": pl.Series([0, 1, 86_399_999_999_999], dtype=pl.Int64).cast(pl.Time),
    **{f"Datetime {unit}": _physical(pl.Datetime(unit)) for unit in ("ms", "us", "ns")},
    **{f"Datetime {unit} UTC": _physical(pl.Datetime(unit, "UTC")) for unit in ("ms", "us", "ns")},
    "Datetime Berlin": pl.Series([dt.datetime(2026, 10, 25, 0, 30), dt.datetime(2026, 10, 25, 1, 30)])
    .dt.replace_time_zone("UTC")
    .dt.convert_time_zone("Europe/Berlin"),
    **{f"Duration {unit}": _physical(pl.Duration(unit)) for unit in ("ms", "us", "ns")},
    "Categorical": pl.Series(["b", "a", "b"], dtype=pl.Categorical),
    "Categorical with a name": pl.Series(["b", "a"], dtype=pl.Categorical(pl.Categories("colours"))),
    "Enum": pl.Series(["low", "high"], dtype=pl.Enum(["low", "mid", "high"])),
    "Null": pl.Series([None, None], dtype=pl.Null),
    "List": pl.Series([[1, None, 3], [], None, [2**62]]),
    "List of Float64": pl.Series([FLOATS, [], [None]]),
    "List of String": pl.Series([["a", None, 'x"y'], []]),
    "List of Datetime": pl.Series([[dt.datetime(2026, 1, 1, 1, 2, 3)], []], dtype=pl.List(pl.Datetime("ns", "UTC"))),
    "List of List": pl.Series([[[1], [], None], []], dtype=pl.List(pl.List(pl.Int16))),
    "List of Struct": pl.Series([[{"a": 1, "b": "x"}, None], []]),
    "Array": pl.Series([[1.5, 2.5], [None, -0.0]], dtype=pl.Array(pl.Float32, 2)),
    "Struct": pl.Series([{"z": 1, "a": [b"x"], "m": {"d": dt.date(2026, 1, 1)}}, {"z": None, "a": None, "m": None}]),
    "Struct or null": pl.Series([{"a": None}, None, {"a": 1}]),
}


@pytest.mark.parametrize("name", SERIES)
def test_encode_and_decode(name: str) -> None:
    """Values and dtype are the same, including nulls; the dtype can be serialized and parsed."""
    series = SERIES[name].alias("column")
    series = series.extend(pl.Series([None], dtype=series.dtype)) if series.dtype != pl.Null else series
    restored = dtypes.dtype_from_json(dtypes.dtype_to_json(series.dtype))
    assert restored == series.dtype
    text = dtypes.encode(pl.DataFrame([series]).to_struct("metadata"))
    assert all(isinstance(json.loads(item), dict) for item in text)
    back = dtypes.decode(text, {"column": restored})["column"]
    assert back.dtype == series.dtype
    assert _exactly(back, series), (back.to_list(), series.to_list())


def _exactly(left: pl.Series, right: pl.Series) -> bool:
    """Equal, with -0.0 and 0.0 distinguished."""
    return (
        left.equals(right, null_equal=True) and repr(left.to_list()) == repr(right.to_list())
        if _plain(left)
        else left.equals(right)
    )


def _plain(series: pl.Series) -> bool:
    return series.dtype.is_float() or series.dtype == pl.List(pl.Float64)


@pytest.mark.parametrize("name", SERIES)
def test_through_the_store(store: ef.EntityStore, connect, name: str) -> None:
    """`read` returns the same column on another connection, and writing it again changes nothing."""
    series = SERIES[name]
    frame = pl.DataFrame({"k": [f"{n:02}" for n in range(len(series))]}).with_columns(series.alias("column"))
    rows = ef.entities(frame, "t", id="k")
    assert store.upsert(rows).ok
    assert store.upsert(rows).counts["unchanged"] == len(series)
    assert store.upsert(store.get(rows)).counts["unchanged"] == len(series)
    store.close()
    back = connect().read("t")["column"]
    assert back.dtype == series.dtype
    assert _exactly(back, series.alias("column"))


def test_widening_with_a_null_column(store: ef.EntityStore) -> None:
    """A column of nulls takes the later dtype."""
    first = pl.DataFrame({"k": ["a"], "n": pl.Series([None], dtype=pl.Null)})
    store.upsert(ef.entities(first, "t", id="k"))
    store.upsert(ef.entities(pl.DataFrame({"k": ["b"], "n": [1]}), "t", id="k"))
    store.upsert(ef.entities(first, "t", id="k"))
    assert store.read("t")["n"].to_list() == [None, 1]
    assert store.read("t").schema["n"] == pl.Int64


@pytest.mark.parametrize(
    "dtype", [pl.Object(), pl.List(pl.Object()), pl.Struct({"a": pl.Struct({"b": pl.Object()})})], ids=str
)
def test_what_cannot_be_kept_is_named(dtype: pl.DataType) -> None:
    """The path to the column and its dtype."""
    with pytest.raises(ef.SchemaError, match="'column[^']*' is Object"):
        dtypes.check_dtype("column", dtype)


NONCONFORMING = [
    (pl.Int8(), [300, "1", 1.5, True, [1]], [1, -128]),
    (pl.UInt64(), [-1, 2**64, "x"], [2**64 - 1, str(2**64 - 1)]),
    (pl.Float64(), ["one", True], [1, 1.5, "NaN", "-Infinity"]),
    (pl.Boolean(), [1, "true"], [True, False]),
    (pl.String(), [1, True, ["a"]], ["", "1"]),
    (pl.Date(), ["2026-13-01", "yesterday", 1.5], ["2026-12-01", 5_000_000]),
    (
        pl.Datetime("us", "UTC"),
        ["2026-01-01", "2026-01-01T25:00:00"],
        ["2026-01-01T10:00:00.5Z", "2026-01-01T10:00:00"],
    ),
    (pl.Time(), ["25:00:00", 5], ["23:59:59.5"]),
    (pl.Enum(["a", "b"]), ["c", 1], ["a"]),
    (pl.Binary(), ["%", 1], ["AA=="]),
    (pl.Decimal(5, 2), ["1.234", "12345", 1], ["123.45", "-1"]),
    (pl.Array(pl.Int64(), 2), [[1], [1, 2, 3], 1], [[1, 2], [None, 1]]),
    (pl.List(pl.Int64()), [["a"], 1], [[], [1]]),
    (pl.Struct({"a": pl.Int64()}), [{"a": "x"}, {"b": 1}, 1], [{"a": 1}, {}]),
]


@pytest.mark.parametrize(("dtype", "bad", "good"), NONCONFORMING, ids=[str(case[0]) for case in NONCONFORMING])
def test_nonconforming(dtype: pl.DataType, bad: list, good: list) -> None:
    """JSON that would not be restored with the declared dtype is found; the rest can be decoded."""
    fields = {"f": dtype}
    wrong = conformance.nonconforming(pl.Series([json.dumps({"f": value}) for value in bad]), fields)
    assert wrong["row"].to_list() == list(range(len(bad)))
    fine = pl.Series([json.dumps({"f": value}) for value in [*good, None]] + ["{}"])
    assert conformance.nonconforming(fine, fields).height == 0
    assert dtypes.decode(fine, fields)["f"].dtype == dtype


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ue000")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ue000"), max_size=5), JSON, max_size=4
    )
)
def test_canonical_json_is_equal_for_equal_values(value: dict) -> None:
    """All notations of an object have the same canonical text, which is equivalent and its own canonical form."""
    shuffled = json.dumps(dict(reversed(value.items())), indent=1)
    (one, two), errors, _ = canonical_json([json.dumps(value, ensure_ascii=False), shuffled])
    if errors[0] is not None:
        assert "NUL character" in errors[0]
        return
    assert one == two
    assert json.loads(one) == value
    assert canonical_json([one])[0] == [one]


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "b": st.none() | st.floats(),
                "a": st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ue000")),
                "é": st.none() | st.integers(-(2**63), 2**63 - 1),
                "l": st.none() | st.lists(st.none() | st.floats(width=32), max_size=3),
            }
        ),
        min_size=1,
        max_size=5,
    )
)
def test_typed_and_textual_metadata_agree(rows: list[dict]) -> None:
    """The JSON of typed columns is canonical, so equal values are equal whatever their source."""
    schema = {"b": pl.Float64, "a": pl.String, "é": pl.Int64, "l": pl.List(pl.Float32)}
    text = dtypes.encode(pl.DataFrame(rows, schema).to_struct("m")).to_list()
    canonical, errors, _ = canonical_json(text)
    assert errors == [None] * len(rows)
    assert canonical == text


def test_numbers_that_no_dtype_holds(store: ef.EntityStore) -> None:
    """They are stored with all digits; their fields are not taken for texts."""
    texts = ['{"few":0.123456789012345671}', '{"long":12345678901234567890}', '{"few":"word"}']
    for id, text in zip("abc", texts, strict=True):
        store.upsert_entity("note", id, metadata=text)
    assert store.get(ef.ids("note", ["a", "b", "c"]))["metadata"].to_list() == texts
    assert store.verify().is_empty()
    assert store.read("note")["few"].to_list()[2] == '"word"'


def test_fields_with_any_names() -> None:
    """Names are sorted and escaped as in canonical JSON, and null structs among them stay empty objects."""
    names = ["a", 'b"', "c\\", "d\n", "e\u2028", "f.g", "é", "\x01", "", "{", "}"]
    columns = {name: pl.Series([f"{name}}}", None, '{"']) for name in names}
    columns |= {"b": pl.Series([1.0, 1e-5, None]), "d": pl.Series([1, None, 3]), "g": pl.Series([True, None, False])}
    text = dtypes.encode(
        pl.DataFrame(columns).to_struct("m").extend(pl.Series([None], dtype=pl.Struct(_schema(columns))))
    )
    canonical, errors, _ = canonical_json(text.to_list())
    assert errors == [None] * 4
    assert canonical == text.to_list()
    assert json.loads(text[0]) == {name: values[0] for name, values in columns.items()}
    assert text[3] == "{}"


def _schema(columns: dict[str, pl.Series]) -> dict[str, pl.DataType]:
    return {name: values.dtype for name, values in columns.items()}
