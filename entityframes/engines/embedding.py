"""What embedding and search ask of a database, and the states of an embedding job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    import numpy as np

    from entityframes.engines.predicates import Predicate

#: The states of a job. pending: waits for a worker; running: a worker holds its lease; done: nothing of it is due
#: any more; failed: tried as often as allowed, with the reason in ``error``. The CHECK constraint says the same.
STATES = ("pending", "running", "done", "failed")

#: Every change of state that there is; `transition` refuses any other.
TRANSITIONS = frozenset(
    {
        ("pending", "running"),  # claimed
        ("running", "running"),  # its lease renewed, or taken over from a worker that died
        ("running", "done"),  # worked off
        ("running", "pending"),  # given back by a worker that stops
        ("running", "failed"),  # tried, or rescued, too often
        ("failed", "pending"),  # to be tried again
        ("done", "pending"),  # its space was dropped, and was the last: it waits for the next one
    }
)

#: Keys in a job that is made by `enqueue`.
JOB_ROWS = 5_000
#: A job that so many workers died at is failed, not given to the next one.
MAX_RESCUES = 25


def transition(old: str, new: str) -> tuple[str, str]:
    """A change of state, if it is one of `TRANSITIONS`.

    Raises:
        ValueError: it is not.
    """
    if (old, new) not in TRANSITIONS:
        raise ValueError(f"an embedding job does not go from {old} to {new}")
    return old, new


@dataclass(frozen=True)
class Job:
    """A job as its worker holds it. Only the holder of the latest fence can change it or write for it."""

    job_id: str
    space: str
    #: Counts the claims of a job, so that a worker whose lease ran out cannot pass for the one that has it now.
    fence: int
    #: Tries that the embedder answered with an error.
    attempts: int
    state: str = "running"
    #: Whether another worker had it, whose lease ran out.
    taken_over: bool = False


@dataclass(frozen=True)
class JobEnd:
    """What a job comes to."""

    state: str
    error: str | None = None
    #: Seconds for which it stays its worker's, where that goes on with it.
    lease: float = 0.0


@dataclass(frozen=True)
class Worker:
    """Who claims jobs."""

    #: Unique among all workers; begins with `process`.
    name: str
    #: The same for all workers of a process, and only for them.
    process: str
    #: Seconds after which a job is taken from a worker that has not been heard of.
    lease: float


class LeaseLostError(Exception):
    """Another worker has taken the job over; nothing was written."""


class EmbeddingEngine(Protocol):
    """A database that keeps spaces, jobs and vectors. Every method may raise DatabaseError."""

    #: Vectors of so many bytes are best written at once.
    write_bytes: int

    def spaces(self) -> pl.DataFrame:
        """space, model, dim, active Boolean, created_at; in the order in which they were made."""

    def coverage(self) -> pl.DataFrame:
        """space, embedded, due, failed of each space."""

    def add_space(self, space: str, model: str, dim: int) -> bool:
        """Make a space unless it is there; whether it was made here.

        An only space is active, and what upserts have queued fills it. One beside others begins with jobs for all that
        is due in it.
        """

    def activate_space(self, space: str) -> None:
        """Let searches use a space from now on."""

    def drop_space(self, space: str) -> None:
        """Delete a space with its vectors and jobs; the jobs of the last one become jobs of no space."""

    def index_space(self, space: str, dim: int) -> bool:
        """Make the index for approximate search; whether this database has one."""

    def enqueue(self, space: str | None, entity_type: str | None, keys: pl.DataFrame | None) -> int:
        """Make jobs for what is due in a space or failed there, of a type or of some keys; how many entities.

        Without a space the jobs are for the first one to come.
        """

    def retry_failed(self, space: str) -> int:
        """Make jobs for what failed in a space, and let failed jobs wait again; how many entities these jobs list."""

    def jobs(self, state: str | None) -> pl.DataFrame:
        """The jobs, oldest first."""

    def open_jobs(self, space: str) -> int:
        """How many jobs of a space, or of none yet, are pending or running."""

    def claim(self, space: str, worker: Worker) -> Job | None:
        """Take the oldest job that is free or whose worker is dead.

        A job of no space becomes one of this space, with a copy for every other space.
        """

    def members(self, job: Job) -> pl.DataFrame:
        """What is still due of a job, in key order.

        Returns:
            entity_type, id, content, content_hash (Binary), stored Boolean: whether there is a vector of older content.
        """

    def write_vectors(
        self, job: Job, rows: pl.DataFrame, vectors: np.ndarray[Any, Any], end: JobEnd, interrupt: Interrupt
    ) -> pl.DataFrame:
        """Write vectors in one transaction, each unless its content has changed.

        Args:
            job: who writes.
            rows: entity_type, id, content_hash, stored, error (null where there is a vector) in key order.
            vectors: float32 (rows, dim); rows with an error are not looked at.
            end: the state that the job gets in the same transaction: running, with its lease renewed, or done.

        Returns:
            entity_type, id of the rows that were written.

        Raises:
            LeaseLostError: the job is another worker's now.
        """

    def move(self, job: Job, end: JobEnd) -> bool:
        """Change the state of a job; False if it is another worker's by now."""

    def nearest(
        self, space: str, vector: np.ndarray[Any, Any], limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        """The entities with the most similar vectors, best first, ties by key.

        Returns:
            score Float64 (cosine) and the entity's columns, at most `limit` rows; whether there may be more.
        """


def wire(vectors: np.ndarray[Any, Any]) -> Sequence[Any]:
    """Vectors as pgvector's binary wire format: int16 dimension, int16 0, float32s, all big-endian."""
    import numpy as np
    import pyarrow as pa

    rows, dim = vectors.shape
    width = 4 + 4 * dim
    data = np.zeros((rows, width), np.uint8)
    data[:, :2] = np.array([dim], ">i2").view(np.uint8)
    data[:, 4:] = np.ascontiguousarray(vectors, ">f4").view(np.uint8)
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    values: Sequence[Any] = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return values


def from_wire(values: pl.Series, dim: int) -> np.ndarray[Any, Any]:
    """The vectors of a Binary Series in wire format, float32 (rows, dim)."""
    import numpy as np

    joined = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), 4 + 4 * dim)
    return np.ascontiguousarray(joined[:, 4:]).view(">f4").astype(np.float32)
