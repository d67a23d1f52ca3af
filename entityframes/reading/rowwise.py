"""Whether a filter can be applied to a part of the rows: whether it looks at each row by itself."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

#: Larger expressions are not looked at; they hold long lists.
_MAX_BYTES = 4_000_000

#: Functions of Polars whose value in a row depends on that row alone, as its JSON names them. What is not listed counts
#: as a function of the whole column, also what a later version brings.
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
    """Whether the value in each row follows from that row alone, so that a part of the rows gives the same.

    Only for what is known to be so; functions in Python, for one, are not.
    """
    try:
        if len(expression.meta.serialize()) > _MAX_BYTES or not expression.meta.root_names():
            return False
        return _follows(json.loads(expression.meta.serialize(format="json")))
    except (Exception, pl.exceptions.PanicException):
        return False


def _follows(tree: Any) -> bool:
    if not isinstance(tree, dict) or len(tree) != 1:
        return False
    [(kind, inner)] = tree.items()
    if kind == "Column":
        return True
    if kind == "Literal":
        # A Series has a row of its own for each row.
        return isinstance(inner, dict) and set(inner) <= {"Scalar", "Dyn"}
    if kind == "Cast":
        return _follows(inner["expr"])
    if kind == "Alias":
        return _follows(inner[0])
    if kind == "BinaryExpr":
        return _follows(inner["left"]) and _follows(inner["right"])
    if kind == "Ternary":
        return all(_follows(inner[part]) for part in ("predicate", "truthy", "falsy"))
    return kind == "Function" and _is_known(inner["function"]) and all(map(_follows, inner["input"]))


def _is_known(function: Any) -> bool:
    kind, name = "", function
    if isinstance(function, dict):
        [(kind, name)] = function.items()
        if kind not in _KNOWN:
            kind, name = "", kind
        elif isinstance(name, dict):
            [name] = name
    return name in _KNOWN[kind].split()
