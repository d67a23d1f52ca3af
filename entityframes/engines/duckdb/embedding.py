"""Spaces, jobs, vectors and search on DuckDB: one process owns the file, its workers are threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from entityframes.engines import predicates
from entityframes.engines.arrow import to_frame
from entityframes.engines.duckdb.engine import _keys, _register
from entityframes.engines.duckdb.errors import translated
from entityframes.engines.embedding import JOB_ROWS, MAX_RESCUES, Job, JobEnd, LeaseLostError, Worker, transition
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.duckdb.engine import DuckDBEngine
    from entityframes.engines.predicates import Predicate


class DuckDBEmbedding:
    """The embedding side of a `DuckDBEngine`, on its cursors."""

    # Small writes go through the log and are written twice.
    write_bytes = 32 << 20

    def __init__(self, engine: DuckDBEngine) -> None:
        self._engine = engine

    # Spaces.

    def spaces(self) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "spaces")

    def coverage(self) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "coverage")

    def add_space(self, space: str, model: str, dim: int) -> bool:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            added = engine._run(cursor, "add_space", [space, model, dim])
            if added:
                with translated():
                    cursor.execute(self._filled("add_vector_column", dim=dim))
                if engine._ask(cursor, "has_others", [space]).item():
                    self._enqueue(cursor, space, "list_due", None)
            return bool(added)

    def activate_space(self, space: str) -> None:
        with self._engine._writer(Interrupt()) as cursor:
            self._engine._run(cursor, "activate_space", [space])

    def drop_space(self, space: str) -> None:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            for name in ("release_jobs", "delete_jobs", "delete_embeddings", "delete_space"):
                engine._run(cursor, name, [space])
            engine._run(cursor, "forget_keys")

    def index_space(self, space: str, dim: int) -> bool:
        return False

    # Jobs.

    def enqueue(self, space: str | None, entity_type: str | None, keys: pl.DataFrame | None) -> int:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            if keys is None:
                engine._run(cursor, "forget_errors", [space, entity_type])
                return self._enqueue(cursor, space, "list_due", entity_type)
            _register(cursor, "given", _keys(keys))
            engine._run(cursor, "forget_errors_of", [space])
            return self._enqueue(cursor, space, "list_given")

    def _enqueue(self, cursor: Any, space: str | None, lists: str, *more: Any) -> int:
        """Make lists of keys, and a job for each; how many keys there are."""
        self._engine._run(cursor, "forget_keys")
        self._engine._run(cursor, lists, [space, JOB_ROWS, *more])
        return int(self._engine._ask(cursor, "enqueue", [space])["entities"].sum())

    def retry_failed(self, space: str) -> int:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            again = engine._ask(cursor, "requeue_jobs", [space, *transition("failed", "pending")])
            _register(cursor, "given", _keys(engine._ask(cursor, "failed_keys", [space])))
            engine._run(cursor, "forget_errors_of", [space])
            return int(again["entities"].sum()) + self._enqueue(cursor, space, "list_given")

    def jobs(self, state: str | None) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "jobs", [state])

    def open_jobs(self, space: str) -> int:
        with self._engine._cursor() as cursor:
            return int(self._engine._ask(cursor, "open_jobs", [space]).item())

    def claim(self, space: str, worker: Worker) -> Job | None:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            found = engine._ask(cursor, "next_job", [space, MAX_RESCUES, worker.process])
            if found.is_empty():
                given = [space, MAX_RESCUES, *transition("running", "failed"), worker.process]
                engine._run(cursor, "bury", given)
                return None
            job = found.row(0, named=True)
            if job["space"] is None:
                engine._run(cursor, "copy_job", [job["job_id"], space])
            rescues = job["rescues"] + (job["state"] == "running")
            engine._run(cursor, "claim", [job["job_id"], space, worker.name, worker.lease, rescues])
        return Job(job["job_id"], space, job["fence"] + 1, job["attempts"])

    def members(self, job: Job) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "members", [job.job_id, job.space])

    def move(self, job: Job, end: JobEnd) -> bool:
        with self._engine._writer(Interrupt()) as cursor:
            return self._move(cursor, job, end)

    def _move(self, cursor: Any, job: Job, end: JobEnd) -> bool:
        given = [job.job_id, job.fence, *transition(job.state, end.state), job.attempts, end.error, end.lease]
        return self._engine._run(cursor, "move", given) == 1

    # Vectors.

    def write_vectors(
        self, job: Job, rows: pl.DataFrame, vectors: np.ndarray[Any, Any], end: JobEnd, interrupt: Interrupt
    ) -> pl.DataFrame:
        engine = self._engine
        dim = vectors.shape[1]
        given = rows.with_row_index("position")
        with engine._writer(interrupt) as cursor, engine._transaction(cursor, interrupt):
            if not self._move(cursor, job, end):
                raise LeaseLostError
            _register(cursor, "given", given.drop("error", "stored"))
            current = engine._ask(cursor, "current", [job.space])
            written = given[current["position"]]
            if current["stored"].any():
                _register(cursor, "given", written.filter(current["stored"]).select("entity_type", "id"))
                engine._run(cursor, "delete_written", [job.space])
            column = _vectors(vectors[current["position"].to_numpy()], written["error"].is_null())
            with translated():
                cursor.register("given", written.drop("stored").to_arrow().append_column("vector", column))
                cursor.execute(self._filled("insert_vectors", dim=dim), [job.space])
        return written.select("entity_type", "id")

    # Search.

    def nearest(
        self, space: str, vector: np.ndarray[Any, Any], limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        name = "nearest" if where is None else "nearest_where"
        condition = "true" if where is None else predicates.render(where, predicates.DUCKDB)
        sql = self._filled(name, dim=len(vector), condition=condition)
        found = self._search(sql, [space, vector.tolist(), limit, entity_type])
        return found.drop_nulls("id"), found.height == limit

    def _search(self, sql: str, parameters: list[Any]) -> pl.DataFrame:
        with self._engine._cursor() as cursor, translated():
            return to_frame(cursor.sql(sql, params=parameters).to_arrow_table())

    def _filled(self, name: str, **places: Any) -> str:
        """A statement with a dimension or a rendered predicate put in."""
        sql = self._engine._statement(name)
        for place, value in places.items():
            sql = sql.replace("{" + place + "}", str(value))
        return sql


def _vectors(vectors: np.ndarray[Any, Any], valid: pl.Series) -> pa.Array:
    """Vectors as an Arrow array of lists, null where not valid.

    Made of buffers: `pa.array` imports pandas where that is installed, and a mask all of Arrow's functions.
    """
    flat = pl.Series(vectors.ravel(), dtype=pl.Float32).to_arrow()
    bits = pa.py_buffer(np.packbits(valid.to_numpy(), bitorder="little"))
    return pa.Array.from_buffers(pa.list_(pa.float32(), vectors.shape[1]), len(vectors), [bits], children=[flat])
