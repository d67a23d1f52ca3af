"""A single entity in canonical form. The frames in which many are validated would take longer than its write."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import polars as pl

from entityframes.engines.base import Engine
from entityframes.errors import ClosedError, DatabaseError
from entityframes.frames.schema import KEY
from entityframes.metadata.canonical_json import canonical_json, dump
from entityframes.metadata.fields import Fields
from entityframes.writing.entities.validation import MAX_BYTES
from entityframes.writing.target import Validated

_SCHEMA = {
    "row": pl.UInt32,
    **dict.fromkeys([*KEY, "content", "metadata"], pl.String),
    **dict.fromkeys(["content_hash", "metadata_hash"], pl.Binary),
}


def validated(
    engine: Engine, entity_type: str, id: str, content: str | None, metadata: Mapping[str, Any] | str | None
) -> Validated | None:
    """An entity that is certainly valid and has all fields of its type, so that nothing has to be merged or recorded.

    Returns:
        None for any other entity, which has to be written as a frame.

    Raises:
        ValidationError: JSON cannot represent the metadata.
    """
    if not all(isinstance(value, str) for value in (entity_type, id, content)):
        return None
    given = metadata if metadata is None or isinstance(metadata, str) else dump(metadata)
    [text], _, [shape] = canonical_json([given])
    if content is None or text is None or shape is None:
        return None
    values = {"entity_type": entity_type, "id": id, "content": content, "metadata": text}
    if not _within_limits(values):
        return None
    fields = Fields(engine, recent=True)
    try:
        if not fields.match(entity_type, shape):
            return None
    except (DatabaseError, ClosedError):
        return None
    hashes = (sha256(content.encode()).digest(), sha256(text.encode()).digest())
    row = pl.DataFrame([(0, *values.values(), *hashes)], _SCHEMA, orient="row")
    return Validated(row, row.clear(), fields.names([entity_type]))


def _within_limits(values: Mapping[str, str]) -> bool:
    """Whether no value breaks a rule of `validation`."""
    try:
        sizes = {name: len(value.encode()) for name, value in values.items()}
    except UnicodeEncodeError:
        return False
    return (
        all((name not in KEY or sizes[name] > 0) and sizes[name] <= limit for name, limit in MAX_BYTES.items())
        # JSON escapes a NUL.
        and not any("\0" in values[name] for name in (*KEY, "content"))
    )
