"""Canonical JSON objects taken apart and merged by their top-level fields; values stay the text that they are."""

from __future__ import annotations

from collections.abc import Iterable
from json import JSONDecoder
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import c_make_scanner  # type: ignore[attr-defined]

import polars as pl

from entityframes.canonical import canonical_json
from entityframes.errors import SchemaError

# Numbers are not looked at: what counts is where a value ends.
_scan = c_make_scanner(JSONDecoder(parse_float=str, parse_int=str))

#: How a member ends whose value is null: no text, array or object ends so.
_NULL = ":null"


def members(text: str) -> dict[str, str]:
    """The members of a canonical JSON object, each as the text that it has there, such as ``"n":1``, by its name."""
    found: dict[str, str] = {}
    if text == "{}":
        return found
    start = 1
    try:
        while True:
            name, colon = scanstring(text, start + 1)
            end = _scan(text, colon + 1)[1]
            found[name] = text[start:end]
            if text[end] != ",":
                return found
            start = end + 1
    except (StopIteration, ValueError, IndexError):
        # Written past the store: brought into its form first.
        canonical, error, _ = canonical_json([text])
        if canonical[0] is None or canonical[0] == text:
            raise SchemaError(f"stored metadata cannot be merged with: {error[0]}") from None
        return members(canonical[0])


def merged(given: str, stored: str, *, absent: str, nulls: str) -> str:
    """What the metadata of an entity comes to when a row is written over it.

    Args:
        given: the row's metadata, canonical.
        stored: the entity's.
        absent: "keep" leaves the fields that the row does not carry as they are, "clear" drops them.
        nulls: "keep" leaves a field alone that is null in the row, "write" makes it null.
    """
    new, old = members(given), members(stored)
    if nulls == "keep":
        kept = old if absent == "keep" else {name: old[name] for name in new.keys() & old.keys()}
        new = kept | {name: member for name, member in new.items() if not member.endswith(_NULL)}
    elif absent == "keep":
        new = old | new
    return "{" + ",".join([new[name] for name in sorted(new)]) + "}"


def merged_texts(given: pl.Series, stored: pl.Series, *, absent: str, nulls: str) -> pl.Series:
    """`merged` for each row; where nothing is stored (null), what is given."""
    texts = [
        new if old is None or old == new else merged(new, old, absent=absent, nulls=nulls)
        for new, old in zip(given.to_list(), stored.to_list(), strict=True)
    ]
    return pl.Series(given.name, texts, dtype=pl.String)


def differences(old: Iterable[str], new: Iterable[str]) -> pl.DataFrame:
    """The top-level fields in which canonical JSON objects differ.

    Returns:
        ``place`` UInt32 (of the pair), ``field``, ``old`` and ``new`` String (JSON text, null where the field is not
        there); ordered by place and field.
    """
    places: list[int] = []
    fields: list[str] = []
    befores: list[str | None] = []
    afters: list[str | None] = []
    for place, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        was, now = members(before), members(after)
        for name in sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
            places.append(place)
            fields.append(name)
            befores.append(_value(was.get(name)))
            afters.append(_value(now.get(name)))
    columns = {"place": places, "field": fields, "old": befores, "new": afters}
    return pl.DataFrame(columns, {"place": pl.UInt32, "field": pl.String, "old": pl.String, "new": pl.String})


def _value(member: str | None) -> str | None:
    return None if member is None else member[scanstring(member, 1)[1] + 1 :]
