"""Typed metadata: the lossless conversion of dtypes and values to JSON and back, and the merging of dtypes.

Numbers, booleans and strings are written as such. Values without a JSON equivalent are written as strings: 64-bit
unsigned and 128-bit integers and decimals (their digits), NaN, infinities and -0.0, binary (base64), dates and times
(ISO 8601, in UTC if the dtype has a time zone). Durations, and dates outside the years 1 to 9999, are written as the
integer that Polars stores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import polars as pl

from entityframes.errors import SchemaError

_SIMPLE: dict[str, pl.DataType] = {
    dtype.__name__: dtype()
    for dtype in (
        pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.UInt128,
        pl.Float16, pl.Float32, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Null,
    )
}  # fmt: skip

#: Integers that JSON readers may not parse exactly; they are written as strings.
WIDE = (pl.UInt64, pl.Int128, pl.UInt128)

#: Dtypes whose values Polars writes as canonical JSON.
_PLAIN = (
    pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null,
    pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32,
)  # fmt: skip

#: The first day of the year 1 and the last day of the year 9999, in days since the epoch.
_DAYS = (-719_162, 2_932_896)
_PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_FRACTION = {"ms": "%.3f", "us": "%.6f", "ns": "%.9f"}


def check_dtype(name: str, dtype: pl.DataType) -> None:
    """Check that a metadata column can be stored.

    Raises:
        SchemaError: the column cannot be stored; names the column (with the path, if nested) and the dtype.
    """
    if "\0" in name:
        raise SchemaError(f"the name of metadata column {name!r} contains a NUL character (U+0000)", advice="rename it")
    if isinstance(dtype, pl.List | pl.Array):
        check_dtype(f"{name}.item", instance(dtype.inner))
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            check_dtype(f"{name}.{field.name}", instance(field.dtype))
    elif type(dtype).__name__ not in _SIMPLE and not isinstance(
        dtype, pl.Decimal | pl.Datetime | pl.Duration | pl.Enum | pl.Categorical
    ):
        raise SchemaError(
            f"metadata column {name!r} is {dtype}, which cannot be stored", advice="cast it, or leave it out"
        )


def dtype_to_json(dtype: pl.DataType) -> str:
    """A dtype as compact JSON, the inverse of `dtype_from_json`."""
    return json.dumps(_describe(dtype), separators=(",", ":"), ensure_ascii=False)


def dtype_from_json(text: str) -> pl.DataType:
    """The dtype that `dtype_to_json` described; equal to the original dtype, also in another process."""
    return _dtype(json.loads(text))


def _describe(dtype: Any) -> Any:
    dtype = instance(dtype)
    if isinstance(dtype, pl.Decimal):
        return {"Decimal": [dtype.precision, dtype.scale]}
    if isinstance(dtype, pl.Datetime):
        return {"Datetime": [dtype.time_unit, dtype.time_zone]}
    if isinstance(dtype, pl.Duration):
        return {"Duration": dtype.time_unit}
    if isinstance(dtype, pl.Enum):
        return {"Enum": dtype.categories.to_list()}
    if isinstance(dtype, pl.Categorical):
        categories = dtype.categories
        if categories.is_global():
            return {"Categorical": []}
        return {"Categorical": [categories.name(), categories.namespace(), _describe(categories.physical())]}
    if isinstance(dtype, pl.Array):
        return {"Array": [_describe(dtype.inner), dtype.size]}
    if isinstance(dtype, pl.List):
        return {"List": _describe(dtype.inner)}
    if isinstance(dtype, pl.Struct):
        return {"Struct": [[field.name, _describe(field.dtype)] for field in dtype.fields]}
    return type(dtype).__name__


def _dtype(description: Any) -> pl.DataType:
    if isinstance(description, str):
        return _SIMPLE[description]
    [(kind, given)] = description.items()
    if kind == "Categorical":
        if not given:
            return pl.Categorical()
        return pl.Categorical(pl.Categories(given[0], given[1], physical=type(_dtype(given[2]))))
    if kind == "Array":
        return pl.Array(_dtype(given[0]), given[1])
    if kind == "List":
        return pl.List(_dtype(given))
    if kind == "Struct":
        return pl.Struct([pl.Field(name, _dtype(inner)) for name, inner in given])
    simple: dict[str, Any] = {"Decimal": pl.Decimal, "Datetime": pl.Datetime, "Duration": pl.Duration, "Enum": pl.Enum}
    return simple[kind](*given) if kind in ("Decimal", "Datetime") else simple[kind](given)  # type: ignore[no-any-return]


def encode(metadata: pl.Series) -> pl.Series:
    """Metadata as canonical JSON objects.

    Args:
        metadata: a Struct Series whose dtypes passed `check_dtype`.

    Returns:
        A String Series of the same length and order; a null struct becomes ``{}``. Equal values have equal text, which
        is the same as that of `canonical_json` for these values.
    """
    dtype = metadata.dtype
    assert isinstance(dtype, pl.Struct)
    if not dtype.fields:
        return pl.Series(metadata.name, ["{}"], dtype=pl.String).new_from_index(0, len(metadata))
    frame = metadata.struct.unnest()
    text = pl.when(pl.lit(metadata.is_null())).then(pl.lit("{}")).otherwise(_object(dtype, pl.col))
    return frame.select(text.alias(metadata.name)).to_series()


def json_text(values: pl.Series) -> pl.Series:
    """The JSON text of each value of a column, as `encode` writes it; nulls become ``null``."""
    return values.alias("values").to_frame().select(_text(pl.col("values"), values.dtype)).to_series()


def outside(metadata: pl.Series) -> pl.Series | None:
    """The error of each row with a value outside its dtype, else null; None if no dtype allows such values.

    Arrow does not check decimals against their precision, and neither do its producers: DuckDB exports a HUGEINT of 39
    digits as a decimal of 38, which could be stored but not read back.
    """
    dtype = metadata.dtype
    assert isinstance(dtype, pl.Struct)
    problems = [
        pl.when(beyond).then(pl.lit(f"metadata field {field.name!r} contains a value outside its dtype {field.dtype}"))
        for field in dtype.fields
        if (beyond := _outside(pl.col(field.name), instance(field.dtype))) is not None
    ]
    return metadata.struct.unnest().select(pl.coalesce(problems)).to_series() if problems else None


def _outside(value: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    """Whether a value, or a nested value, is outside its dtype; None for dtypes where this is impossible."""
    if isinstance(dtype, pl.Decimal):
        most = 10 ** (dtype.precision or 38) - 1
        return ~value.to_physical().is_between(pl.lit(-most, pl.Int128), pl.lit(most, pl.Int128))
    if isinstance(dtype, pl.Array):
        value, dtype = value.arr.to_list(), pl.List(dtype.inner)
    if isinstance(dtype, pl.List):
        item = _outside(pl.element(), instance(dtype.inner))
        return None if item is None else value.list.eval(item).list.any()
    if isinstance(dtype, pl.Struct):
        parts = [_outside(value.struct.field(field.name), instance(field.dtype)) for field in dtype.fields]
        known = [part for part in parts if part is not None]
        return pl.any_horizontal(known) if known else None
    return None


def _object(dtype: pl.Struct, field_of: Callable[[str], pl.Expr]) -> pl.Expr:
    """JSON objects with sorted fields; adjacent fields of `_PLAIN` dtypes are written by Polars in one call."""
    members: list[pl.Expr] = []
    fields = sorted(dtype.fields, key=lambda field: field.name)
    for plain, group in groupby(fields, key=lambda field: isinstance(instance(field.dtype), _PLAIN)):
        names = {field.name: instance(field.dtype) for field in group}
        if plain:
            written = pl.struct(field_of(name).alias(name) for name in names).struct.json_encode()
            members.append(written.str.strip_prefix("{").str.strip_suffix("}"))
        else:
            members += [
                pl.concat_str(pl.lit(json.dumps(name, ensure_ascii=False) + ":"), _text(field_of(name), names[name]))
                for name in names
            ]
    commas = [part for member in members for part in (pl.lit(","), member)][1:]
    return pl.concat_str(pl.lit("{"), *commas, pl.lit("}"))


def _text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The JSON text of each value; nulls become ``null``."""
    if isinstance(dtype, pl.Array):
        value, dtype = value.arr.to_list(), pl.List(dtype.inner)
    if isinstance(dtype, pl.List):
        inner = value.list.eval(_text(pl.element(), instance(dtype.inner)))
        text = pl.concat_str(pl.lit("["), inner.list.join(","), pl.lit("]"))
    elif isinstance(dtype, pl.Struct):
        text = pl.when(value.is_not_null()).then(_object(dtype, value.struct.field))
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return _quoted(value.cast(pl.String))
    elif dtype.is_float():
        # Through its own shortest text, so that a Float32 of 0.1 stays 0.1.
        text = _float_text(value if isinstance(dtype, pl.Float64) else value.cast(pl.String).cast(pl.Float64))
    elif isinstance(dtype, pl.Date):
        text = _temporal_text(value, _DAYS, "%Y-%m-%d")
    elif isinstance(dtype, pl.Datetime):
        per_day = _PER_DAY[dtype.time_unit]
        range_ = (_DAYS[0] * per_day, (_DAYS[1] + 1) * per_day - 1)
        naive = value if dtype.time_zone is None else value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        zulu = "" if dtype.time_zone is None else "Z"
        text = _temporal_text(naive, range_, f"%Y-%m-%dT%H:%M:%S{_FRACTION[dtype.time_unit]}{zulu}")
    elif isinstance(dtype, pl.Null):
        text = value.cast(pl.String)
    else:
        text = _scalar_text(value, dtype)
    return text.fill_null("null")


def _scalar_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Time):
        return _in_quotes(value.dt.to_string("%H:%M:%S%.9f"))
    if isinstance(dtype, pl.Duration):
        return value.to_physical().cast(pl.String)
    if isinstance(dtype, pl.Binary):
        return _in_quotes(value.bin.encode("base64"))
    text = value.cast(pl.String)
    return _in_quotes(text) if isinstance(dtype, (pl.Decimal, *WIDE)) else text


def _in_quotes(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit('"'), text, pl.lit('"'))


def _quoted(text: pl.Expr) -> pl.Expr:
    # The JSON writer of Polars escapes like Python's. It only accepts structs, so the enclosing object is stripped.
    return pl.struct(text.alias("v")).struct.json_encode().str.strip_prefix('{"v":').str.strip_suffix("}")


def _float_text(value: pl.Expr) -> pl.Expr:
    """The shortest text of each float, with whole numbers as integers and exponents in Python's format."""
    text = value.cast(pl.String)
    is_small = (value.abs() < 1e-4) & (value != 0)
    small = (
        pl.when(is_small)
        .then(text)
        .str.replace(r"^(-?)0\.0000([1-9])(\d*)$", "${1}${2}.${3}e-05")
        .str.replace(".e-05", "e-05", literal=True)
        .str.replace(r"e-(\d)$", "e-0${1}")
    )
    return (
        pl.when(value.is_nan())
        .then(pl.lit('"NaN"'))
        .when(value.is_infinite())
        .then(pl.when(value > 0).then(pl.lit('"Infinity"')).otherwise(pl.lit('"-Infinity"')))
        .when(text == "-0.0")
        .then(pl.lit('"-0.0"'))
        .when(is_small)
        .then(small)
        .otherwise(text.str.strip_suffix(".0"))
    )


def _temporal_text(value: pl.Expr, bounds: tuple[int, int], pattern: str) -> pl.Expr:
    number = value.to_physical()
    inside = number.is_between(*bounds)
    text = _in_quotes(pl.when(inside).then(value).dt.to_string(pattern))
    return pl.when(inside).then(text).otherwise(number.cast(pl.String))


def decode(metadata: pl.Series, fields: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Read typed columns from JSON objects.

    Args:
        metadata: a String Series of JSON objects.
        fields: the fields to read and their dtypes.

    Returns:
        One column for each field, of exactly its dtype, in the order of `fields`; null where missing or null.

    Raises:
        SchemaError: a value does not conform to its dtype; names the field.
    """
    if not fields:
        return pl.DataFrame(height=len(metadata))
    wire = pl.Struct([pl.Field(name, _wire(dtype)) for name, dtype in fields.items()])
    try:
        texts = metadata.str.json_decode(wire).struct.unnest()
        frame = texts.select(_value(pl.col(name), dtype).alias(name) for name, dtype in fields.items())
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"stored metadata does not fit its recorded dtypes: {str(error).splitlines()[0]}") from error
    given = texts.get_columns()
    lost = [
        name
        for name, before, after in zip(fields, given, frame.get_columns(), strict=True)
        if not after.dtype.is_nested() and after.dtype != pl.Null and after.null_count() > before.null_count()
    ]
    if lost:
        row = int((frame[lost[0]].is_null() & texts[lost[0]].is_not_null()).arg_true()[0])
        raise SchemaError(
            f"metadata field {lost[0]!r}: {texts[lost[0]][row]!r} (row {row}) is not a valid {fields[lost[0]]}"
        )
    return frame


def _wire(dtype: pl.DataType) -> pl.DataType:
    """The dtype for `json_decode`: the same nesting with String leaves, which keep all digits."""
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_wire(instance(dtype.inner)))
    if isinstance(dtype, pl.Struct):
        return pl.Struct([pl.Field(field.name, _wire(instance(field.dtype))) for field in dtype.fields])
    return pl.String()


def _value(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Convert String leaves to values of a dtype."""
    if isinstance(dtype, pl.Array):
        return _value(text, pl.List(dtype.inner)).list.to_array(dtype.size)
    if isinstance(dtype, pl.List):
        return text.list.eval(_value(pl.element(), instance(dtype.inner)))
    if isinstance(dtype, pl.Struct):
        if not dtype.fields:
            return text.cast(dtype)
        parts = [_value(text.struct.field(f.name), instance(f.dtype)).alias(f.name) for f in dtype.fields]
        return pl.when(text.is_not_null()).then(pl.struct(parts))
    if isinstance(dtype, pl.Boolean):
        return pl.when(text == "true").then(True).when(text == "false").then(False)
    if isinstance(dtype, pl.Binary):
        return text.str.decode("base64", strict=False)
    if isinstance(dtype, pl.Null):
        return text.cast(pl.Null, strict=False)
    if isinstance(dtype, pl.Date):
        return pl.coalesce(text.str.to_date("%Y-%m-%d", strict=False), text.cast(pl.Int32, strict=False).cast(pl.Date))
    if isinstance(dtype, pl.Time):
        return text.str.to_time("%H:%M:%S%.f", strict=False)
    if isinstance(dtype, pl.Datetime):
        return _datetime(text, dtype)
    if isinstance(dtype, pl.Duration):
        return text.cast(pl.Int64, strict=False).cast(dtype)
    return text.cast(dtype, strict=False)


def _datetime(text: pl.Expr, dtype: pl.Datetime) -> pl.Expr:
    naive = pl.Datetime(dtype.time_unit)
    parsed = text.str.strip_suffix("Z").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit=dtype.time_unit, strict=False)
    value = pl.coalesce(parsed, text.cast(pl.Int64, strict=False).cast(naive))
    return value if dtype.time_zone is None else value.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)


def _example(known: Mapping[str, pl.DataType], merged: Mapping[str, pl.DataType | None]) -> str:
    """An example of a cast to the dtype in the store, unless that is nested."""
    name = next(name for name, dtype in merged.items() if dtype is None)
    dtype = known[name]
    return "" if dtype.is_nested() or isinstance(dtype, pl.Enum) else f", as in pl.col({name!r}).cast(pl.{dtype})"


def merge_fields(
    entity_type: str, known: Mapping[str, pl.DataType], incoming: Mapping[str, pl.DataType]
) -> dict[str, pl.DataType]:
    """The fields to record so that a type can store further metadata.

    Returns:
        New fields and widened fields, with their dtypes (see `widened`).

    Raises:
        SchemaError: fields are known with dtypes that are incompatible with the incoming ones; names all of these
            fields and both dtypes.
    """
    merged = {name: widened(known[name], dtype) for name, dtype in incoming.items() if name in known}
    conflicts = [
        f"{name!r} is {known[name]} there and {incoming[name]} here" for name, dtype in merged.items() if dtype is None
    ]
    if conflicts:
        raise SchemaError(
            f"metadata of type {entity_type!r} has other dtypes in the store: {'; '.join(conflicts)}",
            advice=f"cast the columns{_example(known, merged)}, or write these entities under another type",
        )
    result = {name: merged.get(name) or dtype for name, dtype in incoming.items()}
    return {name: dtype for name, dtype in result.items() if name not in known or dtype != known[name]}


def widened(known: pl.DataType, incoming: pl.DataType) -> pl.DataType | None:
    """The dtype that holds the values of both dtypes unchanged, or None.

    Null is compatible with every dtype, and structs can get further fields, at every depth; all other dtypes must be
    equal.
    """
    known, incoming = instance(known), instance(incoming)
    if known == incoming or isinstance(incoming, pl.Null):
        return known
    if isinstance(known, pl.Null):
        return incoming
    if isinstance(known, pl.Struct) and isinstance(incoming, pl.Struct):
        fields: dict[str, pl.DataType] = {field.name: instance(field.dtype) for field in known.fields}
        for field in incoming.fields:
            inner = widened(fields.get(field.name, pl.Null()), instance(field.dtype))
            if inner is None:
                return None
            fields[field.name] = inner
        return pl.Struct(fields)
    if isinstance(known, pl.List) and isinstance(incoming, pl.List):
        inner = widened(instance(known.inner), instance(incoming.inner))
        return None if inner is None else pl.List(inner)
    if isinstance(known, pl.Array) and isinstance(incoming, pl.Array) and known.shape[0] == incoming.shape[0]:
        inner = widened(instance(known.inner), instance(incoming.inner))
        return None if inner is None else pl.Array(inner, known.shape[0])
    return None


def instance(dtype: Any) -> pl.DataType:
    """An instance of a dtype, which Polars sometimes returns as a class."""
    found: pl.DataType = dtype() if isinstance(dtype, type) else dtype
    return found
