"""The stored entities that a frame lacks, which a mirror deletes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import polars as pl

from entityframes.errors import SchemaError
from entityframes.frames.schema import KEY, check_entity_schema, numbered, usable_ids


def absent_entities(
    given: pl.DataFrame, scope: pl.Expr | None, scan: Callable[[str], pl.LazyFrame]
) -> tuple[pl.DataFrame, int, bool]:
    """Find the stored entities, of the types in a frame, that it lacks.

    Args:
        given: an entity frame.
        scope: an expression over the columns of `EntityStore.read`; None for all entities of the types.
        scan: reads a type.

    Returns:
        The ids of these entities (entity_type, id), the number of stored entities in the scope, and whether all keys
        of the frame are valid.

    Raises:
        SchemaError: the frame is no entity frame, or the scope uses a column that no type in the frame has.
    """
    check_entity_schema(given.schema, [])
    ids = usable_ids(numbered(given))
    keys = ids.filter("usable").select(KEY).unique()
    parts = [pl.DataFrame(schema=dict.fromkeys(KEY, pl.String))]
    stored = 0
    for entity_type in keys["entity_type"].unique(maintain_order=True):
        with warnings.catch_warnings():
            # A type of which nothing is stored so far.
            warnings.simplefilter("ignore", UserWarning)
            rows = scan(entity_type)
        try:
            found = (rows if scope is None else rows.filter(scope)).select("id").collect()
        except pl.exceptions.ColumnNotFoundError as error:
            raise SchemaError(f"scope: entities of type {entity_type!r} have no such column: {error}") from None
        stored += found.height
        parts.append(found.select(pl.lit(entity_type).alias("entity_type"), "id").join(keys, on=KEY, how="anti"))
    return pl.concat(parts).sort(KEY), stored, bool(ids["usable"].all())
