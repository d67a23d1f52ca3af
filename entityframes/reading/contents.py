"""What is in a store, at a glance: its types, the number of its entities, and the runs that wrote them."""

from __future__ import annotations

import polars as pl

from entityframes.engines.base import Engine
from entityframes.reading import lookup

_TIME = pl.Datetime("us", "UTC")

#: The columns of the result of `EntityStore.runs`.
RUN_SCHEMA = pl.Schema(
    {
        "run_id": pl.String(),
        "batches": pl.Int64(),
        "created": pl.Int64(),
        "updated": pl.Int64(),
        "deleted": pl.Int64(),
        "first_written_at": _TIME,
        "last_written_at": _TIME,
    }
)


def types(engine: Engine) -> pl.DataFrame:
    """See `EntityStore.types`."""
    recorded = engine.all_fields().group_by("entity_type", maintain_order=True).agg(fields="field")
    found = engine.types().join(recorded, on="entity_type", how="left", maintain_order="left")
    no_fields = pl.lit([], dtype=pl.List(pl.String))
    return found.select(
        "entity_type", pl.col("entities").cast(pl.Int64), pl.col("fields").fill_null(no_fields), "updated_at"
    )


def count(engine: Engine, entity_type: str | None, where: pl.Expr | None) -> int:
    """See `EntityStore.count`."""
    if where is None:
        return engine.count(entity_type)
    kept = lookup.scan(engine, entity_type).filter(where)
    return int(kept.select(pl.len()).collect().item())


def runs(engine: Engine, limit: int | None) -> pl.DataFrame:
    """See `EntityStore.runs`."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a positive integer or None, got {limit}")
    return engine.runs(limit).select(pl.col(name).cast(dtype) for name, dtype in RUN_SCHEMA.items())
