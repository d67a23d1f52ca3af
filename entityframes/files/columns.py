"""Type inference for columns of text: numbers if every value round-trips, else text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from math import inf

import polars as pl

#: Integers up to this one are represented exactly by a double.
EXACT = 1 << 53

#: Number of non-numeric values after which a mostly non-numeric column is text, and is not examined any further.
_ENOUGH = 1_000

#: Size of a chunk up to which Python is faster than Polars.
_FEW = 32
#: An integer and a fraction that round-trip through a double, and a character that no number or boolean begins with.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,14}", re.ASCII)
_PLAIN_FRACTION = re.compile(r"-?(?:0|[1-9][0-9]{0,7})\.[0-9]{0,5}[1-9]", re.ASCII)
#: A number in scientific notation, and one with few enough digits that it round-trips.
_SCIENTIFIC = r"^-?[1-9](?:\.[0-9]*[1-9])?e[+-](?:[0-9]{2}|[1-9][0-9]{2})$"
_SHORT_SCIENTIFIC = r"^-?[1-9](?:\.[0-9]{0,13}[1-9])?e[+-][0-9]{2}$"
_WORD = re.compile(r"[^-+.0-9iInNtTfF\s,]", re.ASCII)


class ColumnStats:
    """Counts of the kinds of values in a column of text."""

    def __init__(self, decimal_comma: bool = False) -> None:
        self.decimal_comma = decimal_comma
        self.values = 0
        self.whole = 0
        self.fractions = 0
        #: Values that are numbers but do not round-trip: 01234, 1.10, 1E5.
        self.altered = 0
        #: Values that are not numbers: true and false, and all others.
        self.booleans = 0
        self.odd = 0
        #: Whether there is an integer that a double cannot represent exactly.
        self.large = False
        #: The first value of each kind, with its place.
        self.first: dict[str, tuple[str, str]] = {}

    @property
    def is_text(self) -> bool:
        """Whether most values are neither numbers nor booleans."""
        return self.odd > _ENOUGH and 2 * self.odd > self.values

    def update(self, values: pl.Series, file: str, lines: Sequence[int]) -> None:
        """Count values, which are on these lines of a file."""
        if self.is_text:
            self.values += len(values) - values.null_count()
            return
        present = values.is_not_null()
        given = values.filter(present) if values.null_count() else values
        self.values += len(given)
        if given.is_empty():
            return
        if len(given) <= _FEW and self._few(given.to_list(), values, file, lines):
            return
        numbers = given.cast(pl.Int64, strict=False)
        whole = (numbers.cast(pl.String) == given).fill_null(False)
        self.whole += (counted := int(whole.sum()))
        largest = numbers.filter(whole) if counted < len(given) else numbers
        if counted:
            low, high = largest.min(), largest.max()
            self.large = self.large or int(low) < -EXACT or int(high) > EXACT  # type: ignore[arg-type]
        if counted == len(given):
            return
        self._others(given.filter(~whole), _Places(values, present, whole, file, lines))

    def _few(self, given: list[str], values: pl.Series, file: str, lines: Sequence[int]) -> bool:
        """Count plain numbers and words in a small chunk; False if there are other values."""
        kinds = []
        for text in given:
            if _WHOLE.fullmatch(text):
                kinds.append("whole")
            elif not self.decimal_comma and _PLAIN_FRACTION.fullmatch(text) and (abs(float(text)) >= 1e-4):
                kinds.append("fraction")
            elif _WORD.match(text):
                kinds.append("odd")
            else:
                return False
        self.whole += kinds.count("whole")
        self.fractions += kinds.count("fraction")
        self.odd += kinds.count("odd")
        for kind in ("fraction", "odd"):
            if kind in kinds and kind not in self.first:
                at = kinds.index(kind)
                row = int(values.is_not_null().arg_true()[at])
                self.first[kind] = (given[at], f"{file}, line {lines[row]:,}")
        return True

    def _others(self, rest: pl.Series, places: _Places) -> None:
        """Count values that are not plain integers."""
        points = rest
        if self.decimal_comma:
            comma = rest.str.contains(r"^-?\d+,\d+$")
            points = rest.str.replace(",", ".", literal=True).zip_with(comma, pl.Series([None], dtype=pl.String))
        floats = points.cast(pl.Float64, strict=False)
        exact = (floats.cast(pl.String) == points).fill_null(False) | _scientific(points)
        booleans = rest.is_in(["true", "false"])
        altered = floats.is_not_null() & ~exact
        odd = ~(exact | altered | booleans)
        self.fractions += int(exact.sum())
        self.booleans += int(booleans.sum())
        self.altered += int(altered.sum())
        self.odd += int(odd.sum())
        for kind, flags in (("altered", altered), ("odd", odd), ("fraction", exact)):
            if kind not in self.first and flags.any():
                at = int(flags.arg_true()[0])
                self.first[kind] = (rest[at], places.of(at))

    def merge(self, other: ColumnStats) -> None:
        """Add the counts of another file."""
        for name in ("values", "whole", "fractions", "altered", "booleans", "odd"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.large = self.large or other.large
        self.first = {**other.first, **self.first}

    def dtype(self) -> pl.DataType:
        """The dtype of the column: Null if it has no values, a number if every value round-trips, else text."""
        if not self.values:
            return pl.Null()
        if self.odd or self.altered or self.is_text:
            return pl.String()
        if self.booleans:
            return pl.Boolean() if self.booleans == self.values else pl.String()
        if self.whole == self.values:
            return pl.Int64()
        return pl.String() if self.large else pl.Float64()

    @property
    def number(self) -> pl.DataType | None:
        """The numeric dtype of the values, even if they do not round-trip; None if one is not a number."""
        if not self.values or self.odd or self.booleans or self.is_text:
            return None
        return pl.Int64() if self.whole == self.values else pl.Float64()

    def expression(self, name: str, dtype: pl.DataType) -> pl.Expr:
        """An expression for the column with a dtype."""
        text = pl.col(name)
        if self.decimal_comma and dtype.is_float():
            text = text.str.replace(",", ".", literal=True)
        if isinstance(dtype, pl.Boolean):
            return (text == "true").alias(name)
        return text.cast(dtype).alias(name)


def _scientific(texts: pl.Series) -> pl.Series:
    """Whether texts are numbers in the scientific notation of Python, pandas and R, without a superfluous digit."""
    exact = texts.str.contains(_SHORT_SCIENTIFIC).fill_null(False)
    longer = texts.str.contains(_SCIENTIFIC).fill_null(False) & ~exact
    for place in longer.arg_true():
        number = float(texts[place])
        exact[place] = 0 < abs(number) < inf and _in_scientific_notation(number) == texts[place]
    return exact


def _in_scientific_notation(number: float) -> str:
    """A number with the fewest digits that round-trip, such as ``-1.5e-07`` or ``1e+05``."""
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    first, *rest = map(str, digits)
    fraction = f".{''.join(rest)}" if rest else ""
    return f"{'-' * sign}{first}{fraction}e{int(exponent) + len(rest):+03d}"


class _Places:
    """The positions of the values of a filtered column."""

    def __init__(
        self, values: pl.Series, present: pl.Series, whole: pl.Series, file: str, lines: Sequence[int]
    ) -> None:
        self._values, self._present, self._whole, self._file, self._lines = values, present, whole, file, lines

    def of(self, at: int) -> str:
        """File and line of the value at a position among those that are not plain integers."""
        rows = self._present.arg_true() if self._values.null_count() else pl.int_range(len(self._values), eager=True)
        row = int(rows.filter(~self._whole)[at])
        return f"{self._file}, line {self._lines[row]:,}"
