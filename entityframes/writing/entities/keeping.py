"""Rows that do not carry all that is stored of their entity: found, and merged with it before they are written.

What is not carried stays as it is. A row is narrow if its entity may have something that it lacks; of a new entity, or
one that is equal already, nothing has to be merged. The others are read, merged, and written only over the very state
that was read: where somebody else has changed the entity meanwhile, it is read and merged again.
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

#: The recorded fields of some types.
Known = Mapping[str, frozenset[str]]

#: Of so many rows what is stored is fetched at once; of more, first the hashes, as most may be equal.
FEW_ROWS = 2_000

#: So many rows are looked at one by one.
_A_FEW = 16


def all_of(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows all of which are narrow, as far as one knows by now."""
    keeps = pl.col("keeps_content") if "keeps_content" in rows.columns else pl.lit(False)
    return rows.with_columns(narrow=pl.lit(True), keeps_content=keeps)


def without_shape(rows: pl.DataFrame) -> pl.DataFrame:
    """Canonical rows without the number of what their JSON is made of, which nobody needs once they are `marked`."""
    return rows[[name for name in rows.columns if name != "shape"]]


def marked(
    rows: pl.DataFrame, carried: pl.DataType | None, content: bool, shapes: list[Shape], known: Known, options: Options
) -> pl.DataFrame:
    """Canonical rows, with ``narrow`` and ``keeps_content`` (Boolean) if any of them is narrow.

    Args:
        rows: with ``shape`` if their metadata came as JSON text.
        carried: the dtype of the metadata that they came with, None if they had no such column.
        content: whether they came with content.
        shapes: what the JSON texts are made of.
        known: the recorded fields of their types.
        options: the caller's.
    """
    lacking = _lacking(rows, carried, shapes, known) if options.absent == "keep" else None
    if content and options.nulls == "write":
        if lacking is None:
            return rows
        return rows.with_columns(narrow=lacking, keeps_content=pl.lit(False))
    keeps = pl.lit(options.absent == "keep") if not content else pl.col("content") == ""
    narrow = keeps if lacking is None else keeps | lacking
    if options.nulls == "keep":
        # There may be a null; to merge in vain does no harm.
        narrow = narrow | pl.col("metadata").str.contains(":null", literal=True)
    found = rows.with_columns(narrow=narrow, keeps_content=keeps)
    return found if found["narrow"].any() else found.drop("narrow", "keeps_content")


def _lacking(rows: pl.DataFrame, carried: pl.DataType | None, shapes: list[Shape], known: Known) -> pl.Expr | None:
    """Which rows lack a recorded field of their type, None if none does; beyond MAX_INFERRED fields one cannot know."""
    if "shape" in rows.columns:
        pairs = rows[["entity_type", "shape"]]
        pairs = pairs if pairs.height <= _A_FEW else pairs.unique()
        short = [
            _lacks(known.get(entity_type), frozenset(shapes[number][0])) for entity_type, number in pairs.iter_rows()
        ]
        if not any(short):
            return None
        wanting = pairs.filter(pl.Series(short, dtype=pl.Boolean))
        found = rows[["entity_type", "shape"]].with_row_index("place")
        found = found.join(wanting, on=["entity_type", "shape"], how="semi")
        return pl.lit(pl.int_range(rows.height, dtype=pl.UInt32, eager=True).is_in(found["place"].implode()))
    names = frozenset(field.name for field in carried.fields) if isinstance(carried, pl.Struct) else frozenset()
    short_types = [name for name, fields in known.items() if _lacks(fields, names)]
    # A null struct carries nothing.
    some = [name for name, fields in known.items() if fields]
    nothing = bool(some) and (rows["metadata"] == "{}").any()
    if not short_types and not nothing:
        return None
    lacking = pl.col("entity_type").is_in(short_types)
    return lacking | (pl.col("metadata") == "{}") & pl.col("entity_type").is_in(some) if nothing else lacking


def _lacks(recorded: frozenset[str] | None, names: frozenset[str]) -> bool:
    return recorded is not None and (len(recorded) >= MAX_INFERRED or not recorded <= names)


@dataclass(frozen=True)
class Look:
    """What rows come to, merged with what is stored of their entities."""

    #: Canonical rows that are to be written, each over the state (``expected``, ``expected_metadata``) that was read.
    ready: pl.DataFrame
    #: Rows whose entity is as they want it, or not as their caller expects it (then ``conflict``).
    ended: pl.DataFrame
    #: Rows that are longer than metadata may be, now that they are merged.
    too_long: pl.DataFrame
    #: Rows, as given, whose entity changed while it was read.
    later: pl.DataFrame


def look(engine: Engine, rows: pl.DataFrame, known: Known, fields: Fields, options: Options) -> Look:
    """Read what is stored of the entities of rows, and merge the rows with it.

    Args:
        engine: the store's.
        rows: canonical rows, with ``narrow`` and ``keeps_content`` unless all are as wide as `known`, and with
            ``expected`` and ``expected_metadata`` where the caller expects something.
        known: the recorded fields that the rows were compared with.
        fields: to ask whether more have been recorded since.
        options: the caller's.
    """
    if "narrow" not in rows.columns:
        rows = rows.with_columns(narrow=pl.lit(False), keeps_content=pl.lit(False))
    stored = _stored(engine, rows, known, fields, options)
    texts = merged_texts(rows["metadata"], stored["metadata"], absent=options.absent, nulls=options.nulls)
    there = rows.hstack([column.alias(f"old_{column.name}") for column in stored.get_columns()])
    there = there.with_columns(
        texts,
        content_hash=pl.when(pl.col("keeps_content") & pl.col("old_content_hash").is_not_null())
        .then("old_content_hash")
        .otherwise("content_hash"),
        metadata_hash=_hashes(rows, texts, stored),
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
    there = there.with_columns(same=same.fill_null(False)).with_columns(
        conflict=conflict.fill_null(False) & ~pl.col("same"),
        too_long=pl.col("metadata").str.len_bytes() > MAX_BYTES["metadata"],
    )
    ended = there["same"] | there["conflict"]
    long = there["too_long"] & ~ended
    write = there.filter(~ended & ~long)
    contents, moved = _contents(engine, write)
    later = rows.join(write.filter(moved), on="row", how="semi", maintain_order="left")
    ready = write.with_columns(contents).filter(~moved)
    return Look(
        ready.select(
            "row", *KEY, "content", "metadata", "content_hash", "metadata_hash",
            expected="old_content_hash", expected_metadata="old_metadata_hash",
        ),
        there.filter(ended).select("row", *KEY, "conflict"),
        there.filter(long).select("row", *KEY),
        later,
    )  # fmt: skip


def _stored(engine: Engine, rows: pl.DataFrame, known: Known, fields: Fields, options: Options) -> pl.DataFrame:
    """metadata, content_hash and metadata_hash of the entity of each row, null where there is none.

    The metadata of those that need no merging may be null too.
    """
    if rows.height <= FEW_ROWS:
        return _by_position(_asked(engine.stored, engine, rows), rows.height)
    hashes = _by_position(_asked(engine.hashes, engine, rows), rows.height)
    # What is stored has no other fields than those that were recorded by the time it was read.
    all_known = options.absent == "clear" or fields.recorded(known) == known
    return _with_texts(engine, rows, hashes, rows["narrow"] if all_known else None)


def stored(engine: Engine, rows: pl.DataFrame) -> pl.DataFrame:
    """metadata, content_hash and metadata_hash of the entity of each row, null where there is none.

    The metadata of those that are equal to their row is null too.
    """
    hashes = _by_position(_asked(engine.hashes, engine, rows), rows.height)
    return _with_texts(engine, rows, hashes, None)


def _with_texts(engine: Engine, rows: pl.DataFrame, hashes: pl.DataFrame, wanted: pl.Series | None) -> pl.DataFrame:
    """The hashes that are stored, and the metadata of rows (those that are wanted) whose metadata differ."""
    differs = (hashes["content_hash"] != rows["content_hash"]) | (hashes["metadata_hash"] != rows["metadata_hash"])
    differs = differs.fill_null(False)
    places = (differs if wanted is None else differs & wanted).arg_true()
    texts = _asked(engine.stored, engine, rows[places])
    texts = texts.with_columns(position=places.gather(texts["position"]).cast(pl.Int64))
    # An entity that was deleted in between is not there.
    others = hashes.with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
    others = others.filter(~pl.col("position").is_in(places.cast(pl.Int64).implode()))
    return _by_position(pl.concat([texts, others.drop("metadata")], how="diagonal"), rows.height)


def _asked(ask: object, engine: Engine, rows: pl.DataFrame) -> pl.DataFrame:
    found = [pl.DataFrame(schema={"position": pl.Int64, "metadata": pl.String})]
    for start in range(0, rows.height, engine.lookup_rows):
        answer = ask(rows[start : start + engine.lookup_rows].select(KEY))  # type: ignore[operator]
        found.append(answer.with_columns(pl.col("position").cast(pl.Int64) + start))
    return pl.concat(found, how="diagonal")


def _by_position(found: pl.DataFrame, height: int) -> pl.DataFrame:
    schema = {"position": pl.Int64, "metadata": pl.String, "content_hash": pl.Binary, "metadata_hash": pl.Binary}
    found = pl.concat([pl.DataFrame(schema=schema), found], how="diagonal")
    positions = pl.DataFrame({"position": pl.int_range(height, eager=True)})
    return positions.join(found, on="position", how="left", maintain_order="left").drop("position")


def _hashes(rows: pl.DataFrame, texts: pl.Series, stored: pl.DataFrame) -> pl.Series:
    """The hash of each merged text; only of those that are neither what was given nor what is stored."""
    as_given = texts == rows["metadata"]
    as_stored = (texts == stored["metadata"]).fill_null(False)
    hashes = rows["metadata_hash"].zip_with(as_given, stored["metadata_hash"])
    new = (~as_given & ~as_stored).arg_true()
    return hashes.scatter(new, sha256(texts.gather(new))) if len(new) else hashes


def _contents(engine: Engine, rows: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """The content that each row is to be written with, and whether that of its entity changed while it was read."""
    contents, moved = rows["content"], pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    places = (rows["keeps_content"] & rows["old_content_hash"].is_not_null()).arg_true()
    if not len(places):
        return contents, moved
    kept = rows[places]
    found = _asked(engine.lookup, engine, kept).select("position", "content", "content_hash")
    positions = pl.DataFrame({"position": pl.int_range(kept.height, dtype=pl.Int64, eager=True)})
    found = positions.join(found, on="position", how="left", maintain_order="left")
    changed = found["content_hash"].ne_missing(kept["old_content_hash"].bin.encode("hex"))
    return contents.scatter(places, found["content"].fill_null("")), moved.scatter(places, changed)
