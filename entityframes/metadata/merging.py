"""Splitting and merging canonical JSON objects by their top-level fields; the text of values is not changed."""

from __future__ import annotations

import json
import re
from json import JSONDecoder
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import c_make_scanner  # type: ignore[attr-defined]

import polars as pl

from entityframes.errors import SchemaError
from entityframes.metadata.canonical_json import canonical_json

# Numbers are not parsed: only the end of each value is needed.
_scan = c_make_scanner(JSONDecoder(parse_float=str, parse_int=str))

#: The end of a member whose value is null. No member with a string, array or object can end like this.
_NULL = ":null"


def members(text: str) -> dict[str, str]:
    """The members of a canonical JSON object by name, each as its text, such as ``"n":1``."""
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
        # Not written by this package: convert it to canonical JSON first.
        canonical, error, _ = canonical_json([text])
        if canonical[0] is None or canonical[0] == text:
            raise SchemaError(f"stored metadata cannot be merged: {error[0]}") from None
        return members(canonical[0])


def merged(given: str, stored: str, *, absent: str, nulls: str) -> str:
    """The metadata of an entity after an update by a row.

    Args:
        given: the metadata of the row, canonical.
        stored: the metadata of the entity, canonical.
        absent: "keep" keeps the fields that the row does not have, "clear" drops them.
        nulls: "keep" keeps the stored value of a field that is null in the row, "write" sets it to null.
    """
    new, old = members(given), members(stored)
    if nulls == "keep":
        kept = old if absent == "keep" else {name: old[name] for name in new.keys() & old.keys()}
        new = kept | {name: member for name, member in new.items() if not member.endswith(_NULL)}
    elif absent == "keep":
        new = old | new
    return "{" + ",".join([new[name] for name in sorted(new)]) + "}"


def merged_texts(given: pl.Series, stored: pl.Series, *, absent: str, nulls: str) -> pl.Series:
    """`merged` for each row; rows without stored metadata (null) are returned as given."""
    places = (given != stored).fill_null(False).arg_true()
    if not len(places):
        return given
    news, olds = given.gather(places), stored.gather(places)
    texts = _merged_columns(_columns(news), _columns(olds), absent, nulls)
    if texts is None:
        pairs = zip(news.to_list(), olds.to_list(), strict=True)
        texts = pl.Series([merged(new, old, absent=absent, nulls=nulls) for new, old in pairs], dtype=pl.String)
    return given.clone().scatter(places, texts).alias(given.name)


def _merged_columns(new: pl.DataFrame | None, old: pl.DataFrame | None, absent: str, nulls: str) -> pl.Series | None:
    """`merged`, if all rows have the same fields and all entities have the same fields; otherwise None."""
    if new is None or old is None or (nulls == "keep" and not set(new.columns) <= set(old.columns)):
        return None
    values = dict(zip(new.columns, new.get_columns(), strict=True))
    if nulls == "keep":
        values = {name: old[name].zip_with(value == "null", value) for name, value in values.items()}
    if absent == "keep":
        values = dict(zip(old.columns, old.get_columns(), strict=True)) | values
    parts: list[pl.Expr] = []
    for name in sorted(values):
        parts += [pl.lit(("," if parts else "{") + _quoted(name) + ":"), pl.lit(values[name])]
    if not parts:
        return pl.Series(["{}"]).new_from_index(0, new.height)
    return new.select(pl.concat_str(*parts, pl.lit("}"))).to_series()


def differences(old: pl.Series, new: pl.Series) -> pl.DataFrame:
    """The top-level fields in which canonical JSON objects differ.

    Returns:
        ``place`` UInt32 (index of the pair), ``field``, ``old`` and ``new`` String (JSON text, null if the field is
        missing); ordered by place and field.
    """
    differ, empty = old != new, old == "{}"
    found = [pl.DataFrame(schema=_DIFFERENCE)]
    for mask in (differ & empty, differ & ~empty):
        places = mask.arg_true()
        if len(places):
            befores, afters = old.gather(places), new.gather(places)
            each = _different_columns(_columns(befores), _columns(afters))
            each = _different_members(befores, afters) if each is None else each
            found.append(each.with_columns(place=places.gather(each["place"]).cast(pl.UInt32)))
    return pl.concat(found).sort("place", maintain_order=True)


_DIFFERENCE = {"place": pl.UInt32, "field": pl.String, "old": pl.String, "new": pl.String}


def _different_columns(old: pl.DataFrame | None, new: pl.DataFrame | None) -> pl.DataFrame | None:
    """`differences`, if all old objects have the same fields, and so have all new objects; otherwise None."""
    if old is None or new is None:
        return None
    none = pl.Series([None], dtype=pl.String).new_from_index(0, new.height)
    found = []
    for name in sorted({*old.columns, *new.columns}):
        before = old[name] if name in old.columns else none
        after = new[name] if name in new.columns else none
        places = before.ne_missing(after).arg_true()
        columns = [places.alias("place"), before.gather(places).alias("old"), after.gather(places).alias("new")]
        found.append(pl.DataFrame(columns).select("place", pl.lit(name).alias("field"), "old", "new"))
    return pl.concat(found) if found else pl.DataFrame(schema=_DIFFERENCE)


def _different_members(old: pl.Series, new: pl.Series) -> pl.DataFrame:
    places: list[int] = []
    fields: list[str] = []
    befores: list[str | None] = []
    afters: list[str | None] = []
    for place, (before, after) in enumerate(zip(old.to_list(), new.to_list(), strict=True)):
        was, now = members(before), members(after)
        for name in sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
            places.append(place)
            fields.append(name)
            befores.append(_value(was.get(name)))
            afters.append(_value(now.get(name)))
    columns = {"place": places, "field": fields, "old": befores, "new": afters}
    return pl.DataFrame(columns, _DIFFERENCE)


def _value(member: str | None) -> str | None:
    return None if member is None else member[scanstring(member, 1)[1] + 1 :]


#: The JSON text of a value that is nested at most two levels deep. Other objects are split one by one.
_STRING = r'"(?:[^"\\]|\\.)*"'
_FLAT = r'[\[{](?:[^"\[\]{}]|' + _STRING + r")*[\]}]"
_NESTED = r'[\[{](?:[^"\[\]{}]|' + _STRING + "|" + _FLAT + r")*[\]}]"
_VALUE = "(" + _STRING + r'|[^"\[\]{},]+|' + _NESTED + ")"
#: The minimum number of objects and the maximum number of fields for splitting with a regular expression; other objects
#: are split one by one.
_MANY = 100
_FEW_FIELDS = 64


def _columns(texts: pl.Series) -> pl.DataFrame | None:
    """The values (JSON text) of objects, if all have the same fields and none is deeply nested; otherwise None."""
    if len(texts) < _MANY:
        return None
    names = list(members(texts[0]))
    if not names or len(names) > _FEW_FIELDS:
        same = not names and (texts == "{}").all()
        return pl.DataFrame(height=len(texts)) if same else None
    pattern = ",".join(re.escape(_quoted(name)) + ":" + _VALUE for name in names)
    found = texts.str.extract_groups(r"^\{" + pattern + r"\}$").struct.unnest()
    if found.to_series(0).null_count():
        return None
    found.columns = names
    return found


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
