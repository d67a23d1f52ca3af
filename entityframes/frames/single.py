"""A single entity as a frame, so that calls for single entities share the code of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from entityframes.metadata import canonical_json


def one_id(entity_type: str, id: str) -> pl.DataFrame:
    """The id frame of a single id."""
    return _binary_safe({"entity_type": entity_type, "id": id})


def is_valid_key(entity_type: str, id: str) -> bool:
    """Whether an entity with this key can be stored, its length aside.

    Raises:
        TypeError: `entity_type` or `id` is not a str.
    """
    _check_strings({"entity_type": entity_type, "id": id})
    try:
        return b"\0" not in f"{entity_type}{id}".encode()
    except UnicodeEncodeError:
        return False


def one_entity(
    entity_type: str, id: str, content: str | None, metadata: Mapping[str, Any] | str | None
) -> pl.DataFrame:
    """The entity frame of a single entity; arguments that are None have no column."""
    row = {"entity_type": entity_type, "id": id}
    if content is not None:
        row["content"] = content
    if metadata is not None:
        row["metadata"] = metadata if isinstance(metadata, str) else canonical_json.dump(metadata)
    return _binary_safe(row)


def _binary_safe(row: Mapping[str, str]) -> pl.DataFrame:
    """One row as bytes, so that text that is not valid UTF-8 is rejected as in a frame."""
    _check_strings(row)
    return pl.DataFrame(
        {name: [value.encode("utf-8", "surrogatepass")] for name, value in row.items()},
        schema=dict.fromkeys(row, pl.Binary),
    )


def _check_strings(row: Mapping[str, object]) -> None:
    wrong = [name for name, value in row.items() if not isinstance(value, str)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)} must be str, not {', '.join(type(row[name]).__name__ for name in wrong)}")
