"""Merging rows with stored entities, so that fields which a row does not have keep their stored value.

A row is narrow if its entity may have stored fields that the row lacks. A narrow row is merged with its entity, unless
the entity is new or already equal. The result is written only if the entity is unchanged since it was read; otherwise
it is read and merged again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from entityframes.engines.base import Engine
from entityframes.frames.schema import KEY
from entityframes.metadata.canonical_json import Shape
from entityframes.metadata.fields import MAX_INFERRED, Fields
from entityframes.metadata.merging import merged_texts
from entityframes.writing.entities.validation import MAX_BYTES, sha256
from entityframes.writing.options import Options

#: The names of the recorded fields of each type.
Known = Mapping[str, frozenset[str]]

#: Up to this number of rows, stored entities are read at once. For more rows, their hashes are read first, as most of
#: them may be equal.
FEW_ROWS = 2_000

#: Up to this number of rows, repeated shapes are not removed before they are checked.
_SMALL = 16


def all_narrow(rows: pl.DataFrame) -> pl.DataFrame:
    """Mark all rows as narrow."""
    keeps = pl.col("keeps_content") if "keeps_content" in rows.columns else pl.lit(False)
    return rows.with_columns(narrow=pl.lit(True), keeps_content=keeps)


def without_shape(rows: pl.DataFrame) -> pl.DataFrame:
    """Canonical rows without the columns ``shape`` and ``no_content``, which are not used after `mark_narrow`."""
    return rows[[name for name in rows.columns if name not in ("shape", "no_content")]]


def mark_narrow(
    rows: pl.DataFrame,
    dtype: pl.DataType | None,
    has_content: bool,
    shapes: list[Shape],
    known: Known,
    options: Options,
) -> pl.DataFrame:
    """Add ``narrow`` and ``keeps_content`` (Boolean) to canonical rows, unless none of them is narrow.

    Args:
        rows: canonical rows, with ``shape`` if their metadata was given as JSON text or as Python objects, and with
            ``no_content`` if some of these objects lack content.
        dtype: the dtype of the metadata column of the input frame; None if it has none.
        has_content: whether the input frame has a content column.
        shapes: the distinct shapes of the JSON text.
        known: the recorded fields of the types.
        options: the options of the upsert.
    """
    lacking = _lacking(rows, dtype, shapes, known) if options.absent == "keep" else None
    some_absent = "no_content" in rows.columns and options.absent == "keep"
    if has_content and options.nulls == "write" and not some_absent:
        if lacking is None:
            return rows
        return rows.with_columns(narrow=lacking, keeps_content=pl.lit(False))
    keeps = pl.lit(options.absent == "keep") if not has_content else pl.lit(False)
    if some_absent:
        keeps |= pl.col("no_content")
    if has_content and options.nulls == "keep":
        keeps |= pl.col("content") == ""
    narrow = keeps if lacking is None else keeps | lacking
    if options.nulls == "keep":
        # The text may match without a null value; a needless merge is harmless.
        narrow = narrow | pl.col("metadata").str.contains(":null", literal=True)
    marked = rows.with_columns(narrow=narrow, keeps_content=keeps)
    return marked if marked["narrow"].any() else rows


def _lacking(rows: pl.DataFrame, dtype: pl.DataType | None, shapes: list[Shape], known: Known) -> pl.Expr | None:
    """Which rows may lack a stored field; None if none does. Only MAX_INFERRED fields of a type are recorded."""
    if "shape" in rows.columns:
        pairs = rows[["entity_type", "shape"]]
        pairs = pairs if pairs.height <= _SMALL else pairs.unique()
        lacks = [
            _lacks(known.get(entity_type), frozenset(shapes[number][0])) for entity_type, number in pairs.iter_rows()
        ]
        if not any(lacks):
            return None
        narrow = pairs.filter(pl.Series(lacks, dtype=pl.Boolean))
        found = rows[["entity_type", "shape"]].with_row_index("position")
        found = found.join(narrow, on=["entity_type", "shape"], how="semi")
        return pl.lit(pl.int_range(rows.height, dtype=pl.UInt32, eager=True).is_in(found["position"].implode()))
    names = frozenset(field.name for field in dtype.fields) if isinstance(dtype, pl.Struct) else frozenset()
    narrow_types = [name for name, fields in known.items() if _lacks(fields, names)]
    # A null struct has no fields.
    types_with_fields = [name for name, fields in known.items() if fields]
    some_empty = bool(types_with_fields) and (rows["metadata"] == "{}").any()
    if not narrow_types and not some_empty:
        return None
    lacking = pl.col("entity_type").is_in(narrow_types)
    if some_empty:
        lacking |= (pl.col("metadata") == "{}") & pl.col("entity_type").is_in(types_with_fields)
    return lacking


def _lacks(recorded: frozenset[str] | None, names: frozenset[str]) -> bool:
    return recorded is not None and (len(recorded) >= MAX_INFERRED or not recorded <= names)


@dataclass(frozen=True)
class Merged:
    """The result of `merge`."""

    #: Canonical rows to write. ``expected`` and ``expected_metadata`` are the hashes of the entity that was read.
    ready: pl.DataFrame
    #: row, key and conflict (Boolean): rows that are not written, because they are unchanged or in conflict.
    skipped: pl.DataFrame
    #: row and key of rows whose merged metadata is too long.
    too_long: pl.DataFrame
    #: Input rows whose entity changed while it was read.
    outdated: pl.DataFrame


def merge(engine: Engine, rows: pl.DataFrame, known: Known, fields: Fields, options: Options) -> Merged:
    """Read the stored entities of rows and merge the rows with them.

    Args:
        engine: the engine of the store.
        rows: canonical rows, with ``narrow`` and ``keeps_content`` if any row is narrow, and with ``expected`` and
            ``expected_metadata`` if the caller expects hashes.
        known: the recorded fields with which the rows were compared by `mark_narrow`.
        fields: loads the recorded fields again, to check whether there are further ones.
        options: the options of the upsert.
    """
    if "narrow" not in rows.columns:
        rows = rows.with_columns(narrow=pl.lit(False), keeps_content=pl.lit(False))
    stored = _stored(engine, rows, known, fields, options)
    metadata = merged_texts(rows["metadata"], stored["metadata"], absent=options.absent, nulls=options.nulls)
    merged = rows.hstack([column.alias(f"old_{column.name}") for column in stored.get_columns()])
    merged = merged.with_columns(
        metadata,
        content_hash=pl.when(pl.col("keeps_content") & pl.col("old_content_hash").is_not_null())
        .then("old_content_hash")
        .otherwise("content_hash"),
        metadata_hash=_hashes(rows, metadata, stored),
    )
    absent = pl.col("old_content_hash").is_null()
    same = (pl.col("content_hash") == pl.col("old_content_hash")) & (
        pl.col("metadata_hash") == pl.col("old_metadata_hash")
    )
    conflict = pl.lit(False)
    if "expected" in rows.columns:
        conflict = (
            (pl.col("expected").is_null() != absent)
            | (pl.col("expected") != pl.col("old_content_hash"))
            | (pl.col("expected_metadata") != pl.col("old_metadata_hash"))
        )
    merged = merged.with_columns(same=same.fill_null(False)).with_columns(
        conflict=conflict.fill_null(False) & ~pl.col("same"),
        too_long=pl.col("metadata").str.len_bytes() > MAX_BYTES["metadata"],
    )
    skipped = merged["same"] | merged["conflict"]
    too_long = merged["too_long"] & ~skipped
    to_write = merged.filter(~skipped & ~too_long)
    contents, changed = _contents(engine, to_write)
    outdated = rows.join(to_write.filter(changed), on="row", how="semi", maintain_order="left")
    ready = to_write.with_columns(contents).filter(~changed)
    return Merged(
        ready.select(
            "row", *KEY, "content", "metadata", "content_hash", "metadata_hash",
            expected="old_content_hash", expected_metadata="old_metadata_hash",
        ),
        merged.filter(skipped).select("row", *KEY, "conflict"),
        merged.filter(too_long).select("row", *KEY),
        outdated,
    )  # fmt: skip


def _stored(engine: Engine, rows: pl.DataFrame, known: Known, fields: Fields, options: Options) -> pl.DataFrame:
    """metadata, content_hash and metadata_hash of the entity of each row, null if there is no entity.

    The metadata is also null for some of the rows that need not be merged.
    """
    if rows.height <= FEW_ROWS:
        return _by_position(_in_chunks(engine.stored, engine, rows), rows.height)
    hashes = _by_position(_in_chunks(engine.hashes, engine, rows), rows.height)
    # Fields are recorded before they are stored, so the entities read above have no other fields than these.
    complete = options.absent == "clear" or fields.recorded(known) == known
    return _with_metadata(engine, rows, hashes, rows["narrow"] if complete else None)


def stored(engine: Engine, rows: pl.DataFrame) -> pl.DataFrame:
    """metadata, content_hash and metadata_hash of the entity of each row, null if there is no entity.

    The metadata is also null if the entity is equal to the row.
    """
    hashes = _by_position(_in_chunks(engine.hashes, engine, rows), rows.height)
    return _with_metadata(engine, rows, hashes, None)


def _with_metadata(engine: Engine, rows: pl.DataFrame, hashes: pl.DataFrame, mask: pl.Series | None) -> pl.DataFrame:
    """Add the stored metadata of the rows (of those in `mask`, if given) whose hashes differ from the stored ones."""
    differs = (hashes["content_hash"] != rows["content_hash"]) | (hashes["metadata_hash"] != rows["metadata_hash"])
    differs = differs.fill_null(False)
    positions = (differs if mask is None else differs & mask).arg_true()
    found = _in_chunks(engine.stored, engine, rows[positions])
    found = found.with_columns(position=positions.gather(found["position"]).cast(pl.Int64))
    # An entity that was deleted in between is not in `found`, so that all its columns become null.
    others = hashes.with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
    others = others.filter(~pl.col("position").is_in(positions.cast(pl.Int64).implode()))
    return _by_position(pl.concat([found, others.drop("metadata")], how="diagonal"), rows.height)


def _in_chunks(query: object, engine: Engine, rows: pl.DataFrame) -> pl.DataFrame:
    """Run a lookup of the engine for the keys of rows, `Engine.lookup_rows` at a time."""
    found = [pl.DataFrame(schema={"position": pl.Int64, "metadata": pl.String})]
    for start in range(0, rows.height, engine.database.lookup_rows):
        chunk = query(rows[start : start + engine.database.lookup_rows].select(KEY))  # type: ignore[operator]
        found.append(chunk.with_columns(pl.col("position").cast(pl.Int64) + start))
    return pl.concat(found, how="diagonal")


def _by_position(found: pl.DataFrame, height: int) -> pl.DataFrame:
    """One row for each position from 0 to `height`, with nulls for positions that are not in `found`."""
    schema = {"position": pl.Int64, "metadata": pl.String, "content_hash": pl.Binary, "metadata_hash": pl.Binary}
    found = pl.concat([pl.DataFrame(schema=schema), found], how="diagonal")
    positions = pl.DataFrame({"position": pl.int_range(height, eager=True)})
    return positions.join(found, on="position", how="left", maintain_order="left").drop("position")


def _hashes(rows: pl.DataFrame, merged: pl.Series, stored: pl.DataFrame) -> pl.Series:
    """The hashes of merged metadata, computed only where it differs from both the given and the stored metadata."""
    as_given = merged == rows["metadata"]
    as_stored = (merged == stored["metadata"]).fill_null(False)
    hashes = rows["metadata_hash"].zip_with(as_given, stored["metadata_hash"])
    new = (~as_given & ~as_stored).arg_true()
    return hashes.scatter(new, sha256(merged.gather(new))) if len(new) else hashes


def _contents(engine: Engine, rows: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """The content to write for each row, and whether the stored content changed since the hashes were read."""
    contents, changed = rows["content"], pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    positions = (rows["keeps_content"] & rows["old_content_hash"].is_not_null()).arg_true()
    if not len(positions):
        return contents, changed
    kept = rows[positions]
    found = _in_chunks(engine.lookup, engine, kept).select("position", "content", "content_hash")
    each = pl.DataFrame({"position": pl.int_range(kept.height, dtype=pl.Int64, eager=True)})
    found = each.join(found, on="position", how="left", maintain_order="left")
    differs = found["content_hash"].ne_missing(kept["old_content_hash"].bin.encode("hex"))
    return contents.scatter(positions, found["content"].fill_null("")), changed.scatter(positions, differs)
