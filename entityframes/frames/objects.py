"""Python objects as records, and Python values as the plain types that they stand for."""

from __future__ import annotations

import datetime as dt
import enum
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import lru_cache
from operator import methodcaller
from typing import Any

import numpy as np

from entityframes.visible import visible

#: The types of the values that columns are made of.
PLAIN = {
    type(None), bool, int, float, Decimal, str, bytes, dt.date, dt.datetime, dt.time, dt.timedelta, list, dict
}  # fmt: skip


def as_record(item: Any) -> dict[str, Any] | None:
    """The fields of a dict, dataclass, model, named tuple or database row, by name; None for anything else."""
    if type(item) is dict:
        # A copy, because a generator may fill and yield the same dict again and again.
        return item.copy()
    read = _how_to_read(item)
    return None if read is None else read(item)


def is_record(item: Any) -> bool:
    """Whether `as_record` can read an object."""
    return _how_to_read(item) is not None


def _how_to_read(item: Any) -> Callable[[Any], dict[str, Any]] | None:
    return _reader(type(item))  # type: ignore[arg-type]


@lru_cache(256)
def _reader(kind: Any) -> Callable[[Any], dict[str, Any]] | None:
    """How to read the fields of objects of a type."""
    if hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__array__"):
        return None
    if issubclass(kind, Mapping):
        return dict
    if is_dataclass(kind):
        return _attributes([field.name for field in fields(kind)])
    if hasattr(kind, "model_dump"):
        return methodcaller("model_dump")
    if hasattr(kind, "_asdict"):
        return methodcaller("_asdict")
    if hasattr(kind, "__attrs_attrs__"):
        return _attributes([field.name for field in kind.__attrs_attrs__])
    # Rows of a database cursor.
    return dict if hasattr(kind, "keys") and hasattr(kind, "__getitem__") else None


def _attributes(names: list[str]) -> Callable[[Any], dict[str, Any]]:
    return lambda item: {name: getattr(item, name) for name in names}


class NoValueError(ValueError):
    """An object stands for no value that a column can hold."""


#: The methods with which arrays, Series and scalars of NumPy, pandas, Polars and PyArrow return Python values.
_METHODS = ("tolist", "to_list", "as_py")


def plain(value: Any) -> Any:
    """A value as one of the types that columns are made of.

    Raises:
        NoValueError: it stands for no such value; the message describes it.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if kind.__name__ in ("NaTType", "NAType"):
        # The nulls of pandas.
        return None
    try:
        made = _standard(value)
        if made is None:
            made = as_record(value)
        if made is None and (method := next((name for name in _METHODS if hasattr(value, name)), None)):
            made = getattr(value, method)()
    except NoValueError:
        raise
    except Exception as error:
        raise NoValueError(f"a value of type {kind.__name__} that cannot be read: {visible(error)}") from error
    if made is None or type(made) not in PLAIN:
        raise NoValueError(
            f"{shown(value)} ({kind.__name__}), which no column can hold: convert it, for example to text"
        )
    return made


def _standard(value: Any) -> Any:
    """The value of an instance of a standard type or of a subclass of one; None for others."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        return _numpy_time(value)
    if isinstance(value, uuid.UUID) or type(value).__module__ == "ipaddress" or hasattr(value, "unicode_string"):
        # The last are the URLs of pydantic.
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Decimal):
        return Decimal(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, dt.date | dt.timedelta):
        return _without_subclass(value)
    if isinstance(value, list) or (isinstance(value, tuple) and not hasattr(value, "_asdict")):
        return list(value)
    return None


def _without_subclass(value: dt.date | dt.timedelta) -> Any:
    """A date, datetime or timedelta of a subclass, such as that of pandas, which counts nanoseconds."""
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        raise NoValueError("nanoseconds, which Python cannot represent: round them to microseconds first")
    if isinstance(value, dt.timedelta):
        return dt.timedelta(value.days, value.seconds, value.microseconds)
    if isinstance(value, dt.datetime):
        clock = (value.hour, value.minute, value.second, value.microsecond, value.tzinfo)
        return dt.datetime(value.year, value.month, value.day, *clock, fold=value.fold)
    return dt.date(value.year, value.month, value.day)


def _numpy_time(value: Any) -> Any:
    """The value of a NumPy datetime64 or timedelta64."""
    if np.isnat(value):
        return None
    unit = np.datetime_data(value.dtype)[0]
    days = isinstance(value, np.datetime64) and unit in ("Y", "M", "W", "D")
    exact = value.astype(f"{type(value).__name__}[{'D' if days else 'us'}]")
    made = exact.item()
    if exact != value or isinstance(made, int):
        raise NoValueError(f"{shown(value)} ({type(value).__name__}), which microseconds cannot represent")
    return made


def shown(value: Any, most: int = 80) -> str:
    """A value for a message, at most that long."""
    try:
        text = visible(repr(value[:most] if isinstance(value, str | bytes) else value))
    except Exception:
        # Python refuses to write an integer of more than 4,300 digits.
        return "a value that cannot be shown"
    return text if len(text) <= most else text[: most - 1] + "…"
