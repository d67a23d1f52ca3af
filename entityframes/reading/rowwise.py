"""Detects filters that are evaluated row by row, and can thus be applied to a subset of the rows."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

#: Larger expressions are not analyzed; they contain long lists.
_MAX_BYTES = 4_000_000

#: Functions of Polars whose value depends on the same row only, by their names in its JSON. All others, including those
#: of later versions, are treated as functions of the whole column.
_KNOWN = {
    "": "Abs AsStruct Ceil Clip Coalesce Exp FillNull Floor Hash Log Log1p MaxHorizontal MinHorizontal MeanHorizontal "
    "Negate Reinterpret Round RoundSF Sign SumHorizontal",
    "Boolean": "AllHorizontal AnyHorizontal IsBetween IsClose IsFinite IsIn IsInfinite IsNan IsNotNan IsNotNull IsNull "
    "Not",
    "StringExpr": "ConcatHorizontal Contains ContainsAny CountMatches EndsWith EscapeRegex Extract Find Format Head "
    "LenBytes LenChars Lowercase PadEnd PadStart Replace Reverse Slice StartsWith StripChars StripCharsEnd "
    "StripCharsStart StripPrefix StripSuffix Tail Titlecase Uppercase ZFill",
    "TemporalExpr": "Century ConvertTimeZone Date Day Hour IsLeapYear IsoYear Microsecond Millennium Millisecond "
    "Minute Month Nanosecond OrdinalDay Quarter Second Time TimeStamp ToString TotalDays TotalHours TotalMicroseconds "
    "TotalMilliseconds TotalMinutes TotalNanoseconds TotalSeconds Truncate Week WeekDay Year",
    "ListExpr": "Contains Get Length Max Mean Min Sum",
    "StructExpr": "FieldByName",
}


def is_row_by_row(expression: pl.Expr) -> bool:
    """Whether the value in each row depends on that row only, so that a subset of the rows has the same values.

    False for everything that is not known to do so, such as Python functions.
    """
    try:
        if len(expression.meta.serialize()) > _MAX_BYTES or not expression.meta.root_names():
            return False
        return _is_elementwise(json.loads(expression.meta.serialize(format="json")))
    except (Exception, pl.exceptions.PanicException):
        return False


def _is_elementwise(tree: Any) -> bool:
    if not isinstance(tree, dict) or len(tree) != 1:
        return False
    [(kind, inner)] = tree.items()
    if kind == "Column":
        return True
    if kind == "Literal":
        # A literal Series has one value for each row.
        return isinstance(inner, dict) and set(inner) <= {"Scalar", "Dyn"}
    if kind == "Cast":
        return _is_elementwise(inner["expr"])
    if kind == "Alias":
        return _is_elementwise(inner[0])
    if kind == "BinaryExpr":
        return _is_elementwise(inner["left"]) and _is_elementwise(inner["right"])
    if kind == "Ternary":
        return all(_is_elementwise(inner[part]) for part in ("predicate", "truthy", "falsy"))
    return kind == "Function" and _is_known(inner["function"]) and all(map(_is_elementwise, inner["input"]))


def _is_known(function: Any) -> bool:
    kind, name = "", function
    if isinstance(function, dict):
        [(kind, name)] = function.items()
        if kind not in _KNOWN:
            kind, name = "", kind
        elif isinstance(name, dict):
            [name] = name
    return name in _KNOWN[kind].split()
