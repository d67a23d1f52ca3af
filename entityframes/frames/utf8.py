"""Validation of text: Arrow does not check that its strings are UTF-8."""

from __future__ import annotations

import polars as pl


def readable(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
    """The frame with a replacement for each string that is not UTF-8, and the errors by row, or None without any."""
    problem: pl.Series | None = None
    columns = []
    for column in frame.get_columns():
        if column.dtype in (pl.String, pl.Binary, pl.Null):
            column, error = _checked(column)
            if error is not None:
                problem = error if problem is None else first(problem, error)
        columns.append(column)
    return pl.DataFrame(columns), problem


def printable(text: str) -> str:
    """External text, such as a file name, with bytes that are not UTF-8 escaped."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # A lone surrogate that does not represent a byte.
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def _checked(column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """The column as String, and the error of each value, or None without any."""
    import pyarrow as pa

    # A cast by Polars would validate the whole frame that a batch is a slice of.
    raw = column.cast(pl.Binary)
    texts = raw.to_arrow().view(pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return _replaced(raw)
    return column if column.dtype == pl.String else pl.Series(column.name, texts), None


def _replaced(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Bytes decoded with replacement characters, and the error of each value."""
    values = raw.to_list()
    bad = [value is not None and not is_utf8(value) for value in values]
    shown = [None if value is None else value.decode("utf-8", "replace") for value in values]
    errors = [f"{raw.name} is not valid UTF-8" if wrong else None for wrong in bad]
    return pl.Series(raw.name, shown, dtype=pl.String), pl.Series(errors, dtype=pl.String)


def first(problem: pl.Series, other: pl.Series) -> pl.Series:
    """The first of two possible errors of each row."""
    return problem.zip_with(problem.is_not_null(), other)


def is_utf8(value: bytes) -> bool:
    """Whether bytes are valid UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
