"""Finds the rows of a batch that are new or differ, by their keys and hashes."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

#: Executes a named statement with parameters.
Query = Callable[..., pl.DataFrame]

#: Batches with fewer rows or more types than this are compared by a single query.
MANY_ROWS = 1_000
FEW_TYPES = 8

#: Keys are scattered if there are more than this many times as many entities as rows between the first and last key.
SPREAD = 2
#: This is first tested on a fraction of the rows: the first of this many parts.
PARTS = 16


def by_type(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of each type with their position, in order; empty if there are few rows or many types."""
    if rows.height < MANY_ROWS or rows["entity_type"].n_unique() > FEW_TYPES:
        return []
    return rows.with_row_index("position").partition_by("entity_type", maintain_order=True)


def probe(query: Query, rows: pl.DataFrame, scattered: set[str] | None = None) -> pl.DataFrame:
    """Position (Int32), created and differs (Boolean) of the rows that are new or differ, in order.

    If the stored entities between the first and the last key are about those of the batch, as in a repeated import of a
    file, the range is read and compared on the client, in less than half the time of individual lookups.

    Args:
        query: executes statements on the connection of the batch.
        rows: entity_type, id, content_hash and metadata_hash, in key order.
        scattered: the types whose keys are scattered, which is updated; None always looks up individual keys.
    """
    rows = rows[["entity_type", "id", "content_hash", "metadata_hash"]]
    parts = [] if scattered is None else by_type(rows)
    if scattered is None or not parts:
        return _by_key(query, rows.with_row_index("position"))
    found, others = [], []
    for part in parts:
        stored = _between(query, part, scattered)
        if stored is None:
            others.append(part)
        else:
            found.append(_compared(part, stored))
    if others:
        found.append(_by_key(query, pl.concat(others)))
    return pl.concat(found).sort("position")


def _by_key(query: Query, rows: pl.DataFrame) -> pl.DataFrame:
    columns = ("entity_type", "id", "content_hash", "metadata_hash")
    found = query("probe", *(rows[name] for name in columns)).sort("position")
    return found.with_columns(rows["position"].gather(found["position"]))


def _between(query: Query, rows: pl.DataFrame, scattered: set[str]) -> pl.DataFrame | None:
    """id, content_hash and metadata_hash of the entities from the first to the last key; None if keys are scattered."""
    entity_type = rows["entity_type"][0]
    if entity_type in scattered:
        return None
    ids, part, limit = rows["id"], -(-rows.height // PARTS), SPREAD * rows.height
    stored = query("between", entity_type, ids[0], ids[part - 1], str(SPREAD * part + 1), ids[-1], str(limit + 1))
    if stored.height <= limit and stored["id"].null_count() == 0:
        return stored
    scattered.add(entity_type)
    return None


def _compared(rows: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    created = pl.col("content_hash_stored").is_null()
    differs = created | (pl.col("content_hash") != pl.col("content_hash_stored"))
    return (
        rows.join(stored, on="id", how="left", suffix="_stored", maintain_order="left")
        .filter(differs | (pl.col("metadata_hash") != pl.col("metadata_hash_stored")))
        .select("position", created=created, differs=differs)
    )
