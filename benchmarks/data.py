"""Synthetic entities: the same for the same seed."""

from __future__ import annotations

import numpy as np
import polars as pl

_WORDS = ["alpha", "arrow", "batch", "column", "copy", "duck", "entity", "frame", "index", "ingest", "join", "key",
          "ledger", "merge", "note", "polars", "query", "row", "schema", "staging", "table", "upsert"]  # fmt: skip


def entities(rows: int, *, version: int = 0, content_bytes: int = 480, seed: int = 7) -> pl.DataFrame:
    """An entity frame of notes and tasks in no particular order, with typed metadata; about 570 bytes a row.

    Args:
        rows: its height.
        version: another one has other contents for the same keys.
        content_bytes: about how long each content is.
        seed: another one has other keys.
    """
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(_WORDS, max(content_bytes // 6, 1)))[:content_bytes] for _ in range(64)]
    number = pl.int_range(rows)
    return pl.select(number.alias("n")).select(
        entity_type=pl.when(pl.col("n") % 2 == 0).then(pl.lit("note")).otherwise(pl.lit("task")),
        id=pl.format("{}-{}", pl.col("n").hash(seed), "n"),
        content=pl.format("v{} {} {}", pl.lit(version), "n", pl.lit(pl.Series(texts)).gather(pl.col("n") % 64)),
        metadata=pl.struct(
            title=pl.format("document {}", "n"),
            n="n",
            rating=pl.col("n") % 50 / 10,
            tags=pl.concat_list(pl.lit("a"), pl.lit("b")),
        ),
    )


def change(frame: pl.DataFrame, every: int, version: int) -> pl.DataFrame:
    """The frame with another content in every n-th row."""
    changed = pl.format("v{}{}", pl.lit(version), pl.col("content").str.slice(2))
    return frame.with_columns(
        content=pl.when(pl.int_range(pl.len()) % every == 0).then(changed).otherwise(pl.col("content"))
    )
