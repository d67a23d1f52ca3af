"""Reads of tables: lookups by key, and scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import polars as pl

from entityframes.engines.tables import Column, Relation, TableEngine, named
from entityframes.errors import DatabaseError, SchemaError
from entityframes.frames.records import are_records
from entityframes.frames.sources import as_frame
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.threads import Submit, map_concurrently

#: Turns the columns of a key into values that the database compares, and tells which rows are valid.
Keys = Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.Series]]

#: The maximum number of keys in a query.
_LOOKUP_ROWS = 50_000
#: The maximum number of tables that a query counts.
_COUNTED_AT_ONCE = 50


def tables(engine: TableEngine) -> pl.DataFrame:
    """The tables of the user: small ones are counted, and for others the estimate of the database is returned.

    Returns:
        table, key (null if it has no primary key), rows UInt64 (null if it is not known), exact (whether they were
        counted).
    """
    found = engine.tables().with_row_index("position")
    counts: dict[int, int] = {}
    for part in found.filter("small").iter_slices(_COUNTED_AT_ONCE):
        # If one of them is locked, or larger than it seems, their estimates remain.
        with suppress(DatabaseError):
            counts.update(zip(part["position"], engine.counts(part["name"].to_list()), strict=True))
    rows = [counts.get(position, estimate) for position, estimate in found.select("position", "rows").iter_rows()]
    return found.select(
        "table", "key", pl.Series("rows", rows, dtype=pl.UInt64), exact=pl.col("position").is_in(list(counts))
    )


def are_values(keys: Any) -> bool:
    """Whether keys are the values of one column, rather than a frame or a list of dicts or other objects."""
    return isinstance(keys, pl.Series | list | tuple) and not are_records(keys)


def given_keys(relation: Relation, keys: Any) -> pl.DataFrame:
    """The columns of the key in a frame, or of a Series for a key of one column.

    Raises:
        SchemaError: a column is missing.
    """
    if are_values(keys) and len(relation.key) == 1:
        keys = pl.Series(relation.key[0], keys).to_frame()
    frame = as_frame(keys)
    if missing := [name for name in relation.key if name not in frame.columns]:
        raise SchemaError(f"the frame lacks {', '.join(map(repr, missing))} of the key of {relation.name}")
    return frame.select(relation.key)


def exists(
    engine: TableEngine, relation: Relation, keys: pl.DataFrame, usable: Keys, submit: Submit, progress: Progress,
    interrupt: Interrupt,
) -> pl.Series:  # fmt: skip
    """Whether each key is stored."""
    query = partial(engine.existing, relation)
    found = _looked_up("exists", query, keys, usable, submit, progress, interrupt)
    there = pl.int_range(keys.height, dtype=pl.UInt32, eager=True).is_in(found["position"].implode())
    return there.alias("exists")


def get(
    engine: TableEngine, relation: Relation, keys: pl.DataFrame, usable: Keys, submit: Submit, progress: Progress,
    interrupt: Interrupt,
) -> pl.DataFrame:  # fmt: skip
    """The key as given, ``found`` and the other columns of each key, in input order."""
    columns = [column for column in relation.columns if column.name not in relation.key]
    query = partial(engine.lookup, relation, columns)
    found = _looked_up("get", query, keys, usable, submit, progress, interrupt)
    positions = pl.DataFrame({"position": pl.int_range(keys.height, dtype=pl.UInt32, eager=True)})
    joined = positions.join(found.with_columns(found=pl.lit(True)), on="position", how="left", maintain_order="left")
    flag = "found" if "found" not in relation.by_name else "found:"
    values = named(joined, columns) if found.width > 1 or not columns else _no_values(keys.height, columns)
    return keys.hstack([joined["found"].fill_null(False).alias(flag), *values.get_columns()])


def _no_values(height: int, columns: Sequence[Column]) -> pl.DataFrame:
    nulls = (pl.Series(column.name, [None], dtype=column.dtype) for column in columns)
    return pl.DataFrame([null.new_from_index(0, height) for null in nulls])


def _looked_up(
    what: str, query: Callable[[pl.DataFrame], pl.DataFrame], keys: pl.DataFrame, usable: Keys, submit: Submit,
    progress: Progress, interrupt: Interrupt,
) -> pl.DataFrame:  # fmt: skip
    """The result of a lookup of all usable keys, in several queries if there are many, for a call of this name."""
    converted, valid = usable(keys)
    numbered = converted.with_row_index("position").filter(valid)

    def look_up(part: pl.DataFrame) -> pl.DataFrame:
        interrupt.check()
        found = query(part.drop("position"))
        return found.with_columns(position=part["position"].gather(found["position"]))

    results = [pl.DataFrame(schema={"position": pl.UInt32})]
    with Reporter(progress, numbered.height, what=what, unit="keys") as reporter:
        for found in map_concurrently(look_up, numbered.iter_slices(_LOOKUP_ROWS), submit, 2):
            reporter.advance(min(_LOOKUP_ROWS, numbered.height - _LOOKUP_ROWS * (len(results) - 1)))
            results.append(found)
    return pl.concat(results, how="diagonal")


def selected(relation: Relation, names: Sequence[str] | None) -> list[Column]:
    """The columns of these names; all of them if there are none.

    Raises:
        SchemaError: the table has no column of this name.
    """
    if names is None:
        return list(relation.columns)
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in relation.by_name]:
        raise SchemaError(f"the table {relation.name} has no column {', '.join(map(repr, unknown))}")
    return [relation[name] for name in names]


def scan(
    engine: TableEngine, relation: Relation, columns: Sequence[Column], where: str | None, interrupt: Interrupt
) -> Iterator[pl.DataFrame]:
    """The rows of a table in chunks, in no particular order."""
    for chunk in engine.select(relation, columns, where, interrupt):
        yield named(chunk, columns)
