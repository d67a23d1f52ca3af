"""Spaces, jobs, vectors and vector search on PostgreSQL: with pgvector, or else an exact search on the client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
    TEXTS,
    WIDER,
    Embedded,
    Job,
    JobEnd,
    LeaseLostError,
    VectorsGoneError,
    Worker,
    certain,
    from_wire,
    transition,
    wire,
)
from entityframes.engines.postgres.errors import NO_COPY, READ_ONLY, UNIQUE_VIOLATION
from entityframes.engines.postgres.session import Session, Sessions
from entityframes.errors import (
    ConnectionLostError,
    DatabaseError,
    EntityFramesError,
    RowError,
    SpaceError,
    StatementCancelledError,
)
from entityframes.interrupt import Interrupt
from entityframes.retry import retry

if TYPE_CHECKING:
    from entityframes.engines.predicates import Predicate

#: The maximum dimension of pgvector's HNSW index, and of a vector that is stored inline in its row.
INDEXED_DIM = 2_000
INLINE_DIM = 1_900
#: Seconds between two looks at how much of an index is built.
FOLLOW_SECONDS = 0.5
#: If fewer passages than this pass the filter of a search, all of them are compared, without the index.
FEW = 5_000


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

    def add_space(self, space: str, model: str, dim: int, passages: str | None) -> bool:
        engine = self._engine
        storage = "pgvector" if self._has_pgvector() else "vector"
        with engine.session() as session, session.transaction(Interrupt()):
            session.query("space_lock", engine.namespace)
            added = session.query("add_space", space, model, str(dim), passages, storage)
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

    def index_space(self, space: str, dim: int, interrupt: Interrupt, advance: Callable[[int], None]) -> bool:
        engine, stored = self._engine, self._space(space)
        if stored["storage"] != "pgvector" or dim > INDEXED_DIM:
            return False
        number = {"number": stored["number"]}
        with (
            self._following(number, interrupt, advance),
            engine.session(interrupt) as session,
            session.transaction(interrupt),
        ):
            session.execute("build_memory")
            session.execute("create_index", placeholders={**number, "dim": dim})
            session.execute("analyze_vectors", placeholders=number)
        return True

    @contextmanager
    def _following(
        self, number: dict[str, Any], interrupt: Interrupt, advance: Callable[[int], None]
    ) -> Iterator[None]:
        """Report how many vectors are indexed, as another connection sees it, within this context."""
        ended = threading.Event()
        raised: list[BaseException] = []

        def follow() -> None:
            done = 0
            try:
                while not ended.wait(FOLLOW_SECONDS):
                    for indexed in self._engine.read("index_progress", placeholders=number)["indexed"]:
                        advance(indexed - done)
                        done = indexed
            except EntityFramesError:
                # The index does not depend on its progress.
                return
            except BaseException as error:
                # An error of the caller's function, which ends the call.
                raised.append(error)
                interrupt.fire()

        thread = threading.Thread(target=follow, name="entityframes-index", daemon=True)
        thread.start()
        try:
            yield
        except StatementCancelledError:
            if raised:
                raise raised[0] from None
            raise
        finally:
            ended.set()
            thread.join()

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

    def retitled(self, space: str) -> pl.DataFrame:
        return self._engine.read("retitled", space)

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

    def members(self, job: Job, metadata: bool) -> pl.DataFrame:
        column = "e.metadata::text" if metadata else "NULL::text"
        return self._engine.read("members", job.job_id, job.space, placeholders={"metadata": column})

    def move(self, job: Job, end: JobEnd) -> bool:
        with self._engine.session() as session:
            return self._move(session, job, end)

    def _move(self, session: Session, job: Job, end: JobEnd) -> bool:
        states = transition(job.state, end.state)
        given = [job.job_id, str(job.fence), *states, str(job.attempts), end.error, str(end.lease)]
        return not session.query("move", *given).is_empty()

    # Vectors.

    def embedded(self, space: str, hashes: pl.Series) -> pl.DataFrame:
        return self._engine.read("embedded", space, hashes)

    def write_vectors(self, job: Job, embedded: Embedded, end: JobEnd, interrupt: Interrupt) -> pl.DataFrame:
        """See `EmbeddingEngine.write_vectors`. New rows are copied directly into the tables, others are merged."""
        space = self._space(job.space)
        with self._engine.session(interrupt) as session:
            try:
                return self._write_vectors(session, space, job, embedded, end, interrupt, merge=False)
            except RowError as error:
                if error.sqlstate not in (UNIQUE_VIOLATION, NO_COPY):
                    raise
                # Another worker has written the same text or entity, or a row-level policy forbids COPY.
                session.rollback()
                return self._write_vectors(session, space, job, embedded, end, interrupt, merge=True)

    def _write_vectors(
        self,
        session: Session,
        space: dict[str, Any],
        job: Job,
        embedded: Embedded,
        end: JobEnd,
        interrupt: Interrupt,
        *,
        merge: bool,
    ) -> pl.DataFrame:
        with session.transaction(interrupt):
            if not self._move(session, job, end):
                raise LeaseLostError
            return self._write(session, space, embedded, merge=merge)

    def put_vectors(self, space: str, embedded: Embedded, interrupt: Interrupt) -> pl.DataFrame:
        stored = self._space(space)
        with self._engine.session(interrupt) as session, session.transaction(interrupt):
            return self._write(session, stored, embedded, merge=True, replace=True)

    def _write(
        self, session: Session, space: dict[str, Any], embedded: Embedded, *, merge: bool, replace: bool = False
    ) -> pl.DataFrame:
        """Write vectors and passages, in a transaction."""
        name = space["space"]
        written = self._current(session, embedded.entities)
        if embedded.texts.height:
            self._insert_vectors(session, space, embedded, merge, replace)
        passages = embedded.passages_of(written)
        reused = embedded.reused(passages)
        if len(reused):
            session.query("keep_vectors", self._engine.namespace)
            if session.query("embedded", name, reused).height < len(reused):
                raise VectorsGoneError
        older = written.filter(merge | pl.col("stored"))
        if older.height:
            session.execute("delete_entity_passages", name, older["entity_type"], older["id"])
        if passages.height:
            self._insert_passages(session, space, passages, merge)
        return written.select("entity_type", "id")

    def _current(self, session: Session, entities: pl.DataFrame) -> pl.DataFrame:
        """Those of the entities that have not changed, and cannot change until the end of the transaction."""
        if entities.is_empty():
            return entities
        keys = [entities[name] for name in ("entity_type", "id", "content_hash", "metadata_hash")]
        return entities[session.query("hold_current", *keys)["position"].sort()]

    def _insert_vectors(
        self, session: Session, space: dict[str, Any], embedded: Embedded, merge: bool, replace: bool
    ) -> None:
        storage = space["storage"]
        texts, vectors = embedded.by_hash()
        if merge:
            kind = "vector" if storage == "pgvector" else "bytea"
            session.execute("create_vector_staging", placeholders={"type": kind})
            session.stage("entityframes_vectors", _table(texts, vectors, "vector"))
            session.execute("merge_vectors", space["space"], str(replace), placeholders={"storage": storage})
        else:
            table = _table(texts, vectors, storage)
            table = table.append_column("space", pa.repeat(space["space"], table.num_rows))
            session.copy(f"embeddings_{space['number']}", table)

    def _insert_passages(self, session: Session, space: dict[str, Any], passages: pl.DataFrame, merge: bool) -> None:
        names = {"start": "start_char", "end": "end_char"}
        table = passages.rename(names).with_columns(space=pl.lit(space["space"])).to_arrow()
        if merge:
            session.execute("create_passage_staging")
            session.stage("entityframes_passages", table)
            session.execute("merge_passages")
        else:
            session.copy(f"passages_{space['number']}", table)

    def vectors(self, space: str, dim: int, entity_type: str | None) -> Iterator[pl.DataFrame]:
        vector = "vector_send(v.pgvector)" if self._space(space)["storage"] == "pgvector" else "v.vector"
        with self._engine.session() as session:
            for chunk in session.stream("all_vectors", space, entity_type, placeholders={"vector": vector}):
                values = pl.Series("vector", from_wire(chunk["vector"], dim), pl.Array(pl.Float32, dim))
                yield chunk.with_columns(values)

    def vacuum(self) -> int:
        engine = self._engine
        with engine.session() as session, session.transaction(Interrupt()):
            session.query("delay_writers", engine.namespace)
            return int(session.query("vacuum").item())

    # Search.

    def nearest(
        self, space: str, vector: Vectors, limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        stored, texts = self._space(space), limit * TEXTS
        condition = "true" if where is None else predicates.render(where, predicates.POSTGRESQL)
        if stored["storage"] != "pgvector":
            found = retry(lambda: self._nearest_here(space, vector, limit, entity_type, condition))
            return certain(found, limit, texts)
        query = _Nearest(self._engine, (space, _text(vector), str(limit), entity_type), stored["dim"], condition)
        if where is None and entity_type is None:
            found = query.of_all(texts)
            # A scan of the index ends after a number of vectors, though deleted ones may be among them.
            if found["id"].count() < limit and found["considered"][0] < texts and self._has_index(stored["number"]):
                found = query.of_all(texts, exact=True)
            return certain(found, limit, texts)
        found = query.of_few("nearest_of_few" if where is None else "nearest_of_few_where", texts)
        if found["considered"][0] is not None:
            return certain(found, limit, texts)
        # Many pass the filter, so probably there are enough of them among the nearest of all.
        hits, more = certain(query.of_all(texts * WIDER), limit, texts * WIDER)
        return (hits, more) if hits.height >= limit else certain(query.of_many(texts), limit, texts)

    def _has_index(self, number: int) -> bool:
        with self._engine.session() as session:
            return bool(session.query("has_index", placeholders={"number": number}).item())

    def _nearest_here(
        self, space: str, vector: Vectors, limit: int, entity_type: str | None, condition: str
    ) -> pl.DataFrame:
        """Without pgvector: stream all vectors and keep the best ones."""
        best = pl.DataFrame(schema={"text_hash": pl.Binary, "score": pl.Float64})
        texts = limit * TEXTS
        with self._engine.session() as session:
            for chunk in session.stream("vectors", space, entity_type, placeholders={"condition": condition}):
                if chunk.is_empty():
                    continue
                score = pl.Series("score", from_wire(chunk["vector"], len(vector)) @ vector, pl.Float64)
                best = pl.concat([best, chunk.drop("vector").with_columns(score)])
                best = best.sort("score", descending=True).head(texts)
            given = (space, best["text_hash"], str(limit), entity_type, best["score"])
            return session.query("nearest_of", *given, placeholders={"condition": condition, "considered": "count(*)"})

    def passages_near(self, space: str, vector: Vectors, keys: pl.DataFrame) -> pl.DataFrame:
        stored, given = self._space(space), (keys["entity_type"], keys["id"], keys["content_hash"])
        if stored["storage"] == "pgvector":
            placeholders = {"dim": stored["dim"]}
            with self._engine.session() as session:
                return session.query("passages_near", space, _text(vector), *given, placeholders=placeholders)
        found = self._engine.read("passage_vectors", space, *given)
        score = pl.Series("score", from_wire(found["vector"], len(vector)) @ vector, pl.Float64)
        scored = found.drop("vector").insert_column(1, score)
        return scored.sort("position", "score", descending=[False, True], maintain_order=True)

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


@dataclass(frozen=True)
class _Nearest:
    """The statements of one search by vector."""

    engine: Sessions
    #: space, vector, limit, entity_type.
    given: tuple[str | None, ...]
    dim: int
    condition: str

    def of_all(self, texts: int, *, exact: bool = False) -> pl.DataFrame:
        """The nearest of all texts, by the index if there is one; the filter is applied to their entities."""
        statements = self.engine.statements
        breadth = statements.format("search_breadth", {"breadth": min(max(texts, 40), 1000)})
        order = "distance + 0" if exact else "distance"
        return self._query("nearest", str(texts), settings=(statements["iterative_scan"], breadth), order=order)

    def of_few(self, name: str, texts: int) -> pl.DataFrame:
        """The nearest of those that pass the filter; considered is null if `FEW` passages or more do."""
        counted = "CASE WHEN (SELECT count(*) FROM eligible) < $6::int8 THEN count(*) END"
        return self._query(name, str(texts), str(FEW), considered=counted)

    def of_many(self, texts: int) -> pl.DataFrame:
        """Likewise for any number."""
        return self._query("nearest_of_many", str(texts))

    def _query(
        self, name: str, *numbers: str, settings: tuple[str, ...] = (), considered: str = "count(*)", order: str = ""
    ) -> pl.DataFrame:
        more = {"dim": self.dim, "condition": self.condition, "considered": considered, "order": order}

        def query() -> pl.DataFrame:
            with (
                self.engine.session() as session,
                session.transaction(Interrupt(), *settings) if settings else nullcontext(),
            ):
                return session.query(name, *self.given, *numbers, placeholders=more)

        return retry(query)


def _text(vector: Vectors) -> str:
    """A vector as pgvector reads it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _table(texts: pl.DataFrame, vectors: Vectors, name: str) -> pa.Table:
    """Texts with their vectors in the wire format, null for texts with an error."""
    column = wire(vectors)
    failed = texts["error"].is_not_null()
    if failed.any():
        column = pc.if_else(failed.to_arrow(), None, column)
    return texts.select("text_hash", "error").to_arrow().append_column(name, column)
