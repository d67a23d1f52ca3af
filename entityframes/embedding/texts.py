"""The texts that are embedded for entities: the whole content of each, or its passages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from entityframes.embedding.passages import Passages

#: The passages of entities: row (the number of the entity), their places in its content in characters, and the text
#: that is embedded, with its SHA-256. An end of null is the end of the content. A content of white space only has one
#: row, without a text.
SCHEMA = pl.Schema(
    {
        "row": pl.UInt32(),
        "position": pl.Int32(),
        "start": pl.Int64(),
        "end": pl.Int64(),
        "heading": pl.String(),
        "text_hash": pl.Binary(),
        "text": pl.String(),
    }
)


def cut(entities: pl.DataFrame, passages: Passages | None) -> pl.DataFrame:
    """The passages of entities, with the columns of `SCHEMA`, in order.

    Args:
        entities: row, content, content_hash (Binary), and metadata (JSON text) if titles are part of the texts.
        passages: how contents are cut; None if each is a single passage.
    """
    if passages is None:
        return _whole(entities)
    rows = entities.select("row", "content", "metadata").iter_rows()
    return pl.DataFrame(list(_passages(rows, passages)), SCHEMA, orient="row")


def _whole(entities: pl.DataFrame) -> pl.DataFrame:
    filled = pl.col("content").str.contains(r"\S")
    return entities.select(
        "row",
        position=pl.lit(0, pl.Int32),
        start=pl.lit(0, pl.Int64),
        end=pl.lit(None, pl.Int64),
        heading=pl.lit(""),
        text_hash=pl.when(filled).then("content_hash"),
        text=pl.when(filled).then("content"),
    )


def _passages(rows: Iterator[tuple[int, str, str | None]], passages: Passages) -> Iterator[tuple[Any, ...]]:
    for row, content, metadata in rows:
        found = passages.cut(content, title(metadata, passages.title_fields))
        for position, (start, end, heading, text) in enumerate(found):
            yield row, position, start, end, heading, hashlib.sha256(text.encode()).digest(), text
        if not found:
            yield row, 0, 0, 0, "", None, None


def title(metadata: str | None, fields: tuple[str, ...]) -> str | None:
    """The title of an entity: the texts and numbers in some fields of its metadata, joined like headings."""
    if not fields or metadata is None:
        return None
    values = json.loads(metadata)
    found = [values.get(field) for field in fields]
    texts = [str(value) for value in found if isinstance(value, str | int | float) and not isinstance(value, bool)]
    return " > ".join(text for text in texts if text.strip()) or None
