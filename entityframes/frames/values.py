"""Columns of Python values: one dtype for all values of a column, at every depth, and the values that do not fit.

The dtype of a column is the one that is expected, or the one that most of its values have. A value that does not fit
becomes null, and its row gets a problem. Nothing is rounded, cut off or converted to another kind of value: whole
numbers may become floats or decimals if they stay exact; enum members, UUIDs, NumPy scalars and the like are replaced
by the value that they stand for; times with a zone are converted to UTC.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any, Protocol

import numpy as np
import polars as pl

from entityframes.errors import SchemaError
from entityframes.frames.objects import PLAIN, NoValueError, plain, shown
from entityframes.metadata import canonical_json, dtypes
from entityframes.visible import visible

#: The maximum depth of nested values, and the maximum number of distinct keys of the dicts of a column.
MAX_DEPTH = 64
MAX_KEYS = 1_000

#: The largest precision of a decimal.
_DIGITS = 38
#: Decimals whose exponent is further from 0 are not expanded to digits.
_MAX_EXPONENT = 100
#: The maximum number of days of a Duration in microseconds.
_MAX_DAYS = 106_751_990

Rows = Sequence[int]

#: The expected dtype of a column whose values become JSON text, each by itself.
JSON = pl.Object()


@dataclass(frozen=True)
class Path:
    """Where values are, for messages: a column, and the keys that lead to nested values."""

    text: str
    depth: int = 0

    def key(self, name: str) -> Path:
        """The values of a key."""
        return Path(f"{self.text}.{name}" if self.text else name, self.depth + 1)

    def items(self) -> Path:
        """The items of lists."""
        return Path(f"{self.text}[]", self.depth + 1)

    def __str__(self) -> str:
        return visible(self.text)


class Column(Protocol):
    """The values of a column, converted."""

    @property
    def dtype(self) -> pl.DataType:
        """The dtype of the values."""

    def series(self, name: str) -> pl.Series:
        """The values as a Series of `dtype`; a key that a dict lacks is null."""

    def text(self) -> pl.Series:
        """The values as canonical JSON, as `dtypes.encode` writes them; a key that a dict lacks is left out."""


@dataclass(frozen=True)
class Leaf:
    """Values that are not nested."""

    values: pl.Series

    @property
    def dtype(self) -> pl.DataType:
        """The dtype of the values."""
        return self.values.dtype

    def series(self, name: str) -> pl.Series:
        """See `Column`."""
        return self.values.alias(name)

    def text(self) -> pl.Series:
        """See `Column`."""
        return dtypes.json_text(self.values)


@dataclass(frozen=True)
class Object:
    """Dicts."""

    #: Whether each value is a dict, rather than null.
    given: pl.Series
    #: The column of each key, in order of first occurrence.
    fields: dict[str, Column]
    #: For keys that some dicts lack: whether each value lacks it.
    absent: dict[str, pl.Series]

    @property
    def dtype(self) -> pl.DataType:
        """A Struct of all keys."""
        return pl.Struct({name: column.dtype for name, column in self.fields.items()})

    def series(self, name: str) -> pl.Series:
        """See `Column`."""
        columns = {key: column.series(key) for key, column in self.fields.items()}
        made = struct(columns, name, len(self.given))
        return made if self.given.all() else _select(pl.when(self.given).then(made), name)

    def text(self) -> pl.Series:
        """See `Column`."""
        members = self._joined({name: (f"{_quoted(name)}:", self.fields[name].text()) for name in self.fields})
        return _select(pl.when(self.given).then("{" + members + "}").otherwise(pl.lit("null")), "")

    def keys(self) -> pl.Series:
        """The keys of each dict as a JSON array; equal sets of keys have equal text."""
        return _select("[" + self._joined({name: (_quoted(name), None) for name in self.fields}) + "]", "")

    def _joined(self, members: Mapping[str, tuple[str, pl.Series | None]]) -> pl.Expr:
        """The texts of the members that each dict has, ordered by key and separated by commas."""
        parts = [pl.lit(pl.repeat("", len(self.given), dtype=pl.String, eager=True))]
        for name in sorted(members):
            start, text = members[name]
            whole = [pl.lit(start), *([] if text is None else [pl.lit(text)]), pl.lit(",")]
            if name in self.absent:
                parts.append(pl.when(~pl.lit(self.absent[name])).then(pl.concat_str(whole)).otherwise(pl.lit("")))
            else:
                parts += whole
        return pl.concat_str(parts).str.strip_suffix(",")


@dataclass(frozen=True)
class Array:
    """Lists."""

    #: The number of items of each list; null for a null.
    lengths: pl.Series
    #: The items of all lists.
    items: Column
    dtype: pl.DataType

    def series(self, name: str) -> pl.Series:
        """See `Column`."""
        items = self.items.series("items")
        made = self._grouped(items, pl.col("items"), pl.lit([], dtype=pl.List(items.dtype)))
        return made.cast(self.dtype).alias(name)

    def text(self) -> pl.Series:
        """See `Column`."""
        joined = self._grouped(self.items.text().alias("items"), pl.col("items").str.join(","), pl.lit(""))
        return _select(("[" + pl.lit(joined) + "]").fill_null("null"), "")

    def _grouped(self, items: pl.Series, aggregated: pl.Expr, empty: pl.Expr) -> pl.Series:
        """The aggregated items of each list, in order; null for a null."""
        place = np.repeat(np.arange(len(self.lengths), dtype=np.uint32), self.lengths.fill_null(0).to_numpy())
        groups = pl.DataFrame([pl.Series("place", place), items]).group_by("place", maintain_order=True).agg(aggregated)
        each = pl.select(place=pl.int_range(len(self.lengths), dtype=pl.UInt32), length=pl.lit(self.lengths))
        each = each.join(groups, on="place", how="left", maintain_order="left")
        return each.select(pl.when(pl.col("length") == 0).then(empty).otherwise("items")).to_series()


class Document(Leaf):
    """JSON text of any values."""

    def text(self) -> pl.Series:
        """See `Column`."""
        return self.values.fill_null("null")


def struct(columns: Mapping[str, pl.Series], name: str, height: int) -> pl.Series:
    """A Struct Series of columns, of which there may be none."""
    # Of a list of Series, Polars would rename those without a name.
    return (pl.DataFrame(columns) if columns else pl.DataFrame(height=height)).to_struct(name)


def _select(expression: pl.Expr, name: str) -> pl.Series:
    return pl.select(expression.alias(name)).to_series()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Conversion:
    """Converts the values of a page, and collects the problems of its rows."""

    def __init__(self) -> None:
        #: For each row with a value that does not fit: the rule that the first one breaks, and the error.
        self.problems: dict[int, tuple[str, str]] = {}

    def problem(self, row: int, rule: str, error: str) -> None:
        """Record a problem of a row, unless it has one already."""
        self.problems.setdefault(row, (rule, error))

    def column(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None = None) -> Column:
        """Convert the values of a column.

        Args:
            path: where the values are.
            values: the values, of any type.
            rows: the row of each value.
            known: the expected dtype; None or Null to find it.

        Raises:
            SchemaError: the dicts of the column have too many distinct keys.
        """
        if known == JSON:
            return Document(self._documents(path, values, rows))
        values, families = self._by_value(path, values, rows)
        if isinstance(known, pl.Null):
            known = None
        if not families:
            return Leaf(pl.Series([None], dtype=known or pl.Null()).new_from_index(0, len(values)))
        family = _most(families) if known is None else _family_of(known)
        accepted = _ACCEPTED[family]
        if not families.keys() <= accepted:
            expected = _WORDS.get(family, known or _DTYPES.get(family))
            for place, value in enumerate(values):
                if value is not None and _family(value) not in accepted:
                    self._misfit(path, value, rows[place], expected)
                    values[place] = None
        converted = _CONVERTED[family](self, path, values, rows, known)
        return converted if isinstance(converted, Leaf | Object | Array) else Leaf(converted)

    def _misfit(self, path: Path, value: Any, row: int, expected: Any, rule: str = "wrong_dtype") -> None:
        self.problem(row, rule, f"{path} is {shown(value)} ({type(value).__name__}), expected {expected}")

    def _by_value(self, path: Path, values: list[Any], rows: Rows) -> tuple[list[Any], Counter[str]]:
        """The values in plain types, and how many there are of each family."""
        kinds = set(map(type, values))
        made = list(values)
        if not kinds <= PLAIN:
            for place, value in enumerate(values):
                if type(value) not in PLAIN:
                    try:
                        made[place] = plain(value)
                    except NoValueError as error:
                        self.problem(rows[place], "wrong_dtype", f"{path} is {error}")
                        made[place] = None
            kinds = set(map(type, made))
        if len(kinds - {type(None)}) > 1 or dt.datetime in kinds:
            return made, Counter(_family(value) for value in made if value is not None)
        names = [_FAMILIES[kind] for kind in kinds if kind is not type(None)]
        return made, Counter(dict.fromkeys(names, len(made)))

    def _each(
        self, path: Path, values: list[Any], rows: Rows, convert: Callable[[Any], Any], expected: Any
    ) -> list[Any]:
        """Convert each value with a function that raises OverflowError for a value that does not fit."""
        made = []
        for place, value in enumerate(values):
            try:
                made.append(None if value is None else convert(value))
            except OverflowError:
                self._misfit(path, value, rows[place], expected, "out_of_range")
                made.append(None)
        return made

    def _cast(self, path: Path, found: pl.Series, rows: Rows, known: pl.DataType | None) -> pl.Series:
        """Cast values to the expected dtype; a value that it changes does not fit."""
        if known is None or known == found.dtype:
            return found
        made = found.cast(known, strict=False)
        same = made.cast(found.dtype, strict=False).eq_missing(found)
        if known.is_float():
            # The double 0.1 is not the float 0.1, but they are written alike, and JSON has only the text.
            same |= made.cast(pl.String).eq_missing(found.cast(pl.String))
        rule = "out_of_range" if known.is_numeric() else "wrong_dtype"
        for place in (~same).arg_true():
            self._misfit(path, found[place], rows[place], known, rule)
        return made if same.all() else _select(pl.when(same).then(made), "")

    def _documents(self, path: Path, values: list[Any], rows: Rows) -> pl.Series:
        """The JSON text of each value; text in a column of JSON text is JSON already."""
        made: list[str | None] = []
        for place, value in enumerate(values):
            try:
                as_is = value is None or (isinstance(value, str) and path.depth == 1)
                made.append(value if as_is else canonical_json.document(value, plain, canonical=path.depth > 1))
            except (ValueError, TypeError, RecursionError) as error:
                message = f"{path} is {shown(value)} ({type(value).__name__}), which is not JSON: {error}"
                self.problem(rows[place], "invalid_json", message)
                made.append(None)
        return self._texts(path, made, rows, None)

    def _integers(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        if float in set(map(type, values)):
            for place, value in enumerate(values):
                if type(value) is float and value.is_integer():
                    values[place] = int(value)
                elif type(value) is float:
                    self._misfit(path, value, rows[place], known)
                    values[place] = None
        given = [value for value in values if value is not None]
        if known is None:
            low, high = _bounds(pl.Int64())
            known = pl.Int64() if not given or (low <= min(given) and max(given) <= high) else pl.Int128()
        low, high = _bounds(known)
        if given and not (low <= min(given) and max(given) <= high):
            for place, value in enumerate(values):
                if value is not None and not low <= value <= high:
                    self._misfit(path, value, rows[place], known, "out_of_range")
                    values[place] = None
        return pl.Series(values, dtype=known)

    def _floats(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        if int in set(map(type, values)):
            values = self._each(path, values, rows, _exact_float, known or pl.Float64())
        return self._cast(path, pl.Series(values, dtype=pl.Float64), rows, known)

    def _decimals(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        decimals = self._each(path, values, rows, _finite, known or "a number of at most 38 digits")
        expected = known if isinstance(known, pl.Decimal) else pl.Decimal(_DIGITS, _scale(decimals))
        most = 10 ** (expected.precision or _DIGITS)
        for place, value in enumerate(decimals):
            scaled = None if value is None else _scaled(value, expected.scale)
            if value is not None and (scaled is None or abs(scaled) >= most):
                self._misfit(path, value, rows[place], expected, "out_of_range")
                decimals[place] = None
        return pl.Series(decimals, dtype=expected)

    def _texts(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        try:
            found = pl.Series(values, dtype=pl.String)
        except UnicodeEncodeError:
            for place, value in enumerate(values):
                if value is not None and not is_text(value):
                    self.problem(rows[place], "not_utf8", f"{path} is not valid UTF-8")
                    values[place] = None
            found = pl.Series(values, dtype=pl.String)
        return self._cast(path, found, rows, known)

    def _datetimes(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        found = pl.Series(values, dtype=pl.Datetime("us"))
        return self._cast(path, found, rows, known)

    def _instants(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        utc = self._each(path, values, rows, _in_utc, known or _DTYPES["instant"])
        found = pl.Series(utc, dtype=pl.Datetime("us")).dt.replace_time_zone("UTC")
        return self._cast(path, found, rows, known)

    def _durations(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        found = self._each(path, values, rows, _short_duration, known or _DTYPES["duration"])
        return self._cast(path, pl.Series(found, dtype=pl.Duration("us")), rows, known)

    def _times(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        for place, value in enumerate(values):
            if value is not None and value.tzinfo is not None:
                self._misfit(path, value, rows[place], "a time without a zone")
                values[place] = None
        return self._cast(path, pl.Series(values, dtype=pl.Time), rows, known)

    def _simple(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> pl.Series:
        """Values of a type that has one dtype."""
        kind = next((type(value) for value in values if value is not None), type(None))
        dtype = _DTYPES[_FAMILIES[kind]] if kind in _FAMILIES else known
        return self._cast(path, pl.Series(values, dtype=dtype), rows, known)

    def _arrays(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> Array:
        size = known.shape[0] if isinstance(known, pl.Array) else None
        values = self._not_too_deep(path, values, rows)
        for place, value in enumerate(values):
            if value is not None and size is not None and len(value) != size:
                self._misfit(path, value, rows[place], known)
                values[place] = None
        lengths = pl.Series([None if value is None else len(value) for value in values], dtype=pl.UInt32)
        repeated = np.repeat(np.asarray(rows), lengths.fill_null(0).to_numpy()).tolist()
        inner = dtypes.instance(known.inner) if isinstance(known, pl.List | pl.Array) else None
        flat = list(chain.from_iterable(value for value in values if value is not None))
        items = self.column(path.items(), flat, repeated, inner)
        return Array(lengths, items, pl.List(items.dtype) if size is None else pl.Array(items.dtype, size))

    def _objects(self, path: Path, values: list[Any], rows: Rows, known: pl.DataType | None) -> Object:
        inner = known.fields if isinstance(known, pl.Struct) else []
        return self.objects(path, values, rows, {each.name: dtypes.instance(each.dtype) for each in inner})

    def objects(self, path: Path, values: list[Any], rows: Rows, known: Mapping[str, pl.DataType]) -> Object:
        """Convert dicts; see `column`. `known` has the expected dtypes of some keys."""
        values = self._not_too_deep(path, values, rows)
        counts = Counter(chain.from_iterable(value for value in values if value is not None))
        if unusable := {name for name in counts if not _is_key(name)}:
            for place, value in enumerate(values):
                if value is not None and (wrong := unusable.intersection(value)):
                    self._bad_key(path, next(iter(wrong)), rows[place])
                    values[place] = {name: inner for name, inner in value.items() if name not in unusable}
            counts = Counter({name: number for name, number in counts.items() if name not in unusable})
        if len(known.keys() | counts.keys()) > max(len(known), MAX_KEYS):
            where = f"the dicts of {path}" if path.text else "the rows"
            raise SchemaError(
                f"{where} have {len(counts):,} distinct keys, over the limit of {MAX_KEYS:,}",
                advice="pass them as JSON text (json.dumps), or as a list of dicts with the fields key and value",
            )
        given = pl.Series([value is not None for value in values], dtype=pl.Boolean)
        number = given.sum()
        columns = {
            name: self.column(
                path.key(name), [None if value is None else value.get(name) for value in values], rows, known.get(name)
            )
            for name in counts
        }
        absent = {
            name: pl.Series([value is None or name not in value for value in values], dtype=pl.Boolean)
            for name, count in counts.items()
            if count < number
        }
        return Object(given, columns, absent)

    def _not_too_deep(self, path: Path, values: list[Any], rows: Rows) -> list[Any]:
        """The values, unless this is the place where they are too deep."""
        if path.depth <= MAX_DEPTH:
            return values
        for place, value in enumerate(values):
            if value is not None:
                error = f"{str(path)[:40]}... is nested deeper than {MAX_DEPTH} levels"
                self.problem(rows[place], "too_deep", error)
        return [None] * len(values)

    def _bad_key(self, path: Path, key: Any, row: int) -> None:
        where = f"{path} has the key" if path.text else "the row has the key"
        why = "which is not valid text" if isinstance(key, str) else "which is not text"
        self.problem(row, "invalid_key", f"{where} {shown(key)} ({type(key).__name__}), {why}")


#: The types of values that are converted without a look at each of them, by family.
_FAMILIES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "float",
    Decimal: "decimal",
    str: "text",
    bytes: "binary",
    dt.date: "date",
    dt.datetime: "datetime",
    dt.time: "time",
    dt.timedelta: "duration",
    list: "array",
    dict: "object",
}

#: The families of the values that a column of a family may have.
_ACCEPTED: dict[str, set[str]] = {name: {name} for name in [*_FAMILIES.values(), "instant"]}
_ACCEPTED["integer"] = {"integer", "float"}
_ACCEPTED["float"] = {"float", "integer"}
_ACCEPTED["decimal"] = {"decimal", "integer"}

_CONVERTED: dict[str, Callable[..., Any]] = {
    "boolean": Conversion._simple,
    "integer": Conversion._integers,
    "float": Conversion._floats,
    "decimal": Conversion._decimals,
    "text": Conversion._texts,
    "binary": Conversion._simple,
    "date": Conversion._simple,
    "datetime": Conversion._datetimes,
    "instant": Conversion._instants,
    "time": Conversion._times,
    "duration": Conversion._durations,
    "array": Conversion._arrays,
    "object": Conversion._objects,
}

#: The dtype of each family, if no other is expected.
_DTYPES: dict[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "binary": pl.Binary(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
    "instant": pl.Datetime("us", "UTC"),
    "time": pl.Time(),
    "duration": pl.Duration("us"),
}
#: What is expected of a family, if that is not its dtype.
_WORDS = {"decimal": "a Decimal", "array": "a list", "object": "a dict"}


def _family(value: Any) -> str:
    if type(value) is dt.datetime:
        return "datetime" if value.tzinfo is None else "instant"
    return _FAMILIES[type(value)]


def _most(families: Counter[str]) -> str:
    """The family of most values, of which numbers may have several; of equally many, the first."""
    counts = dict(families)
    if "integer" in counts and ("float" in counts or "decimal" in counts):
        # The order is that of the first number.
        order = list(counts)
        wide = max((name for name in order if name in ("float", "decimal")), key=lambda name: counts[name])
        counts = {
            wide if name == "integer" else name: counts["integer"] + counts[wide] if name in ("integer", wide) else n
            for name, n in counts.items()
        }
    return max(counts, key=lambda name: counts[name])


def _family_of(dtype: pl.DataType) -> str:
    """The family of the values of a dtype."""
    if isinstance(dtype, pl.Datetime):
        return "datetime" if dtype.time_zone is None else "instant"
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "float"
    names: dict[type[pl.DataType], str] = {
        pl.Boolean: "boolean",
        pl.Decimal: "decimal",
        pl.String: "text",
        pl.Categorical: "text",
        pl.Enum: "text",
        pl.Binary: "binary",
        pl.Date: "date",
        pl.Time: "time",
        pl.Duration: "duration",
        pl.List: "array",
        pl.Array: "array",
        pl.Struct: "object",
    }
    return names[type(dtype)]


def _bounds(dtype: pl.DataType) -> tuple[int, int]:
    """The smallest and the largest value of an integer dtype."""
    bits = int(type(dtype).__name__.removeprefix("U").removeprefix("Int"))
    return (0, (1 << bits) - 1) if dtype.is_unsigned_integer() else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _exact_float(value: float) -> float:
    number = float(value)
    if number != value and type(value) is int:
        raise OverflowError
    return number


def _finite(value: int | Decimal) -> Decimal:
    number = Decimal(value)
    if not number.is_finite() or abs(number.adjusted()) > _MAX_EXPONENT or _places(number) > _MAX_EXPONENT:
        raise OverflowError
    return number


def _places(value: Decimal) -> int:
    """The number of digits after the point."""
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _scaled(value: Decimal, scale: int) -> int | None:
    """The value times 10 ** scale; None if that is not a whole number."""
    numerator, denominator = value.as_integer_ratio()
    whole, rest = divmod(numerator * 10**scale, denominator)
    return None if rest else whole


def _scale(decimals: Iterable[Decimal | None]) -> int:
    """The scale with which most decimals fit into 38 digits."""
    shapes = Counter((_places(value), max(0, value.adjusted() + 1)) for value in decimals if value is not None)
    if not shapes:
        return 0
    scale, whole = max(places for places, _ in shapes), max(digits for _, digits in shapes)
    if scale + whole <= _DIGITS:
        return scale

    def fitting(scale: int) -> int:
        return sum(n for (places, digits), n in shapes.items() if places <= scale and digits + scale <= _DIGITS)

    return max(sorted({min(places, _DIGITS) for places, _ in shapes}, reverse=True), key=fitting)


def _in_utc(value: dt.datetime) -> dt.datetime:
    return value.astimezone(dt.UTC).replace(tzinfo=None)


def _short_duration(value: dt.timedelta) -> dt.timedelta:
    if abs(value.days) > _MAX_DAYS:
        raise OverflowError
    return value


def is_text(value: str) -> bool:
    """Whether a string is valid Unicode, without lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_key(name: Any) -> bool:
    return type(name) is str and (name.isascii() or is_text(name)) and "\0" not in name
