"""Parameters as literals within a statement, which saves a round trip.

The driver sends a statement with parameters in two messages, and waits for the response to the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

#: The number of bytes of parameters up to which they are written into the statement.
MOST_BYTES = 8_192
#: The number of values of an array up to which it is.
MOST_VALUES = 256


def literals(parameters: Sequence[Any]) -> Mapping[str, str] | None:
    """A literal of unknown type for each parameter, by its number; None if the parameters are too large.

    Args:
        parameters: scalars; or Series of String, Binary, Boolean or numbers, which become arrays.
    """
    if not all(_is_small(value) for value in parameters):
        return None
    texts = [_array(value) if isinstance(value, pl.Series) else _text(value) for value in parameters]
    if sum(len(text) for text in texts) > MOST_BYTES:
        return None
    return {
        str(number): _literal(value, text)
        for number, (value, text) in enumerate(zip(parameters, texts, strict=True), 1)
    }


def _is_small(value: Any) -> bool:
    if isinstance(value, pl.Series):
        return len(value) <= MOST_VALUES and value.estimated_size() <= MOST_BYTES
    return not isinstance(value, str) or len(value) <= MOST_BYTES


def _literal(value: Any, text: str) -> str:
    """A constant that means the same whether standard_conforming_strings is on or off."""
    return "NULL" if value is None else "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _array(values: pl.Series) -> str:
    """The text of an array."""
    quoted = ("NULL" if value is None else f'"{_in_array(_text(value))}"' for value in values.to_list())
    return "{" + ",".join(quoted) + "}"


def _in_array(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _text(value: Any) -> str:
    """A value in the form that PostgreSQL reads."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value).lower() if isinstance(value, bool) else str(value)
