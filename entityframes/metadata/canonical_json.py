"""Canonical JSON: one text for equal objects, whoever wrote them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from sys import float_info
from typing import Any

import polars as pl

from entityframes.errors import ValidationError

#: Fields of metadata that came as JSON text: the dtype that the values share, or None (nested or mixed values).
Inferred = dict[str, pl.DataType | None]

#: What a JSON object is made of: its top-level fields, and the Python type of the value of each; object for a value
#: that only its text can hold.
Shape = tuple[tuple[str, ...], tuple[type, ...]]

#: An escaped U+0000 (an even number of backslashes before it stand for themselves).
NUL_ESCAPE = re.compile(r"(?:^|[^\\])(?:\\\\)*\\u0000")
NUL_MESSAGE = "metadata holds a NUL character (\\u0000)"

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
    """Bring JSON objects into the one text that equal objects share.

    Keys are sorted, nothing is escaped that need not be, and a number without a fraction is written as an integer,
    so that ``{"b": 1.0, "a": "\\u00e9"}`` and ``{"a":"é","b":1}`` are equal. Null stands for ``{}``.

    Returns:
        For each text its canonical form and its shape (null where it has none), and the reason why not (null where
        it has them).
    """
    canonical: list[str | None] = []
    errors: list[str | None] = []
    shapes: list[Shape | None] = []
    for text in texts:
        value, error, shape = _canonical_object(text)
        canonical.append(value)
        errors.append(error)
        shapes.append(shape)
    return canonical, errors, shapes


def inferred(shapes: Iterable[Shape]) -> Inferred:
    """The dtype that the values of each field agree on, for fields in the order in which they first come."""
    kinds: dict[str, set[type]] = {}
    for shape in shapes:
        for name, kind in zip(*shape, strict=True):
            kinds.setdefault(name, set()).add(kind)
    return {name: _common_dtype(kinds[name]) for name in kinds}


def _canonical_object(text: str | None) -> tuple[str | None, str | None, Shape | None]:
    if text is None:
        return "{}", None, ((), ())
    try:
        value = _decode(text)
        if type(value) is not dict:
            return _refused(f"metadata is not a JSON object but {_JSON_WORDS.get(type(value), 'something else')}")
        result = "".join(_encode(value, 0))
        result.encode()
    except UnicodeEncodeError:
        return _refused("metadata holds a lone surrogate, which is no character")
    except RecursionError:
        return _refused("metadata is nested too deeply")
    except ValueError as error:
        return _refused(f"metadata is not valid JSON: {error}")
    if "\\u0000" in result and NUL_ESCAPE.search(result):
        return _refused(NUL_MESSAGE)
    exact = _PLACEHOLDER in result
    if exact:
        if "\ue000" in text or "\\ue000" in text.lower():
            return _refused("metadata holds U+E000 beside a number with more digits than a double has")
        result = _EXACT_NUMBER.sub(r"\1", result)
    kinds = map(_kind if exact or _LONG_NUMBER.search(result) else type, value.values())
    return result, None, (tuple(value), tuple(kinds))


def _refused(reason: str) -> tuple[None, str, None]:
    return None, reason, None


def _kind(value: Any) -> type:
    """The type of a value, or object for a number that neither 64 bits nor a double hold."""
    if isinstance(value, str):
        return object if value.startswith(_PLACEHOLDER) else str
    return object if type(value) is int and not -(2**63) <= value < 2**63 else type(value)


def _common_dtype(kinds: set[type]) -> pl.DataType | None:
    """The dtype that holds values of all these Python types, or None."""
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

#: Marks a number that a double cannot hold exactly, so that its digits survive; private-use, checked on the way in.
_PLACEHOLDER = "\ue000\ue001number:"
_EXACT_NUMBER = re.compile(f'"{_PLACEHOLDER}([^"]*)"')
_LONG_NUMBER = re.compile(r"\d{19}")


def _parse_float(text: str) -> Any:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is beyond the range of a double")
    # A double has 15 digits at least, but for those near zero.
    if (len(text) > 16 or abs(number) < float_info.min) and not _is_exact(text, number):
        return _PLACEHOLDER + text
    # -0.0 equals 0 as a JSON value.
    return int(number) if number.is_integer() and abs(number) < 1e16 else number


def _is_exact(text: str, number: float) -> bool:
    """Whether the shortest text of `number` means the same decimal as `text`."""
    return Decimal(text) == Decimal(repr(number))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; leave the field out or use null")


_decode = json.JSONDecoder(parse_float=_parse_float, parse_constant=_refuse_constant).decode
# The encoder that json.dumps would build anew for each call; same results, a third of the time.
_encode = c_make_encoder(None, None, encode_basestring, None, ":", ",", True, False, False)


def json_fields(texts: list[str], names: list[str]) -> dict[str, pl.Series]:
    """The values of some fields of canonical JSON objects, each as JSON text; null where missing or null."""
    values: dict[str, list[str | None]] = {name: [] for name in names}
    for text in texts:
        fields = _split(text)
        for name in names:
            value = fields.get(name)
            values[name].append(None if value is None else "".join(_encode(value, 0)))
    return {name: pl.Series(name, values[name], dtype=pl.String) for name in names}


# Numbers stay the text they are.
_split = json.JSONDecoder(parse_float=lambda text: float(text), parse_constant=_refuse_constant).decode


def dump(metadata: Mapping[str, Any]) -> str:
    """A mapping as JSON text.

    Raises:
        ValidationError: it holds values that JSON cannot represent.
    """
    try:
        return json.dumps(dict(metadata), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"metadata cannot be written as JSON: {error}") from error


def number_text(text: str) -> str:
    """The text that canonical JSON has for a number, given as JSON has it.

    Raises:
        ValueError: it is beyond the range of a double.
    """
    value = int(text) if text.lstrip("-").isdigit() else _parse_float(text)
    return text if isinstance(value, str) else repr(value)
