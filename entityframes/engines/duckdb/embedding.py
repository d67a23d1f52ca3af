"""Spaces, jobs, vectors and vector search on DuckDB: one process owns the file, and its workers are threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from entityframes.engines import predicates
from entityframes.engines.duckdb.session import Session, Sessions
from entityframes.engines.embedding import (
    JOB_ROWS,
    MAX_RESCUES,
    TEXTS,
    WIDER,
    Embedded,
    Job,
    JobEnd,
    LeaseLostError,
    VectorsGoneError,
    Worker,
    certain,
    transition,
)
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.predicates import Predicate


class DuckDBEmbedding:
    """The `EmbeddingEngine` of a `DuckDBEngine`."""

    # Small writes go through the write-ahead log, and are thus written twice.
    write_bytes = 32 << 20

    def __init__(self, engine: Sessions) -> None:
        self._engine = engine

    # Spaces.

    def spaces(self) -> pl.DataFrame:
        return self._engine.read("spaces")

    def coverage(self) -> pl.DataFrame:
        return self._engine.read("coverage")

    def add_space(self, space: str, model: str, dim: int, passages: str | None) -> bool:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            added = session.execute("add_space", space, model, dim, passages)
            if added:
                session.execute("add_vector_column", placeholders={"dim": dim})
                if session.query("has_others", space).item():
                    self._enqueue(session, space, "list_due", None)
            return bool(added)

    def activate_space(self, space: str) -> None:
        with self._engine.session(writing=True) as session:
            session.execute("activate_space", space)

    def drop_space(self, space: str) -> None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            for name in ("release_jobs", "delete_jobs", "delete_embeddings", "delete_space_passages", "delete_space"):
                session.execute(name, space)
            session.execute("forget_keys")

    def index_space(self, space: str, dim: int, interrupt: Interrupt, advance: Callable[[int], None]) -> bool:
        return False

    # Jobs.

    def enqueue(self, space: str | None, entity_type: str | None, keys: pl.DataFrame | None) -> int:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            if keys is None:
                session.execute("forget_errors", space, entity_type)
                return self._enqueue(session, space, "list_due", entity_type)
            session.register_keys(keys)
            session.execute("forget_errors_of", space)
            return self._enqueue(session, space, "list_given")

    def _enqueue(self, session: Session, space: str | None, lists: str, *more: Any) -> int:
        """Create lists of keys and a job for each list; returns the number of keys."""
        session.execute("forget_keys")
        session.execute(lists, space, JOB_ROWS, *more)
        return int(session.query("enqueue", space)["entities"].sum())

    def retitled(self, space: str) -> pl.DataFrame:
        return self._engine.read("retitled", space)

    def retry_failed(self, space: str) -> int:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            again = session.query("requeue_jobs", space, *transition("failed", "pending"))
            session.register_keys(session.query("failed_keys", space))
            session.execute("forget_errors_of", space)
            return int(again["entities"].sum()) + self._enqueue(session, space, "list_given")

    def jobs(self, state: str | None) -> pl.DataFrame:
        return self._engine.read("jobs", state)

    def open_jobs(self, space: str) -> int:
        return int(self._engine.read("open_jobs", space).item())

    def claim(self, space: str, worker: Worker) -> Job | None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            found = session.query("next_job", space, MAX_RESCUES, worker.process)
            if found.is_empty():
                given = [space, MAX_RESCUES, *transition("running", "failed"), worker.process]
                session.execute("fail_abandoned", *given)
                return None
            job = found.row(0, named=True)
            if job["space"] is None:
                session.execute("copy_job", job["job_id"], space)
            taken_over = job["state"] == "running"
            rescues = job["rescues"] + taken_over
            session.execute("claim", job["job_id"], space, worker.name, worker.lease, rescues)
        return Job(job["job_id"], space, job["fence"] + 1, job["attempts"], taken_over=taken_over)

    def split_jobs(self, space: str, rows: int) -> int:
        return 0

    def give_back(self, process: str) -> int:
        return 0

    def now(self) -> datetime:
        found: datetime = self._engine.read("clock").item()
        return found

    def embedded_by(self, process: str, space: str, since: datetime) -> pl.DataFrame:
        return self._engine.read("embedded_by", process, space, since)

    def members(self, job: Job, metadata: bool) -> pl.DataFrame:
        column = "e.metadata::VARCHAR" if metadata else "NULL::VARCHAR"
        return self._engine.read("members", job.job_id, job.space, placeholders={"metadata": column})

    def move(self, job: Job, end: JobEnd) -> bool:
        with self._engine.session(writing=True) as session:
            return self._move(session, job, end)

    def _move(self, session: Session, job: Job, end: JobEnd) -> bool:
        given = [job.job_id, job.fence, *transition(job.state, end.state), job.attempts, end.error, end.lease]
        return session.execute("move", *given) == 1

    # Vectors.

    def embedded(self, space: str, hashes: pl.Series) -> pl.DataFrame:
        with self._engine.session() as session:
            session.register("texts", hashes.to_frame("text_hash"))
            return session.query("embedded", space)

    def write_vectors(self, job: Job, embedded: Embedded, end: JobEnd, interrupt: Interrupt) -> pl.DataFrame:
        with self._engine.session(interrupt, writing=True) as session, session.transaction(interrupt):
            if not self._move(session, job, end):
                raise LeaseLostError
            return self._write(session, job.space, embedded, "replace_errors")

    def put_vectors(self, space: str, embedded: Embedded, interrupt: Interrupt) -> pl.DataFrame:
        with self._engine.session(interrupt, writing=True) as session, session.transaction(interrupt):
            return self._write(session, space, embedded, "replace_vectors")

    def _write(self, session: Session, space: str, embedded: Embedded, replace: str) -> pl.DataFrame:
        """Write vectors and passages, in a transaction; `replace` deletes the vectors or errors that are replaced."""
        if embedded.texts.height:
            self._insert_vectors(session, space, embedded, replace)
        session.register("given", embedded.entities.drop("row", "stored").with_row_index("position"))
        current = session.query("current", space)
        written = embedded.entities[current["position"]]
        passages = embedded.passages_of(written)
        reused = embedded.reused(passages)
        session.register("texts", reused.to_frame())
        if len(reused) and session.query("embedded", space).height < len(reused):
            raise VectorsGoneError
        if current["stored"].any():
            session.register("given", written.filter(current["stored"]).select("entity_type", "id"))
            session.execute("replace_passages", space)
        session.register("given", passages)
        session.execute("insert_passages", space)
        return written.select("entity_type", "id")

    def _insert_vectors(self, session: Session, space: str, embedded: Embedded, replace: str) -> None:
        texts = embedded.texts.select("text_hash", "error")
        vectors = _vectors(embedded.vectors, texts["error"].is_null())
        session.register("texts", texts.to_arrow().append_column("vector", vectors))
        session.execute(replace, space)
        session.execute("insert_vectors", space, placeholders={"dim": embedded.vectors.shape[1]})

    def vectors(self, space: str, dim: int, entity_type: str | None) -> Iterator[pl.DataFrame]:
        with self._engine.session() as session:
            yield from session.stream("vectors", space, entity_type, placeholders={"dim": dim})

    def vacuum(self) -> int:
        with self._engine.session(writing=True) as session:
            return session.execute("vacuum")

    # Search.

    def nearest(
        self, space: str, vector: np.ndarray[Any, Any], limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        condition = "true" if where is None else predicates.render(where, predicates.DUCKDB)
        placeholders = {"dim": len(vector), "condition": condition}

        def query(name: str, texts: int) -> tuple[pl.DataFrame, bool]:
            given = (space, vector.tolist(), limit, entity_type, texts)
            with self._engine.session() as session:
                return certain(session.query(name, *given, placeholders=placeholders), limit, texts)

        if where is None:
            # If most entities have the type, there are enough among the nearest of all.
            texts = limit * TEXTS * (1 if entity_type is None else WIDER)
            hits, more = query("nearest", texts)
            if entity_type is None or hits.height >= limit or not more:
                return hits, more
        return query("nearest_of_type" if where is None else "nearest_where", limit * TEXTS)

    def passages_near(self, space: str, vector: np.ndarray[Any, Any], keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine.session() as session:
            session.register("given", keys.select("entity_type", "id", "content_hash").with_row_index("position"))
            return session.query("passages_near", space, vector.tolist(), placeholders={"dim": len(vector)})


def _vectors(vectors: np.ndarray[Any, Any], valid: pl.Series) -> pa.Array:
    """Vectors as an Arrow array of lists, null where not valid.

    Created from buffers, because `pa.array` imports pandas if it is installed, and a mask imports all of Arrow's
    compute functions.
    """
    flat = pl.Series(vectors.ravel(), dtype=pl.Float32).to_arrow()
    bits = pa.py_buffer(np.packbits(valid.to_numpy(), bitorder="little"))
    return pa.Array.from_buffers(pa.list_(pa.float32(), vectors.shape[1]), len(vectors), [bits], children=[flat])
