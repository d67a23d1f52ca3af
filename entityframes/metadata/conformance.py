"""Checks values in JSON text against dtypes, so that JSON text can be written to a type with typed columns."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from entityframes.metadata import dtypes


def nonconforming(metadata: pl.Series, fields: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Find values in JSON text that cannot be read back with the declared dtypes of a type.

    Returns:
        ``row`` UInt32 (position in `metadata`), ``field`` String, ``value`` String (its JSON, truncated to 80
        characters) of each value that is present, not null and not of the dtype of its field.
    """
    found: list[tuple[int, str, str]] = []
    for row, text in enumerate(metadata.to_list()):
        values = json.loads(text)
        for name, dtype in fields.items():
            value = values.get(name)
            if value is not None and not _fits(value, dtype):
                found.append((row, name, json.dumps(value, ensure_ascii=False)[:80]))
    return pl.DataFrame(found, {"row": pl.UInt32, "field": pl.String, "value": pl.String}, orient="row")


def grown(metadata: pl.Series, fields: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The fields that have to be widened to hold the values of JSON text: Null gets a dtype, and structs get further
    fields, at every depth.

    A value that fits no wider dtype changes nothing; `nonconforming` reports it.
    """
    open_fields = {name: dtype for name, dtype in fields.items() if _is_open(dtype)}
    wide = dict(open_fields)
    for text in metadata.to_list() if open_fields else []:
        values = json.loads(text)
        for name in open_fields:
            value = values.get(name)
            if value is not None and (wider := _grown(value, wide[name])) is not None:
                wide[name] = wider
    return {name: dtype for name, dtype in wide.items() if dtype != fields[name]}


#: The maximum number of fields to which JSON text extends a struct.
_MAX_FIELDS = 1_000


def _is_open(dtype: Any) -> bool:
    dtype = dtypes.instance(dtype)
    return isinstance(dtype, pl.Null | pl.Struct) or (isinstance(dtype, pl.List | pl.Array) and _is_open(dtype.inner))


def _grown(value: Any, dtype: Any) -> pl.DataType | None:
    """The dtype, widened to hold a value read from JSON; None if that is not possible."""
    dtype = dtypes.instance(dtype)
    if value is None:
        return dtype  # type: ignore[no-any-return]
    if isinstance(dtype, pl.Null):
        dtype = _first_dtype(value)
    if type(value) is list and isinstance(dtype, pl.List | pl.Array):
        inner = dtypes.instance(dtype.inner)
        if isinstance(inner, pl.Null) and {int, float} == set(map(type, value)) - {type(None)}:
            inner = pl.Float64()
        for item in value:
            wider = _grown(item, inner)
            if wider is None:
                return None
            inner = wider
        return pl.List(inner) if isinstance(dtype, pl.List) else pl.Array(inner, dtype.shape[0])
    if type(value) is dict and isinstance(dtype, pl.Struct):
        fields: dict[str, Any] = {field.name: dtypes.instance(field.dtype) for field in dtype.fields}
        for name, item in value.items():
            wider = _grown(item, fields.get(name, pl.Null()))
            if wider is None:
                return None
            fields[name] = wider
        return pl.Struct(fields) if len(fields) <= max(_MAX_FIELDS, len(dtype.fields)) else None
    return dtype if dtype is not None and _fits(value, dtype) else None


def _first_dtype(value: Any) -> pl.DataType | None:
    """The initial dtype of a field, given its first value."""
    kind = type(value)
    if kind is list:
        return pl.List(pl.Null())
    if kind is dict:
        return pl.Struct([])
    simple: dict[type, pl.DataType] = {bool: pl.Boolean(), int: pl.Int64(), float: pl.Float64(), str: pl.String()}
    return simple.get(kind)


_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?")
_TIME = re.compile(r"\d\d:\d\d:\d\d(?:\.\d{1,9})?")
_FLOAT_WORDS = ("NaN", "Infinity", "-Infinity", "-0.0")


def _fits(value: Any, dtype: Any) -> bool:
    """Whether a value read from JSON conforms to a dtype."""
    if value is None:
        return True
    kind = type(value)
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtypes.instance(dtype.inner)
        right = kind is list and (isinstance(dtype, pl.List) or len(value) == dtype.size)
        return right and all(_fits(item, inner) for item in value)
    if isinstance(dtype, pl.Struct):
        known = {field.name: dtypes.instance(field.dtype) for field in dtype.fields}
        return kind is dict and all(name in known and _fits(item, known[name]) for name, item in value.items())
    if dtype.is_integer():
        if kind is str and isinstance(dtype, dtypes.WIDE) and _INTEGER.fullmatch(value):
            value, kind = int(value), int
        return kind is int and _in_range(value, dtype)
    if dtype.is_float():
        return kind in (int, float) or (kind is str and value in _FLOAT_WORDS)
    if isinstance(dtype, pl.Boolean):
        return kind is bool
    if isinstance(dtype, pl.Duration):
        return kind is int and -(2**63) <= value < 2**63
    if isinstance(dtype, pl.Date | pl.Datetime) and kind is int:
        bits = 31 if isinstance(dtype, pl.Date) else 63
        return bool(-(1 << bits) <= value < 1 << bits)
    return kind is str and _text_fits(value, dtype)


def _text_fits(value: str, dtype: Any) -> bool:
    if isinstance(dtype, pl.Enum):
        return bool((dtype.categories == value).any())
    if isinstance(dtype, pl.Decimal):
        whole, _, fraction = value.lstrip("-").partition(".")
        digits = len(whole.lstrip("0")) + dtype.scale
        return bool(_DECIMAL.fullmatch(value) and len(fraction) <= dtype.scale and digits <= dtype.precision)
    try:
        if isinstance(dtype, pl.Binary):
            base64.b64decode(value, validate=True)
        elif isinstance(dtype, pl.Date):
            return bool(_DATE.fullmatch(value)) and bool(dt.date.fromisoformat(value))
        elif isinstance(dtype, pl.Time):
            return bool(_TIME.fullmatch(value)) and dt.time.fromisoformat(value[:8]) is not None
        elif isinstance(dtype, pl.Datetime):
            bare = value.removesuffix("Z") if dtype.time_zone else value
            return bool(_DATETIME.fullmatch(bare)) and bool(dt.datetime.fromisoformat(bare[:19]))
    except ValueError:
        return False
    return isinstance(dtype, pl.String | pl.Categorical | pl.Binary)


def _in_range(value: int, dtype: pl.DataType) -> bool:
    bits = int(type(dtype).__name__.removeprefix("U").removeprefix("Int"))
    return 0 <= value < 1 << bits if dtype.is_unsigned_integer() else -(1 << bits - 1) <= value < 1 << bits - 1
