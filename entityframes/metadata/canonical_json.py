"""Canonical JSON: equal objects have equal text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from sys import float_info
from typing import Any

import orjson
import polars as pl

from entityframes.errors import ValidationError

#: Fields of metadata given as JSON text: the common dtype of the values, or None for nested or mixed values.
Inferred = dict[str, pl.DataType | None]

#: The top-level fields of a JSON object, and the Python type of each value; `object` for a number that no Python or
#: Polars number type holds exactly.
Shape = tuple[tuple[str, ...], tuple[type, ...]]

#: An escaped U+0000, preceded by an even number of backslashes, which are escaped backslashes.
NUL_ESCAPE = re.compile(r"(?:^|[^\\])(?:\\\\)*\\u0000")
NUL_MESSAGE = "metadata contains a NUL character (U+0000)"

_PYTHON_DTYPES: Mapping[type, pl.DataType] = {
    bool: pl.Boolean(),
    int: pl.Int64(),
    float: pl.Float64(),
    str: pl.String(),
    type(None): pl.Null(),
}


def canonical_json(
    texts: list[str | None],
) -> tuple[list[str | None], list[str | None], list[Shape | None]]:
    """Convert JSON objects to canonical JSON.

    Keys are sorted, only what must be escaped is escaped, and a number without a fraction is written as an integer,
    so that ``{"b": 1.0, "a": "\\u00e9"}`` and ``{"a":"é","b":1}`` have the same text. None is treated as ``{}``.

    Returns:
        For each text: its canonical form, its error, and its shape. The form and the shape are None if there is an
        error; otherwise the error is None.
    """
    canonical: list[str | None] = []
    errors: list[str | None] = []
    shapes: list[Shape | None] = []
    # Equal shapes are one object, because many small objects slow down the garbage collector.
    known: dict[Shape, Shape] = {}
    for text, numbers in zip(texts, _numbers(texts), strict=True):
        found = None if text is None or numbers == _UNUSUAL else _plain_object(text, numbers)
        value, error, shape = found or _canonical_object(text)
        canonical.append(value)
        errors.append(error)
        shapes.append(shape and known.setdefault(shape, shape))
    return canonical, errors, shapes


def inferred(shapes: Iterable[Shape]) -> Inferred:
    """The common dtype of the values of each field; fields are in order of first occurrence."""
    kinds: dict[str, set[type]] = {}
    for shape in shapes:
        for name, kind in zip(*shape, strict=True):
            kinds.setdefault(name, set()).add(kind)
    return {name: _common_dtype(kinds[name]) for name in kinds}


def _numbers(texts: list[str | None]) -> list[int | None]:
    """The kinds of numbers in each text: `_UNUSUAL`, or any of `_WHOLE` and `_LONG` added up."""
    if len(texts) < _FEW_TEXTS:
        return [_UNUSUAL] * len(texts)
    try:
        given = pl.Series("text", texts, dtype=pl.String)
    except UnicodeEncodeError:
        return [_UNUSUAL] * len(texts)
    kinds = (pl.col("text").str.contains(pattern).cast(pl.UInt8) * kind for kind, pattern in _PATTERNS.items())
    found = given.to_frame().select(pl.sum_horizontal(kinds)).to_series()
    return found.clip(upper_bound=_UNUSUAL).to_list()


def _plain_object(text: str, numbers: int | None) -> tuple[str, None, Shape] | None:
    """As `_canonical_object`, in a quarter of the time; None for what orjson refuses, or writes in another way.

    Args:
        text: JSON without unusual numbers.
        numbers: the kinds of its numbers.
    """
    try:
        value = orjson.loads(text)
        if type(value) is not dict:
            return None
        if numbers and numbers & _WHOLE:
            if not _SCALARS.issuperset(map(type, value.values())):
                return None
            value = {name: _as_int(item) for name, item in value.items()}
        result = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError):
        return None
    if "\\u0000" in result:
        return None
    kind: Callable[[Any], type] = type
    if numbers and numbers & _LONG:
        if sorted(_LONG_TOKEN.findall(text)) != sorted(_LONG_TOKEN.findall(result)):
            return None
        kind = _kind
    return result, None, (tuple(value), tuple(map(kind, value.values())))


def _as_int(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _canonical_object(text: str | None) -> tuple[str | None, str | None, Shape | None]:
    if text is None:
        return "{}", None, ((), ())
    try:
        value = _decode(text)
        if type(value) is not dict:
            return _invalid(f"metadata is not a JSON object but {_JSON_WORDS.get(type(value), 'something else')}")
        result = "".join(_encode(value, 0))
        result.encode()
    except UnicodeEncodeError:
        return _invalid("metadata contains a lone surrogate, which is not a valid character")
    except RecursionError:
        return _invalid("metadata is nested too deeply")
    except ValueError as error:
        return _invalid(f"metadata is not valid JSON: {error}")
    if "\\u0000" in result and NUL_ESCAPE.search(result):
        return _invalid(NUL_MESSAGE)
    exact = _PLACEHOLDER in result
    if exact:
        if "\ue000" in text or "\\ue000" in text.lower():
            return _invalid("metadata contains both U+E000 and a number with more digits than a double has")
        result = _EXACT_NUMBER.sub(r"\1", result)
    kinds = map(_kind if exact or _LONG_NUMBER.search(result) else type, value.values())
    return result, None, (tuple(value), tuple(kinds))


def _invalid(reason: str) -> tuple[None, str, None]:
    return None, reason, None


def _kind(value: Any) -> type:
    """The type of a value, or `object` for a number that neither an Int64 nor a Float64 holds exactly."""
    if isinstance(value, str):
        return object if value.startswith(_PLACEHOLDER) else str
    return object if type(value) is int and not -(2**63) <= value < 2**63 else type(value)


def _common_dtype(kinds: set[type]) -> pl.DataType | None:
    """The dtype that can hold values of all these Python types, or None."""
    known = kinds - {type(None)}
    if known == {int, float}:
        return pl.Float64()
    if len(known) > 1:
        return None
    return _PYTHON_DTYPES.get(known.pop()) if known else pl.Null()


_JSON_WORDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}

#: Marks a number that a double cannot hold exactly, so that its digits are kept. A private-use character, which is
#: checked not to occur in the input.
_PLACEHOLDER = "\ue000\ue001number:"
_EXACT_NUMBER = re.compile(f'"{_PLACEHOLDER}([^"]*)"')
_LONG_NUMBER = re.compile(r"\d{19}")

#: Up to this number of texts, checking their numbers first takes longer than it saves.
_FEW_TEXTS = 8
#: Kinds of numbers: floats that are integers, which canonical JSON writes as such; numbers of many digits, which a
#: double may not hold; and those that orjson may write in another way than Python does: with an exponent, with many
#: zeros, and -0.
_WHOLE, _LONG, _UNUSUAL = 1, 2, 4
_PATTERNS = {
    _WHOLE: r"\.0+(?:\D|$)",
    _LONG: r"[\d.]{17}",
    _UNUSUAL: r"\d[eE]|0\.0000|[:\[,\s]-0(?:[^.]|$)",
}
_LONG_TOKEN = re.compile(r"[\d.]{17,}")
_SCALARS = frozenset((str, int, float, bool, type(None)))


def _parse_float(text: str) -> Any:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is outside the range of a double")
    # A double holds at least 15 digits, except close to zero.
    if (len(text) > 16 or abs(number) < float_info.min) and not _is_exact(text, number):
        return _PLACEHOLDER + text
    # -0.0 equals 0 as a JSON value.
    return int(number) if number.is_integer() and abs(number) < 1e16 else number


def _is_exact(text: str, number: float) -> bool:
    """Whether the shortest representation of `number` is the same decimal as `text`."""
    return Decimal(text) == Decimal(repr(number))


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; leave the field out or use null")


_decode = json.JSONDecoder(parse_float=_parse_float, parse_constant=_reject_constant).decode
# The encoder that json.dumps would create for each call; reusing it takes a third of the time.
_encode = c_make_encoder(None, None, encode_basestring, None, ":", ",", True, False, False)


def json_fields(texts: list[str], names: list[str]) -> dict[str, pl.Series]:
    """The values of the given fields of canonical JSON objects, as JSON text; null where missing or null."""
    values: dict[str, list[str | None]] = {name: [] for name in names}
    for text in texts:
        fields = _split(text)
        for name in names:
            value = fields.get(name)
            values[name].append(None if value is None else "".join(_encode(value, 0)))
    return {name: pl.Series(name, values[name], dtype=pl.String) for name in names}


# Canonical numbers are written back with the same text.
_split = json.JSONDecoder(parse_float=lambda text: float(text), parse_constant=_reject_constant).decode


def dump(metadata: Mapping[str, Any]) -> str:
    """A mapping as JSON text.

    Raises:
        ValidationError: the mapping contains values that JSON cannot represent.
    """
    try:
        return json.dumps(dict(metadata), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"metadata cannot be written as JSON: {error}") from error


def document(value: Any, plain: Callable[[Any], Any], *, canonical: bool) -> str:
    """A value as JSON text.

    Args:
        value: any value.
        plain: replaces a value that is not of a type of JSON by one that may be.
        canonical: whether to make canonical JSON; otherwise keys and numbers stay as they are.

    Raises:
        ValueError, TypeError, RecursionError: JSON cannot represent the value, or the key of a dict is not text.
    """

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            if wrong := next((key for key in value if type(key) is not str), None):
                raise TypeError(f"the key {wrong!r} is not text")
            return {name: replaced(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if value is None or type(value) in (str, int, float, bool):
            return value
        made = plain(value)
        if type(made) is type(value):
            raise TypeError(f"{type(value).__name__} is not a type of JSON")
        return replaced(made)

    text = json.dumps(replaced(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()
    if not canonical:
        return text
    [whole], [error], _ = canonical_json([f'{{"v":{text}}}'])
    if whole is None:
        raise ValueError(error)
    return whole[5:-1]


def number_text(text: str) -> str:
    """The canonical text of a JSON number.

    Raises:
        ValueError: the number is outside the range of a double.
    """
    value = int(text) if text.lstrip("-").isdigit() else _parse_float(text)
    return text if isinstance(value, str) else repr(value)
