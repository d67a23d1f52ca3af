"""Values of a frame as values of the columns of a table: converted by value, or refused with a rule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
import polars as pl

from entityframes.engines.tables import Column, canonical
from entityframes.metadata import dtypes
from entityframes.metadata.canonical_json import NUL_ESCAPE
from entityframes.visible import visible

#: What each family takes, for messages.
_TAKES = {
    "boolean": "Boolean or text",
    "integer": "integers, whole numbers or text",
    "float": "numbers or text",
    "decimal": "numbers or text",
    "text": "text",
    "binary": "Binary",
    "uuid": "text or Binary of 16 bytes",
    "date": "Date, Datetime at midnight or text (YYYY-MM-DD)",
    "timestamp": "Datetime without a time zone, Date or text (YYYY-MM-DD HH:MM:SS)",
    "timestamptz": "Datetime with a time zone or text (YYYY-MM-DD HH:MM:SS+00:00)",
    "time": "Time or text (HH:MM:SS)",
    "interval": "Duration or text",
    "json": "text with JSON, Struct or List",
    "enum": "text",
    "array": "List",
    "vector": "List of numbers",
    "struct": "Struct with fields of these names",
    "map": "Map",
    "other": "text in the form of the database",
}
_TEXT = (pl.String, pl.Categorical, pl.Enum)

_UUID = r"^([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})$"
_WHOLE = r"^-?[0-9]+(\.0*)?$"
_PLAIN_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
#: What DuckDB takes for JSON, apart from JSON.
_NO_JSON = re.compile(r"(?i)nan|inf|,\s*[\]}]")
_BOOLEANS = {
    **dict.fromkeys(["true", "t", "yes", "y", "on", "1"], True),
    **dict.fromkeys(["false", "f", "no", "n", "off", "0"], False),
}
#: Years that both engines store; dates and timestamps outside of them are refused.
_YEARS = (-4712, 294_276)


def refusal(dtype: pl.DataType, column: Column) -> tuple[str, str] | None:
    """Why values of a dtype cannot be written to a column, and what to do; None if they can."""
    if _accepts(dtype, column):
        return None
    why, advice = f"takes {_TAKES[column.family]}", "cast it first"
    if column.family == "timestamptz" and isinstance(dtype, pl.Datetime):
        why, advice = "needs a time zone", "add it with dt.replace_time_zone"
    elif column.family == "timestamp" and isinstance(dtype, pl.Datetime):
        why = "has no time zone"
        advice = "convert it with dt.convert_time_zone and remove it with dt.replace_time_zone(None)"
    return f"column {column.name!r} is {dtype}, but the column of the table is {column.sql_type}, which {why}", advice


def _accepts(dtype: pl.DataType, column: Column) -> bool:
    family, is_text = column.family, isinstance(dtype, _TEXT)
    numeric = dtype.is_integer() or dtype.is_float() or isinstance(dtype, pl.Decimal)
    if dtype == pl.Null:
        return True
    if family in ("array", "vector"):
        inner = column.element or Column("element", "real", "float", size=32)
        return isinstance(dtype, pl.List | pl.Array) and _accepts(dtype.inner, inner)  # type: ignore[arg-type]
    if family == "struct":
        fields = {field.name: field for field in column.fields}
        return isinstance(dtype, pl.Struct) and all(
            one.name in fields and _accepts(one.dtype, fields[one.name])  # type: ignore[arg-type]
            for one in dtype.fields
        )
    if family == "map":
        key, value = column.fields
        return isinstance(dtype, pl.Map) and _accepts(dtype.key, key) and _accepts(dtype.value, value)  # type: ignore[arg-type]
    accepted: dict[str, bool] = {
        "boolean": dtype == pl.Boolean or is_text,
        "integer": numeric or is_text,
        "float": numeric or is_text,
        "decimal": numeric or is_text,
        "binary": dtype == pl.Binary,
        "uuid": is_text or dtype == pl.Binary,
        "date": dtype == pl.Date or is_text or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None),
        "timestamp": dtype == pl.Date or is_text or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None),
        "timestamptz": is_text or (isinstance(dtype, pl.Datetime) and dtype.time_zone is not None),
        "time": dtype == pl.Time or is_text,
        "interval": dtype == pl.Duration or is_text,
        "json": is_text or isinstance(dtype, pl.Struct | pl.List | pl.Array),
    }
    return accepted.get(family, is_text)


@dataclass
class Problems:
    """The rows of a batch that cannot be written, each with its first problem."""

    height: int
    #: The rule and the error by position.
    found: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, wrong: pl.Series, rule: str, error: Callable[[int], str]) -> None:
        """Add a problem of the rows where `wrong` is true; nulls count as false."""
        if wrong.any():
            for position in wrong.fill_null(False).arg_true():
                if position not in self.found:
                    self.found[position] = (rule, error(position))

    def columns(self) -> tuple[pl.Series, pl.Series] | None:
        """The rule and the error of each row, null for valid rows; None if all rows are valid."""
        if not self.found:
            return None
        each = [self.found.get(position, (None, None)) for position in range(self.height)]
        rules, errors = zip(*each, strict=True)
        return pl.Series("rule", rules, dtype=pl.String), pl.Series("error", errors, dtype=pl.String)


def convert(values: pl.Series, column: Column, problems: Problems) -> pl.Series:
    """Values in the canonical dtype of a column; a value that is none is null, and added to the problems.

    Args:
        values: values of a dtype that `refusal` accepts.
        column: the column of the table.
        problems: the problems of the rows so far.
    """
    dtype = canonical(column)
    if values.dtype == pl.Null:
        return values.cast(dtype)
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    find = _Finder(values, column, problems)
    if values.dtype == pl.String:
        find(values.str.contains("\0", literal=True), "nul_character", "contains a NUL character (U+0000)")
    converted = _CONVERSIONS.get(column.family, _unchanged)(values, column, find)
    if column.family == "json" and converted.str.contains("\\u0000", literal=True).any():
        find(converted.str.contains(NUL_ESCAPE.pattern), "nul_character", "contains a NUL character (\\u0000)")
    return converted.cast(dtype)


def convert_key(values: pl.Series, column: Column, problems: Problems) -> pl.Series:
    """Like `convert`, for a column of the key: equal numbers, and texts that differ in padding, have equal values."""
    converted = convert(values, column, problems)
    if column.family == "decimal":
        return _normal_numbers(converted)
    return converted.str.strip_chars_end(" ") if column.padded else converted


def _normal_numbers(texts: pl.Series) -> pl.Series:
    """Numbers as text without exponents and superfluous zeros."""
    for place in texts.str.contains("[eE]").fill_null(False).arg_true():
        number = Decimal(texts[place])
        # Others are out of the range of every type.
        if abs(number.adjusted()) < 200_000:
            texts[place] = format(number, "f")
    digits = texts.str.strip_chars_start("+-").str.replace(r"(\.\d*?)0+$", "${1}").str.strip_suffix(".")
    digits = digits.str.strip_chars_start("0").str.replace(r"^(\.|$)", "0${1}")
    sign = pl.select(pl.when(texts.str.starts_with("-") & (digits != "0")).then(pl.lit("-")).otherwise(pl.lit("")))
    return sign.to_series() + digits


@dataclass
class _Finder:
    """Adds the problems of a column."""

    values: pl.Series
    column: Column
    problems: Problems

    def __call__(self, wrong: pl.Series, rule: str, what: str) -> None:
        """Add a problem; the message consists of the column, the value and `what`."""
        name = self.column.name
        self.problems.add(wrong, rule, lambda row: f"{name}: {_shown(_value(self.values, row))} {what}")

    def at(self, positions: list[int], rule: str, what: str) -> pl.Series:
        """Add a problem at positions; returns where they are."""
        wrong = pl.int_range(len(self.values), eager=True).is_in(pl.Series(positions, dtype=pl.Int64).implode())
        self(wrong, rule, what)
        return wrong

    def lost(self, wrong: pl.Series, what: str) -> None:
        """Add a value that would be changed."""
        self(wrong, "loses_digits", f"cannot be stored in {self.column.sql_type} without loss: {what}")

    def unparsable(self, converted: pl.Series) -> None:
        """Add values that became null."""
        wrong = converted.is_null() & self.values.is_not_null()
        self(wrong, "invalid_text", f"is not a valid {self.column.sql_type}")

    def out_of_range(self, wrong: pl.Series) -> None:
        self(wrong, "out_of_range", f"is out of range for {self.column.sql_type}")

    def nested(self, values: pl.Series, column: Column, rows: pl.Series | None = None) -> pl.Series:
        """Convert values that are part of the values of this column.

        Args:
            values: the parts.
            column: their type.
            rows: the row of each part; None if each row has one.
        """
        found = Problems(len(values))
        converted = convert(values, column, found)
        for position, (rule, error) in sorted(found.found.items()):
            row = position if rows is None else rows[position]
            name = f"{self.column.name}.{column.name}" if self.column.fields else self.column.name
            self.problems.found.setdefault(row, (rule, f"{name}: {error.partition(': ')[2]}"))
        return converted


def _value(values: pl.Series, row: int) -> Any:
    try:
        return values[row]
    except (ValueError, OverflowError):
        # A time that Python cannot represent.
        return values[row : row + 1].cast(pl.String)[0]


def _shown(value: Any, most: int = 100) -> str:
    value = value.to_list() if isinstance(value, pl.Series) else value
    text = visible(repr(value) if isinstance(value, str | bytes) else value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _unchanged(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    return values


def _boolean(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.Boolean:
        return values
    converted = values.str.strip_chars().str.to_lowercase().replace_strict(
        _BOOLEANS, default=None, return_dtype=pl.Boolean
    )  # fmt: skip
    find.unparsable(converted)
    return converted


def _integer(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if column.size is None or column.size >= 128:
        return _wide_integer(values, column, find)
    if values.dtype.is_float():
        values = _whole_floats(values, find)
        wide = values.cast(pl.Int128, strict=False)
        find.out_of_range(wide.is_null() & values.is_not_null())
    elif isinstance(values.dtype, pl.Decimal):
        wide = values.cast(pl.Int128, strict=False)
        find.lost(wide.cast(values.dtype, strict=False).ne_missing(values), "it is not a whole number")
    elif values.dtype == pl.String:
        texts = _whole_texts(values, find)
        wide = texts.cast(pl.Int128, strict=False)
        find.out_of_range(wide.is_null() & texts.is_not_null())
    else:
        wide = values
    bits = column.size
    low, high = (0, 2**bits - 1) if column.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    held = _integer_bounds(wide.dtype)
    if held is None or held[0] < low or held[1] > high:
        outside = ((wide.cast(pl.Int128) < low) | (wide.cast(pl.Int128) > high)).fill_null(False)
        find.out_of_range(outside)
        wide = wide.set(outside, None) if outside.any() else wide
    return wide


def _whole_floats(values: pl.Series, find: _Finder) -> pl.Series:
    whole = values.is_finite() & (values == values.round(0))
    find.lost(~whole, "it is not a whole number")
    return values.set(~whole.fill_null(False), None)


def _whole_texts(values: pl.Series, find: _Finder) -> pl.Series:
    """The digits of whole numbers, nulls for other texts."""
    texts = values.str.strip_chars().str.strip_prefix("+")
    whole = texts.str.contains(_WHOLE)
    texts = texts.str.replace(r"\.0*$", "").str.replace(r"^(-?)0+(\d)", "${1}${2}").str.replace(r"^-0$", "0")
    texts = texts.set(~whole.fill_null(True), None)
    find.unparsable(texts)
    return texts


def _wide_integer(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    """Integers that may have more than 64 bits, as text."""
    if values.dtype == pl.String:
        texts = _whole_texts(values, find)
    elif values.dtype.is_float():
        whole = _whole_floats(values, find).to_list()
        texts = pl.Series([None if value is None else str(int(value)) for value in whole], dtype=pl.String)
    else:
        texts = values.cast(pl.String)
        if isinstance(values.dtype, pl.Decimal):
            find.lost(~texts.str.contains(_WHOLE), "it is not a whole number")
            texts = texts.str.replace(r"\..*$", "")
    if column.size is not None:
        low, high = (0, 2**column.size - 1) if column.unsigned else (-(2**column.size // 2), 2**column.size // 2 - 1)
        find.out_of_range(
            pl.Series([text is not None and not low <= int(text) <= high for text in texts], dtype=pl.Boolean)
        )
    return texts


def _integer_bounds(dtype: pl.DataType) -> tuple[int, int] | None:
    if not dtype.is_integer() or dtype == pl.Int128 or dtype == pl.UInt128:
        return None
    bits = int(str(dtype).removeprefix("U").removeprefix("Int"))
    return (0, 2**bits - 1) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _float(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.String:
        texts = values.str.strip_chars()
        numbers = texts.cast(pl.Float64, strict=False)
        find.unparsable(numbers)
        digits = texts.str.contains("[1-9]")
        find.out_of_range(
            digits & (numbers.is_infinite() | (numbers == 0) & ~texts.str.contains("^[+-]?[0.]+([eE]|$)"))
        )
    elif values.dtype.is_float():
        numbers = values
    else:
        numbers = values.cast(pl.Float64)
        back = numbers.cast(values.dtype, strict=False)
        find.lost(back.ne_missing(values), "it has too many digits")
    if column.size == 64 or numbers.dtype == pl.Float32:
        return numbers
    narrow = numbers.cast(pl.Float32)
    find.out_of_range(numbers.is_finite() & ~narrow.is_finite())
    # By their shortest texts: 0.1 is the same number in both sizes.
    suspects = (narrow.cast(pl.Float64) != numbers) & narrow.is_finite() & numbers.is_finite()
    if suspects.any():
        places = suspects.fill_null(False).arg_true()
        texts = narrow.gather(places).cast(pl.String).cast(pl.Float64)
        differing = places.filter(texts != numbers.gather(places))
        find.lost(pl.int_range(len(values), eager=True).is_in(differing.implode()), "it has too many digits")
    return narrow


def _decimal(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    precision, scale = column.precision, column.scale
    texts = values.str.strip_chars() if values.dtype == pl.String else values.cast(pl.String)
    if values.dtype == pl.String or values.dtype.is_float():
        valid = texts.str.contains(_NUMBER)
        special = texts.str.to_lowercase().is_in(["nan", "inf", "-inf", "infinity", "-infinity"])
        find(special.fill_null(False), "out_of_range", f"is not a number that {column.sql_type} holds on every engine")
        texts = texts.set(~valid.fill_null(True), None)
        find.unparsable(texts)
    if precision is None or scale is None or _surely_fits(values.dtype, precision, scale):
        return texts
    # A scale may be negative, or exceed the precision.
    usual = 0 <= scale <= precision
    plain = texts.str.contains(_PLAIN_NUMBER) if usual else texts.is_null()
    parts = texts.str.strip_chars_start("+-")
    whole = parts.str.extract(r"^0*(\d*)").fill_null("").str.len_chars()
    fraction = parts.str.extract(r"\.(\d*?)0*$").fill_null("").str.len_chars()
    outside = plain & (whole > max(precision - scale, 0))
    lost = plain & (fraction > max(scale, 0))
    for place in (~plain).fill_null(False).arg_true():
        outside[place], lost[place] = _exponent_problems(texts[place], precision, scale)
    find.out_of_range(outside)
    least = (
        f"it has more than {scale} digits after the decimal point"
        if scale >= 0
        else f"it is no multiple of {10**-scale}"
    )
    find.lost(lost, least)
    return texts.set((outside | lost).fill_null(False), None)


def _surely_fits(dtype: pl.DataType, precision: int, scale: int) -> bool:
    if isinstance(dtype, pl.Decimal) and dtype.precision:
        return dtype.scale <= scale and dtype.precision - dtype.scale <= precision - scale
    bounds = _integer_bounds(dtype)
    return bounds is not None and max(len(str(abs(bound))) for bound in bounds) <= precision - scale


def _exponent_problems(text: str, precision: int, scale: int) -> tuple[bool, bool]:
    """Whether a number with an exponent is out of range, and whether it has too many digits after the point."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return True, False
    if number == 0:
        return False, False
    _, all_digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    digits = "".join(map(str, all_digits)).rstrip("0")
    exponent += len(all_digits) - len(digits)
    return len(digits) + exponent > precision - scale, -exponent > scale


def _text(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if column.size is not None:
        lengths, unit = (values.str.len_bytes(), "bytes") if column.in_bytes else (values.str.len_chars(), "characters")
        find(lengths > column.size, "too_long", f"is longer than the {column.size} {unit} of {column.sql_type}")
    return values


def _uuid(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    texts = (
        values.bin.encode("hex")
        if values.dtype == pl.Binary
        else (values.str.strip_chars().str.to_lowercase().str.replace(r"^\{(.*)\}$", "${1}"))
    )
    matched = texts.str.contains(_UUID)
    converted = texts.str.replace(_UUID, "${1}-${2}-${3}-${4}-${5}").set(~matched.fill_null(True), None)
    find.unparsable(converted)
    return converted


def _date(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.String:
        dates = values.str.strip_chars().str.to_date("%Y-%m-%d", strict=False)
        find.unparsable(dates)
    else:
        dates = values.cast(pl.Date)
        if values.dtype != pl.Date:
            find.lost(dates.cast(values.dtype).ne_missing(values), "it has a time of day")
    return _within_years(dates, find)


def _within_years(values: pl.Series, find: _Finder) -> pl.Series:
    if values.null_count() == len(values):
        return values
    years = values.dt.year()
    outside = ((years < _YEARS[0]) | (years > _YEARS[1])).fill_null(False)
    find.out_of_range(outside)
    return values.set(outside, None) if outside.any() else values


def _timestamp(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    dtype = canonical(column)
    assert isinstance(dtype, pl.Datetime)
    if values.dtype == pl.String:
        times = _parsed_timestamps(values, dtype)
        find.unparsable(times)
        if dtype.time_unit == "ns":
            # Those outside of the range of nanoseconds wrap around.
            days = _parsed_timestamps(values, pl.Datetime("us", dtype.time_zone)).dt.truncate("1d")
            find.out_of_range(times.dt.truncate("1d").dt.cast_time_unit("us").ne_missing(days) & days.is_not_null())
        digits = column.scale if column.scale is not None else 6
        find.lost(values.str.contains(rf"\.\d{{{digits}}}\d*[1-9]"), f"it has more than {digits} digits of seconds")
    elif values.dtype == pl.Date:
        times = values.cast(pl.Datetime("us"))
    else:
        times = values if dtype.time_zone is None else values.dt.convert_time_zone("UTC")
    converted = _in_unit(times, dtype, column, find)
    return _within_years(converted, find)


def _parsed_timestamps(values: pl.Series, dtype: pl.Datetime) -> pl.Series:
    """Texts in the format of ISO 8601 as timestamps, nulls for others."""
    texts = values.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)[ T]", "${1}T")
    texts = texts.str.replace(r"T(\d\d:\d\d)([+-].*|[Zz]|)$", "T${1}:00${2}")
    unit, zone = dtype.time_unit, dtype.time_zone
    if zone is None:
        texts = texts.str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00:00")
        return texts.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit=unit, strict=False)
    texts = texts.str.replace(r"[Zz]$", "+00:00").str.replace(r"([+-]\d\d)$", "${1}:00")
    return texts.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit=unit, time_zone=zone, strict=False)


def _in_unit(times: pl.Series, dtype: pl.Datetime, column: Column, find: _Finder) -> pl.Series:
    """Times in the unit of the column, with at most as many digits as it has."""
    given = times.dtype
    assert isinstance(given, pl.Datetime)
    per_second = {"ms": 3, "us": 6, "ns": 9}
    digits, most = (
        per_second[given.time_unit],
        min(per_second[dtype.time_unit], 9 if column.scale is None else column.scale),
    )
    if digits > most:
        fraction = times.to_physical() % 10 ** (digits - most)
        find.lost(fraction != 0, f"it has more than {most} digits of seconds")
    converted = times.cast(dtype, strict=False)
    if digits < per_second[dtype.time_unit]:
        # A cast to a smaller unit wraps around.
        back = converted.cast(given)
        find.out_of_range(back.ne_missing(times))
    return converted


def _time(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.String:
        texts = values.str.strip_chars().str.replace(r"^(\d\d:\d\d)$", "${1}:00")
        times = texts.str.to_time("%H:%M:%S%.f", strict=False)
        find.unparsable(times)
    else:
        times = values
    most = 6 if column.scale is None else column.scale
    find.lost(times.to_physical() % 10 ** (9 - most) != 0, f"it has more than {most} digits of seconds")
    return times


def _interval(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.String:
        return values
    assert isinstance(values.dtype, pl.Duration)
    if values.dtype.time_unit == "ns":
        find.lost(values.to_physical() % 1000 != 0, "it has more than 6 digits of seconds")
    micros = values.cast(pl.Duration("us")).to_physical()
    return pl.select(pl.format("{} microseconds", pl.lit(micros))).to_series().set(values.is_null(), None)


def _json(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    if values.dtype == pl.String:
        # The database would not look at a column that is ignored, and refuse the batch for one bad row of others.
        wrong = [place for place, text in enumerate(values) if text is not None and not _is_json(text)]
        return values.set(find.at(wrong, "invalid_text", f"is not valid {column.sql_type}"), None)
    if isinstance(values.dtype, pl.Array):
        values = values.cast(pl.List(values.dtype.inner))
    wrapped = pl.DataFrame({"v": values}).to_struct("v")
    texts = dtypes.encode(wrapped).str.strip_prefix('{"v":').str.strip_suffix("}")
    suspects = texts.str.contains('"-?(NaN|Infinity)"').fill_null(False).arg_true()
    wrong = [place for place in suspects if _has_no_number(values[place])]
    find.at(wrong, "out_of_range", "has a number that JSON cannot represent")
    return texts.set(values.is_null(), None)


def _is_json(text: str) -> bool:
    """Whether a text is JSON, as far as this can find out: the database decides about what is nested too deeply."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        orjson.loads(text)
    except ValueError:
        # Numbers that no double can hold, and surrogates, are left to the database.
        try:
            json.loads(text, parse_constant=refuse)
        except RecursionError:
            return _NO_JSON.search(text) is None
        except ValueError:
            return False
    return True


def _has_no_number(value: Any) -> bool:
    """Whether a value, or a part of it, is NaN or infinite."""
    if isinstance(value, float):
        return not math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, pl.Series | list) else ()
    return any(map(_has_no_number, parts))


def _enum(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    known = values.is_in(pl.Series(column.labels, dtype=pl.String).implode())
    find(~known, "unknown_label", f"is not a label of {column.sql_type}: {', '.join(column.labels[:20])}")
    return values


def _array(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    assert column.element is not None
    if isinstance(values.dtype, pl.Array):
        values = values.cast(pl.List(values.dtype.inner))
    lengths = values.list.len()
    if column.size is not None:
        find(lengths != column.size, "wrong_length", f"does not have {column.size} values")
    inner = values.filter((lengths > 0).fill_null(False)).list.explode()
    frame = pl.DataFrame({"row": pl.int_range(len(values), eager=True), "length": lengths})
    rows = frame.filter(pl.col("length") > 0).select(pl.col("row").repeat_by("length").explode()).to_series()
    converted = find.nested(inner, column.element, rows)
    lists = pl.DataFrame({"row": rows, "item": converted}).group_by("row", maintain_order=True).agg("item")
    joined = frame.join(lists, on="row", how="left", maintain_order="left")
    empty = pl.lit([], dtype=pl.List(converted.dtype))
    return joined.select(pl.when(pl.col("length") == 0).then(empty).otherwise("item")).to_series()


def _vector(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    vectors = values if isinstance(values.dtype, pl.List) else values.cast(pl.List(values.dtype.inner))  # type: ignore[attr-defined]
    if column.size is not None:
        find(vectors.list.len() != column.size, "wrong_length", f"does not have {column.size} values")
    # The digits beyond those of a float are not significant in a vector.
    floats = vectors.cast(pl.List(pl.Float64), strict=False).cast(pl.List(pl.Float32), strict=False)
    gaps = floats.list.eval(pl.element().is_null().any()).list.first()
    given = vectors.list.eval(pl.element().is_null().any()).list.first()
    if column.element is None:
        find(given, "null_in_vector", "contains a null")
    find(gaps & ~given, "invalid_text", "has a value that is not a number")
    return floats


def _struct(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    assert isinstance(values.dtype, pl.Struct)
    given = {one.name for one in values.dtype.fields}
    fields = [
        find.nested(values.struct.field(one.name), one).alias(one.name)
        if one.name in given
        else pl.repeat(None, len(values), dtype=canonical(one), eager=True).alias(one.name)
        for one in column.fields
    ]
    struct = pl.DataFrame(fields).to_struct(values.name)
    return pl.select(pl.when(values.is_not_null()).then(struct)).to_series()


def _map(values: pl.Series, column: Column, find: _Finder) -> pl.Series:
    assert isinstance(values.dtype, pl.Map)
    entry = Column("entry", column.sql_type, "struct", fields=column.fields)
    names = [one.name for one in column.fields]
    given = pl.List(pl.Struct(dict(zip(names, (values.dtype.key, values.dtype.value), strict=True))))
    return _array(values.cast(given), Column(column.name, column.sql_type, "array", element=entry), find)


_CONVERSIONS: dict[str, Callable[[pl.Series, Column, _Finder], pl.Series]] = {
    "boolean": _boolean,
    "integer": _integer,
    "float": _float,
    "decimal": _decimal,
    "text": _text,
    "uuid": _uuid,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamp,
    "time": _time,
    "interval": _interval,
    "json": _json,
    "enum": _enum,
    "array": _array,
    "vector": _vector,
    "struct": _struct,
    "map": _map,
}
