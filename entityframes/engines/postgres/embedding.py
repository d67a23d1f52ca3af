"""Spaces, jobs, vectors and vector search on PostgreSQL: with pgvector, or else an exact search on the client."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from entityframes.engines import predicates
from entityframes.engines.embedding import (
    JOB_ROWS,
    MAX_RESCUES,
    Job,
    JobEnd,
    LeaseLostError,
    Worker,
    from_wire,
    transition,
    wire,
)
from entityframes.engines.postgres.errors import NO_COPY, READ_ONLY, UNIQUE_VIOLATION
from entityframes.engines.postgres.session import Session, Sessions
from entityframes.errors import ConnectionLostError, DatabaseError, RowError, SpaceError
from entityframes.interrupt import Interrupt
from entityframes.retry import retry

if TYPE_CHECKING:
    from entityframes.engines.predicates import Predicate

#: The maximum dimension of pgvector's HNSW index, and of a vector that is stored inline in its row.
INDEXED_DIM = 2_000
INLINE_DIM = 1_900


Vectors = np.ndarray[Any, Any]


class PostgresEmbedding:
    """The `EmbeddingEngine` of a `PostgresEngine`."""

    write_bytes = 8 << 20

    def __init__(self, engine: Sessions) -> None:
        self._engine = engine

    # Spaces.

    def spaces(self) -> pl.DataFrame:
        return self._engine.read("spaces")

    def coverage(self) -> pl.DataFrame:
        return self._engine.read("coverage")

    def add_space(self, space: str, model: str, dim: int) -> bool:
        engine = self._engine
        storage = "pgvector" if self._has_pgvector() else "vector"
        with engine.session() as session, session.transaction(Interrupt()):
            session.query("space_lock", engine.namespace)
            added = session.query("add_space", space, model, str(dim), storage)
            if added.is_empty():
                return False
            if storage == "pgvector" and not session.query("has_vector_column").item():
                session.execute("add_vector_column")
            placeholders = {"number": added.item(), "space": space, "storage": storage}
            session.execute("add_partition", placeholders=placeholders)
            if dim <= INLINE_DIM:
                session.execute("store_inline", placeholders=placeholders)
            if session.query("has_others", space).item():
                session.query("enqueue", space, str(JOB_ROWS), None)
            return True

    def activate_space(self, space: str) -> None:
        with self._engine.session() as session:
            session.execute("activate_space", space)

    def drop_space(self, space: str) -> None:
        engine = self._engine
        number = self._space(space)["number"]
        with engine.session() as session, session.transaction(Interrupt()):
            session.query("space_lock", engine.namespace)
            session.execute("release_jobs", space)
            session.execute("delete_space", space)
            session.execute("drop_partition", placeholders={"number": number})

    def index_space(self, space: str, dim: int) -> bool:
        engine, stored = self._engine, self._space(space)
        if stored["storage"] != "pgvector" or dim > INDEXED_DIM:
            return False
        with engine.session() as session, session.transaction(Interrupt()):
            session.execute("build_memory")
            session.execute("create_index", placeholders={"number": stored["number"], "dim": dim})
            session.execute("analyze_vectors", placeholders={"number": stored["number"]})
        return True

    # Jobs.

    def enqueue(self, space: str | None, entity_type: str | None, keys: pl.DataFrame | None) -> int:
        engine = self._engine
        with engine.session() as session, session.transaction(Interrupt()):
            if keys is None:
                session.execute("forget_errors", space, entity_type)
                queued = session.query("enqueue", space, str(JOB_ROWS), entity_type)
            else:
                columns = [keys["entity_type"], keys["id"]]
                session.execute("forget_errors_of", space, *columns)
                queued = session.query("enqueue_keys", space, str(JOB_ROWS), *columns)
        return int(queued["entities"].sum())

    def retry_failed(self, space: str) -> int:
        engine = self._engine
        with engine.session() as session, session.transaction(Interrupt()):
            again = session.query("requeue_jobs", space, *transition("failed", "pending"))
            queued = session.query("enqueue_failed", space, str(JOB_ROWS))
        return int(again["entities"].sum()) + int(queued["entities"].sum())

    def jobs(self, state: str | None) -> pl.DataFrame:
        with self._engine.session() as session:
            return session.query("jobs", state)

    def open_jobs(self, space: str) -> int:
        with self._engine.session() as session:
            return int(session.query("open_jobs", space).item())

    def claim(self, space: str, worker: Worker) -> Job | None:
        engine = self._engine
        with engine.session() as session:
            claimed = session.query("claim", space, worker.name, str(worker.lease), str(MAX_RESCUES))
            if claimed.is_empty():
                session.execute("fail_abandoned", space, str(MAX_RESCUES), *transition("running", "failed"))
                return None
            found = claimed.row(0, named=True)
            return Job(found["job_id"], space, found["fence"], found["attempts"], taken_over=found["taken_over"])

    def split_jobs(self, space: str, rows: int) -> int:
        with self._engine.session() as session:
            return session.query("split_jobs", space, str(rows)).height

    def give_back(self, process: str) -> int:
        with self._engine.session() as session:
            return session.query("give_back", process).height

    def now(self) -> datetime:
        found: datetime = self._engine.read("clock").item()
        return found

    def embedded_by(self, process: str, space: str, since: datetime) -> pl.DataFrame:
        return self._engine.read("embedded_by", process, space, since.isoformat())

    def members(self, job: Job) -> pl.DataFrame:
        with self._engine.session() as session:
            return session.query("members", job.job_id, job.space)

    def move(self, job: Job, end: JobEnd) -> bool:
        with self._engine.session() as session:
            return self._move(session, job, end)

    def _move(self, session: Session, job: Job, end: JobEnd) -> bool:
        states = transition(job.state, end.state)
        given = [job.job_id, str(job.fence), *states, str(job.attempts), end.error, str(end.lease)]
        return not session.query("move", *given).is_empty()

    # Vectors.

    def write_vectors(
        self, job: Job, rows: pl.DataFrame, vectors: Vectors, end: JobEnd, interrupt: Interrupt
    ) -> pl.DataFrame:
        """See `EmbeddingEngine.write_vectors`. New vectors are copied directly into the table, others are merged."""
        space = self._space(job.space)
        with self._engine.session(interrupt) as session:
            try:
                return self._write_vectors(session, space, job, rows, vectors, end, interrupt)
            except RowError as error:
                if error.sqlstate not in (UNIQUE_VIOLATION, NO_COPY):
                    raise
                # Another worker has written the same entity from another job, or a row-level policy forbids COPY.
                session.rollback()
                rows = rows.with_columns(stored=True)
                return self._write_vectors(session, space, job, rows, vectors, end, interrupt)

    def _write_vectors(
        self,
        session: Session,
        space: dict[str, Any],
        job: Job,
        rows: pl.DataFrame,
        vectors: Vectors,
        end: JobEnd,
        interrupt: Interrupt,
    ) -> pl.DataFrame:
        storage = space["storage"]
        with session.transaction(interrupt):
            if not self._move(session, job, end):
                raise LeaseLostError
            keys = [rows[name] for name in ("entity_type", "id", "content_hash")]
            held = session.query("hold_current", *keys)["position"].sort()
            current, vectors = rows[held], vectors[held.to_numpy()]
            stored = current["stored"].to_numpy()
            if not stored.all():
                table = _table(current.filter(~stored), vectors[~stored], storage)
                table = table.append_column("space", pa.repeat(job.space, table.num_rows))
                session.copy(f"embeddings_{space['number']}", table)
            if stored.any():
                kind = "vector" if storage == "pgvector" else "bytea"
                session.execute("create_vector_staging", placeholders={"type": kind})
                table = _table(current.filter(stored), vectors[stored], "vector")
                session.stage("entityframes_vectors", table)
                session.execute("merge_vectors", job.space, placeholders={"storage": storage})
            return current.select("entity_type", "id")

    # Search.

    def nearest(
        self, space: str, vector: Vectors, limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        stored = self._space(space)
        if stored["storage"] != "pgvector":
            return retry(lambda: self._nearest_here(space, vector, limit, entity_type, where))
        name = "nearest" if where is None else "nearest_where"
        condition = "true" if where is None else predicates.render(where, predicates.POSTGRESQL)
        given = (space, "[" + ",".join(map(repr, vector.tolist())) + "]", str(limit), entity_type)
        placeholders = {"dim": stored["dim"], "order": "distance, entity_type, id", "condition": condition}
        statements = self._engine.statements
        breadth = statements.format("search_breadth", {"breadth": min(max(limit, 40), 1000)})
        settings = (Interrupt(), statements["iterative_scan"], breadth)

        def query() -> pl.DataFrame:
            with self._engine.session() as session, session.transaction(*settings):
                return session.query(name, *given, placeholders=placeholders)

        found = retry(query)
        return found.drop_nulls("id"), found.height == limit

    def _nearest_here(
        self, space: str, vector: Vectors, limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        """Without pgvector: stream all vectors and keep the best ones."""
        condition = "true" if where is None else predicates.render(where, predicates.POSTGRESQL)
        best = pl.DataFrame(schema={"entity_type": pl.String, "id": pl.String, "content_hash": pl.Binary})
        best = best.with_columns(score=pl.lit(None, pl.Float64))
        with self._engine.session() as session:
            for chunk in session.stream("vectors", space, entity_type, placeholders={"condition": condition}):
                if chunk.is_empty():
                    continue
                score = pl.Series("score", from_wire(chunk["vector"], len(vector)) @ vector, pl.Float64)
                chunk = chunk.drop("vector").with_columns(score)
                best = pl.concat([best, chunk]).sort("score", "entity_type", "id", descending=[True, False, False])
                best = best.head(limit)
            found = session.query("entities_of", best["entity_type"], best["id"], best["content_hash"])
        score = best["score"].gather(found["position"])
        return found.drop("position").insert_column(0, score), best.height == limit

    def _has_pgvector(self) -> bool:
        """Whether pgvector can be used; the extension is created if this user has the right to."""
        with self._engine.session() as session:
            found = session.query("pgvector")
        if found.is_empty():
            return False
        return bool(found["installed"].item()) or (bool(found["available"].item()) and self._try("create_pgvector"))

    def _try(self, name: str) -> bool:
        """Execute a statement for which this user may lack the privilege; returns whether it succeeded."""
        try:
            with self._engine.session() as session:
                session.execute(name)
        except DatabaseError as error:
            if isinstance(error, ConnectionLostError) and error.sqlstate != READ_ONLY:
                raise
            return False
        return True

    def _space(self, space: str) -> dict[str, Any]:
        for row in self.spaces().iter_rows(named=True):
            if row["space"] == space:
                return row
        raise SpaceError(f"the space {space!r} was dropped")


def _table(rows: pl.DataFrame, vectors: Vectors, name: str) -> pa.Table:
    """Rows with their vectors in the wire format, null for rows with an error."""
    column = wire(vectors)
    failed = rows["error"].is_not_null()
    if failed.any():
        column = pc.if_else(failed.to_arrow(), None, column)
    return rows.drop("stored").to_arrow().append_column(name, column)
