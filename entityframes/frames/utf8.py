"""Text that may be none: Arrow does not check that its strings are UTF-8."""

from __future__ import annotations

import polars as pl


def readable(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
    """The frame with a stand-in for each text that is not UTF-8, and what is wrong with each row if there are any."""
    problem: pl.Series | None = None
    columns = []
    for column in frame.get_columns():
        if column.dtype in (pl.String, pl.Binary, pl.Null):
            column, said = _checked(column)
            if said is not None:
                problem = said if problem is None else first(problem, said)
        columns.append(column)
    return pl.DataFrame(columns), problem


def printable(text: str) -> str:
    """Text that came from outside, such as a file's name, with escapes for the bytes in it that are not UTF-8."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half of a pair, which stands for no byte.
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def _checked(column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """The texts of a column, and what is wrong with each if any is."""
    import pyarrow as pa

    # A cast of Polars would look at all texts of the frame that a batch was cut from.
    raw = column.cast(pl.Binary)
    texts = raw.to_arrow().view(pa.large_string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return _stand_in(raw)
    return column if column.dtype == pl.String else pl.Series(column.name, texts), None


def _stand_in(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Bytes as text whatever they are, and what is wrong with each."""
    values = raw.to_list()
    bad = [value is not None and not is_utf8(value) for value in values]
    shown = [None if value is None else value.decode("utf-8", "replace") for value in values]
    said = [f"{raw.name} is not valid UTF-8" if wrong else None for wrong in bad]
    return pl.Series(raw.name, shown, dtype=pl.String), pl.Series(said, dtype=pl.String)


def first(problem: pl.Series, other: pl.Series) -> pl.Series:
    """Of two problems of each row the first."""
    return problem.zip_with(problem.is_not_null(), other)


def is_utf8(value: bytes) -> bool:
    """Whether bytes are text."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
