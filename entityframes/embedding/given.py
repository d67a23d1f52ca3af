"""Vectors that the caller brings and takes, and pairs of entities whose vectors are near each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from entityframes.embedding import spaces
from entityframes.embedding.passages import Passages
from entityframes.embedding.texts import cut
from entityframes.engines.base import Engine
from entityframes.engines.embedding import Embedded, VectorsGoneError
from entityframes.errors import SchemaError, SpaceError
from entityframes.frames import sources
from entityframes.frames.schema import KEY, check_id_schema, numbered, usable_ids
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.results import EMBED_STATUSES, EmbedResult, OutcomeLog, outcome_schema, outcomes
from entityframes.retry import retry

#: About how many bytes of vectors are written in a transaction.
_BYTES = 16 << 20
#: How many entities are compared with all others at once.
_BLOCK = 2_048

Array = np.ndarray[Any, Any]


class GivenVectors:
    """One call of `put_vectors`.

    Args:
        engine: the store.
        given: the frame of the caller.
        space: the space.
        model: the model of a new space; None for the name of the space.
        interrupt: stops the call between two transactions.

    Raises:
        SchemaError: a column is missing, or has another dtype.
        SpaceError: the space is one of passages, and the frame has no places; or its name is invalid.
    """

    def __init__(self, engine: Engine, given: Any, space: str, model: str | None, interrupt: Interrupt) -> None:
        self._engine, self._interrupt = engine, interrupt
        self._frame = _checked(sources.as_frame(given))
        self._row, self._passages = self._space(space, model)
        self._log = OutcomeLog(EMBED_STATUSES)
        self._batches, self._done, self._started = 0, 0, time.perf_counter()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self._frame.height

    def result(self) -> EmbedResult:
        """The result so far."""
        elapsed = time.perf_counter() - self._started
        return EmbedResult(dict(self._log.counts), self._batches, elapsed, self._log, self._row["space"])

    def execute(self, reporter: Reporter) -> None:
        """Write the vectors; `result` stays correct even if this raises."""
        reporter.track(self._log.counts)
        rows = numbered(self._frame)
        step = max(1, _BYTES // (4 * self._row["dim"]))
        try:
            for part in rows.iter_slices(step):
                self._interrupt.check()
                self._write(part)
                self._done += part.height
                reporter.advance(part.height)
        finally:
            left = rows[self._done :]
            self._append(left.with_columns(usable_ids(left).drop("usable")), status="cancelled")

    def _space(self, space: str, model: str | None) -> tuple[dict[str, Any], Passages | None]:
        known = self._engine.embedding.spaces()["space"]
        if space not in known:
            spaces.check_name(space)
            lengths = self._frame["vector"].list.len().drop_nulls()
            if lengths.is_empty() or not lengths[0]:
                raise SpaceError(f"there is no space named {space!r}, and no vector to create it with")
            spaces.check_dim(lengths[0], "the vectors")
            spaces.add(self._engine, space, model or space, lengths[0], None)
        row = spaces.find(self._engine, space)
        if model is not None and row["model"] != model:
            raise SpaceError(f"the space {space} contains vectors of {row['model']}, not of {model}")
        passages = spaces.recorded(row)
        if passages is not None and not {"start", "end"} <= set(self._frame.columns):
            raise SpaceError(
                f"the space {space} has vectors of passages: the frame needs the columns start and end of each"
            )
        return row, passages

    def _write(self, rows: pl.DataFrame) -> None:
        """Write the vectors of some rows in one transaction, and log what became of each row."""
        keyed = rows.with_columns(usable_ids(rows))
        vectors, wrong = _vectors(rows["vector"], self._row["dim"])
        keyed = keyed.drop("vector").with_columns(place=pl.int_range(pl.len()), error=wrong)
        keyed = keyed.with_columns(error=pl.when("usable").then("error").otherwise(pl.lit("null or invalid key")))
        self._append(keyed.filter(pl.col("error").is_not_null()), status="failed", error_kind="validation")
        valid = keyed.filter(pl.col("error").is_null()).drop("error")
        entities = self._entities(valid.select(KEY).unique(maintain_order=True))
        joined = valid.join(
            entities.select(*KEY, "entity", hash="content_hash"), on=KEY, how="left", maintain_order="left"
        )
        given = pl.col("content_hash") if "content_hash" in valid.columns else pl.lit(None, pl.String)
        gone = pl.when(pl.col("entity").is_null()).then(pl.lit("the entity is not stored"))
        other = pl.when(given != pl.col("hash").bin.encode("hex")).then(pl.lit("the stored content has another hash"))
        joined = joined.with_columns(error=pl.coalesce(gone, other))
        self._append(joined.filter(pl.col("error").is_not_null()), status="skipped")
        current = joined.filter(pl.col("error").is_null()).drop("error")
        passages = cut(entities.rename({"entity": "row"}), self._passages)
        found = self._places(current, passages)
        self._append(found.filter(pl.col("text_hash").is_null()), status="failed", error_kind="validation",
                     error="the content has no passage at this place")  # fmt: skip
        found = found.drop_nulls("text_hash")
        if found.is_empty():
            return
        try:
            self._put(found, vectors, entities, passages)
        except VectorsGoneError:
            # A vector of another passage was deleted after it was looked up.
            self._put(found, vectors, entities, passages)
        self._append(found, batches=1, status="embedded")

    def _entities(self, keys: pl.DataFrame) -> pl.DataFrame:
        """The given keys that are stored: entity UInt32, key, content, content_hash, metadata, metadata_hash."""
        found = self._engine.lookup(keys)
        titled = self._passages is not None and self._passages.title_fields
        hashes = (
            self._engine.stored(keys).select("position", "metadata_hash", stored="content_hash") if titled else None
        )
        entities = pl.concat([keys[found["position"]], found.drop("created_at", "updated_at")], how="horizontal")
        entities = entities.with_columns(pl.col("content_hash").str.decode("hex"))
        if hashes is not None:
            entities = entities.join(hashes, on="position", maintain_order="left")
            entities = entities.filter(pl.col("content_hash") == pl.col("stored")).drop("stored")
        else:
            entities = entities.with_columns(metadata_hash=pl.lit(None, pl.Binary))
        return entities.drop("position").with_row_index("entity")

    def _places(self, rows: pl.DataFrame, passages: pl.DataFrame) -> pl.DataFrame:
        """The rows with the text_hash of their passages, null where there is none."""
        columns = passages.select("start", "end", "text_hash", entity="row")
        if self._passages is None:
            return rows.join(columns.select("entity", "text_hash"), on="entity", how="left", maintain_order="left")
        return rows.join(columns, on=["entity", "start", "end"], how="left", maintain_order="left")

    def _put(self, rows: pl.DataFrame, vectors: Array, entities: pl.DataFrame, passages: pl.DataFrame) -> None:
        texts = rows.unique("text_hash", keep="last", maintain_order=True)
        error = pl.lit(None, pl.String).alias("error")
        hashes = passages["text_hash"].drop_nulls().unique()
        there = self._engine.embedding.embedded(self._row["space"], hashes).filter(pl.col("error").is_null())
        known = pl.concat([there["text_hash"], texts["text_hash"]])
        lacking = passages.filter(~pl.col("text_hash").is_in(known.implode()), pl.col("text_hash").is_not_null())["row"]
        complete = entities.rename({"entity": "row"}).filter(~pl.col("row").is_in(lacking.implode())).sort(KEY)
        kept = complete.select("row", *KEY, "content_hash", "metadata_hash", stored=pl.lit(True))
        ours = passages.join(kept.select("row"), on="row", how="semi", maintain_order="left").drop("text")
        embedded = Embedded(texts.select("text_hash", error), vectors[texts["place"].to_numpy()], kept, ours)
        retry(lambda: self._engine.embedding.put_vectors(self._row["space"], embedded, self._interrupt))

    def _append(self, rows: pl.DataFrame, batches: int = 0, **columns: Any) -> None:
        self._batches += batches
        self._log.append(outcomes(rows, outcome_schema(EMBED_STATUSES), **columns))


def _checked(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of the frame that are used, vectors as lists of Float32.

    Raises:
        SchemaError: a column is missing, or has another dtype.
    """
    check_id_schema(frame.schema)
    dtype = frame.schema.get("vector")
    inner = getattr(dtype, "inner", None)
    if not isinstance(dtype, pl.List | pl.Array) or inner is None or not inner.is_numeric():
        raise SchemaError(f"a column vector with lists of numbers is needed, got {dtype or 'none'}")
    casts: list[pl.Expr] = [pl.col("vector").cast(pl.List(pl.Float32))]
    for name, wanted in (("content_hash", pl.String()), ("start", pl.Int64()), ("end", pl.Int64())):
        found = frame.schema.get(name)
        if found is not None and found != wanted and not (wanted == pl.Int64() and found.is_integer()):
            raise SchemaError(f"the column {name} is {found}, expected {wanted}")
        if found is not None:
            casts.append(pl.col(name).cast(wanted))
    return frame.select(*KEY, *casts)


def _vectors(column: pl.Series, dim: int) -> tuple[Array, pl.Series]:
    """The vectors of length 1, float32 (rows, dim), and why each is not usable, or null."""
    length = column.list.len()
    errors = pl.select(
        pl.when(length.is_null())
        .then(pl.lit("the vector is null"))
        .when(length != dim)
        .then(pl.format("the vector has {} dimensions, the space has {}", length, pl.lit(dim)))
    ).to_series()
    right = errors.is_null()
    vectors = np.zeros((len(column), dim), np.float32)
    if right.any():
        flat = column.filter(right).explode().fill_null(float("nan"))
        vectors[right.to_numpy()] = flat.to_numpy().reshape(-1, dim)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    finite, filled = pl.Series(np.isfinite(lengths)), pl.Series(lengths > 0)
    usable = (finite & filled).to_numpy()
    vectors[~usable] = 0
    vectors[usable] /= lengths[usable, None]
    reasons = (
        pl.when(errors.is_not_null())
        .then(errors)
        .when(~finite)
        .then(pl.lit("the vector contains NaN, infinity or null"))
        .when(~filled)
        .then(pl.lit("the vector is all zeros"))
    )
    return vectors, pl.select(reasons).to_series()


def vectors(engine: Engine, space: str | None, entity_type: str | None = None) -> pl.DataFrame:
    """See `EntityStore.vectors`."""
    row = spaces.find(engine, space)
    parts = engine.embedding.vectors(row["space"], row["dim"], entity_type)
    texts = dict.fromkeys(("entity_type", "id", "content_hash"), pl.String())
    places = {"start": pl.Int64(), "end": pl.Int64(), "heading": pl.String()}
    schema = pl.Schema({**texts, **places, "vector": pl.Array(pl.Float32, row["dim"])})
    found = pl.concat([pl.DataFrame(schema=schema), *(part.select(schema.names()).cast(schema) for part in parts)])
    return found.sort("entity_type", "id", "start")


def similar(
    engine: Engine, entity_type: str, threshold: float, limit: int, space: str | None, progress: Progress,
    interrupt: Interrupt,
) -> pl.DataFrame:  # fmt: skip
    """See `EntityStore.similar`."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be more than 0 and at most 1, got {threshold!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a positive integer, got {limit!r}")
    ids, means = _means(vectors(engine, space, entity_type))
    best = pl.DataFrame(schema={"a": pl.UInt32, "b": pl.UInt32, "score": pl.Float64})
    with Reporter(progress, len(ids), what="compare", unit="entities") as reporter:
        for pairs in _pairs(means, threshold, reporter, interrupt):
            best = pl.concat([best, pairs]).sort("score", "a", "b", descending=[True, False, False]).head(limit)
    return best.select(id=ids.gather(best["a"]), other_id=ids.gather(best["b"]), score="score")


def _means(rows: pl.DataFrame) -> tuple[pl.Series, Array]:
    """The ids of entities in order, and the mean vectors of their passages, of length 1."""
    numbered_ids = rows.select("id").unique(maintain_order=True).with_row_index("entity")
    entity = rows.select("id").join(numbered_ids, on="id", how="left", maintain_order="left")["entity"].to_numpy()
    sums = np.zeros((numbered_ids.height, rows["vector"].dtype.size), np.float64)  # type: ignore[attr-defined]
    np.add.at(sums, entity, rows["vector"].to_numpy())
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return numbered_ids["id"], (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _pairs(means: Array, threshold: float, reporter: Reporter, interrupt: Interrupt) -> Iterator[pl.DataFrame]:
    for start in range(0, len(means), _BLOCK):
        interrupt.check()
        scores = means[start : start + _BLOCK] @ means[start:].T
        # Each pair once, and none of an entity with itself. Rounding must not exclude equal vectors.
        first, second = np.nonzero(np.triu(scores >= threshold - 1e-6, 1))
        found = np.minimum(scores[first, second].astype(np.float64), 1.0)
        yield pl.DataFrame(
            {"a": (first + start).astype(np.uint32), "b": (second + start).astype(np.uint32), "score": found}
        )
        reporter.advance(min(_BLOCK, len(means) - start))
