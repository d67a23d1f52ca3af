"""Reading: by ids in input order, by type with the original dtypes, or lazily."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

import polars as pl

from entityframes.engines.base import Engine
from entityframes.engines.predicates import Column, EntityColumn, MetadataField, Predicate
from entityframes.frames import sources
from entityframes.frames.schema import KEY, check_id_schema, in_key_order, usable_ids
from entityframes.interrupt import Interrupt
from entityframes.metadata import canonical_json, dtypes
from entityframes.metadata.fields import Fields
from entityframes.progress import Progress, Reporter
from entityframes.reading.scan import ScanQuery, lazy_frame
from entityframes.retry import retry
from entityframes.threads import Submit, map_concurrently

#: Up to this many ids are looked up in a single query.
LEAST_LOOKUP = 10_000

#: The columns of an entity as returned by the store.
ENTITY_SCHEMA = pl.Schema(
    {
        "entity_type": pl.String(),
        "id": pl.String(),
        "content": pl.String(),
        "metadata": pl.String(),
        "content_hash": pl.String(),
        "created_at": pl.Datetime("us", "UTC"),
        "updated_at": pl.Datetime("us", "UTC"),
    }
)

#: The columns of a type: where each is stored, and its dtype.
Located = dict[str, tuple[Column, pl.DataType]]

#: How many columns `read` returns for a type without metadata: id, content, content_hash, created_at, updated_at.
COLUMNS_OF_A_TYPE = 5

#: The maximum number of types that are listed in a message.
MOST_NAMES = 20


def exists(
    engine: Engine, ids: Any, submit: Submit, progress: Progress = None, interrupt: Interrupt | None = None
) -> pl.DataFrame:
    """entity_type, id, exists Boolean; one row for each id, in input order."""
    given = _id_frame(ids)
    found = _by_position(engine, engine.existing, given, submit, progress, interrupt or Interrupt(), "exists")
    flags = pl.Series("exists", [False], dtype=pl.Boolean).new_from_index(0, given.height)
    return given.select(*KEY, flags.scatter(found["position"], True) if found.height else flags)


def get(
    engine: Engine, ids: Any, submit: Submit, progress: Progress = None, interrupt: Interrupt | None = None
) -> pl.DataFrame:
    """entity_type, id, found Boolean and the entity's columns, null where missing; in input order."""
    given = _id_frame(ids)
    found = _by_position(engine, engine.lookup, given, submit, progress, interrupt or Interrupt(), "get")
    if found.is_empty():
        found = pl.DataFrame(
            schema={"position": pl.UInt32(), **{k: v for k, v in ENTITY_SCHEMA.items() if k not in KEY}}
        )
    return given.join(found, on="position", how="left", maintain_order="left").select(
        *KEY, pl.col("content").is_not_null().alias("found"), *[n for n in ENTITY_SCHEMA if n not in KEY]
    )


def _id_frame(ids: Any) -> pl.DataFrame:
    """The ids as returned by `frames.usable_ids`, with their position."""
    frame = sources.as_frame(ids)
    check_id_schema(frame.schema)
    return usable_ids(frame).with_row_index("position")


def _by_position(
    engine: Engine,
    find: Callable[[pl.DataFrame], pl.DataFrame],
    given: pl.DataFrame,
    submit: Submit,
    progress: Progress,
    interrupt: Interrupt,
    what: str,
) -> pl.DataFrame:
    """Look up ids in chunks, for a call of this name; invalid keys are skipped, because they cannot be stored."""

    def look_up(chunk: pl.DataFrame) -> pl.DataFrame:
        interrupt.check()
        found = find(chunk.select(KEY))
        return found.with_columns(chunk["position"].gather(found["position"]))

    # Reading an index in order is twice as fast.
    keys = in_key_order(given.filter("usable"))
    if keys.height <= LEAST_LOOKUP and progress is None:
        return look_up(keys)
    # A database with a single writer (DuckDB) parallelizes a query by itself.
    rows = min(-(-keys.height // engine.database.writers), engine.database.lookup_rows)
    results = []
    with Reporter(progress, keys.height, what=what, unit="ids") as reporter:
        for found in map_concurrently(look_up, keys.iter_slices(rows), submit, engine.database.writers):
            results.append(found)
            reporter.advance(min(rows, keys.height - rows * (len(results) - 1)))
    return pl.concat(results)


def read(
    engine: Engine, entity_type: str, progress: Progress = None, interrupt: Interrupt | None = None
) -> pl.DataFrame:
    """All entities of a type with typed metadata columns, ordered by id."""
    located = _located(engine, entity_type)
    most = 0

    def everything() -> list[pl.DataFrame]:
        nonlocal most
        pieces, rows = [], 0
        for piece in _typed_pieces(engine, entity_type, located, list(located)):
            if interrupt is not None:
                interrupt.check()
            pieces.append(piece)
            rows += piece.height
            if rows > most:
                reporter.advance(rows - most)
                most = rows
        return pieces

    with Reporter(progress, lambda: engine.count(entity_type), what="read") as reporter:
        # No rows have been returned yet, so the whole read is repeated if the connection is lost.
        pieces = retry(everything)
    if not pieces:
        return pl.DataFrame(schema={name: dtype for name, (_, dtype) in located.items()})
    return pl.concat(pieces).sort("id")


def unknown_type_message(engine: Engine, entity_type: str) -> str | None:
    """The message for a type without entities and recorded fields; None for other types."""
    if Fields(engine).of(entity_type) or not engine.is_empty(entity_type):
        return None
    names = engine.types()["entity_type"].to_list()
    listed = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    close = get_close_matches(entity_type, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no entities of type {entity_type!r}: the store has {listed or 'no entities'}{hint}"


def scan(
    engine: Engine, entity_type: str | None, progress: Progress = False, cancel: threading.Event | None = None
) -> pl.LazyFrame:
    """A LazyFrame over the store; see `EntityStore.scan`."""
    shown: dict[str, Any] = {"progress": progress, "cancel": cancel, "count": lambda: engine.count(entity_type)}
    if entity_type is None:
        columns = {name: EntityColumn(name) for name in ENTITY_SCHEMA}

        def read_all(query: ScanQuery) -> Iterator[pl.DataFrame]:
            return engine.select(list(query.columns), None, query.where, query.limit, query.interrupt)

        return lazy_frame(ENTITY_SCHEMA, columns, read_all, name="entities", **shown)

    located = _located(engine, entity_type)
    schema = {name: dtype for name, (_, dtype) in located.items()}

    def read_type(query: ScanQuery) -> Iterator[pl.DataFrame]:
        return _typed_pieces(
            engine, entity_type, located, list(query.columns), query.where, query.limit, query.interrupt
        )

    places = {name: place for name, (place, _) in located.items()}
    return lazy_frame(schema, places, read_type, name=entity_type, **shown)


def located(engine: Engine, entity_type: str | None) -> tuple[dict[str, pl.DataType], dict[str, Column]]:
    """The columns by which the entities of a type can be filtered: their dtypes, and where each is stored."""
    if entity_type is None:
        return dict(ENTITY_SCHEMA), {name: EntityColumn(name) for name in ENTITY_SCHEMA}
    places = _located(engine, entity_type)
    return {name: dtype for name, (_, dtype) in places.items()}, {name: place for name, (place, _) in places.items()}


def passing(engine: Engine, entity_type: str | None, where: pl.Expr) -> pl.DataFrame:
    """entity_type and id of the entities that pass a filter which needs all entities at once; in key order."""
    entities = scan(engine, entity_type)
    if entity_type is not None:
        kept = entities.sort("id").filter(where).select(pl.lit(entity_type).alias("entity_type"), "id")
    else:
        kept = entities.sort(KEY).filter(where).select(KEY)
    # Without pushdown, the filter is applied to all rows, in order.
    return kept.collect(optimizations=pl.QueryOptFlags(predicate_pushdown=False))


def typed(engine: Engine, entity_type: str | None, entities: pl.DataFrame) -> pl.DataFrame:
    """Entities of a type with the columns of `read`, in order; unchanged if `entity_type` is None."""
    if entity_type is None:
        return entities
    located = _located(engine, entity_type)
    fields = {shown: place for shown, (place, _) in located.items() if isinstance(place, MetadataField)}
    return _with_fields(entities, fields)


def _located(engine: Engine, entity_type: str) -> Located:
    """The output columns of a type."""
    columns: Located = {name: (EntityColumn(name), ENTITY_SCHEMA[name]) for name in ("id", "content")}
    for name, field in Fields(engine).of(entity_type).items():
        shown = f"metadata.{name}" if name in ENTITY_SCHEMA else name
        columns[shown] = (MetadataField(name, field.dtype), field.output)
    return columns | {
        name: (EntityColumn(name), ENTITY_SCHEMA[name]) for name in ("content_hash", "created_at", "updated_at")
    }


def _typed_pieces(
    engine: Engine,
    entity_type: str,
    located: Located,
    columns: list[str],
    where: Predicate | None = None,
    limit: int | None = None,
    interrupt: Interrupt | None = None,
) -> Iterator[pl.DataFrame]:
    """Entities of a type with the given output columns; metadata is fetched only if one of its fields is needed."""
    places = {name: located[name][0] for name in columns}
    fields = {name: place for name, place in places.items() if isinstance(place, MetadataField)}
    needed = [name for name in columns if name not in fields] + (["metadata"] if fields else [])
    for piece in engine.select(needed or ["id"], entity_type, where, limit, interrupt):
        yield (_with_fields(piece, fields) if fields else piece).select(columns)


def _with_fields(entities: pl.DataFrame, fields: dict[str, MetadataField]) -> pl.DataFrame:
    """Entities whose metadata column is replaced by columns for its fields."""
    decoded = _decode(entities["metadata"], {field.name: field.dtype for field in fields.values()})
    decoded = decoded.rename({field.name: shown for shown, field in fields.items()})
    return entities.drop("metadata").hstack(decoded.get_columns())


def _decode(metadata: pl.Series, fields: dict[str, pl.DataType | None]) -> pl.DataFrame:
    """Typed columns read from JSON; a field without a common dtype is returned as JSON text."""
    mixed = [name for name, dtype in fields.items() if dtype is None]
    decoded = dtypes.decode(metadata, {name: dtype for name, dtype in fields.items() if dtype is not None})
    if not mixed:
        return decoded
    texts = canonical_json.json_fields(metadata.to_list(), mixed)
    columns = {name: texts[name] if name in texts else decoded[name] for name in fields}
    return pl.DataFrame(columns)
