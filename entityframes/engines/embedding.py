"""The database operations for embedding and vector search, and the states of an embedding job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    import numpy as np

    from entityframes.engines.predicates import Predicate

#: The states of a job. pending: waits for a worker; running: a worker holds its lease; done: none of its entities is
#: due any more; failed: out of attempts, with the reason in ``error``. A CHECK constraint enforces the same states.
STATES = ("pending", "running", "done", "failed")

#: All valid transitions between states.
TRANSITIONS = frozenset(
    {
        ("pending", "running"),  # claimed
        ("running", "running"),  # its lease was renewed, or it was taken over from a dead worker
        ("running", "done"),  # finished
        ("running", "pending"),  # released by a worker that stops
        ("running", "failed"),  # too many attempts, or taken over too often
        ("failed", "pending"),  # to be retried
        ("done", "pending"),  # its space was dropped and was the last one: it waits for the next space
    }
)

#: The number of keys in a job created by `enqueue`.
JOB_ROWS = 5_000
#: The number of texts that a search compares for each entity that it returns: an entity may have several passages.
TEXTS = 4
#: How many times as many it compares if a filter is applied to them afterwards.
WIDER = 8
#: How often a job is taken over from a dead worker before it is marked as failed.
MAX_RESCUES = 25


def transition(old: str, new: str) -> tuple[str, str]:
    """Check a transition against `TRANSITIONS` and return it.

    Raises:
        ValueError: the transition is invalid.
    """
    if (old, new) not in TRANSITIONS:
        raise ValueError(f"invalid transition of an embedding job: from {old} to {new}")
    return old, new


@dataclass(frozen=True)
class Job:
    """A job that is held by a worker. Only the holder of the latest fencing token can change it or write vectors."""

    job_id: str
    space: str
    #: The fencing token: the number of claims of the job, which excludes workers whose lease has expired.
    fence: int
    #: The number of failed attempts.
    attempts: int
    state: str = "running"
    #: Whether another worker had it, whose lease ran out.
    taken_over: bool = False


@dataclass(frozen=True)
class JobEnd:
    """The next state of a job."""

    state: str
    error: str | None = None
    #: The new lease in seconds, if the worker continues with the job.
    lease: float = 0.0


@dataclass(frozen=True)
class Worker:
    """A worker that claims jobs."""

    #: Unique among all workers; begins with `process`.
    name: str
    #: The name of the process, shared by all its workers.
    process: str
    #: Seconds until the lease of a job expires, unless it is renewed.
    lease: float


@dataclass(frozen=True)
class Embedded:
    """What a worker writes in one transaction: vectors of texts, and the passages of entities that are complete."""

    #: text_hash (Binary, SHA-256) and error (null if there is a vector), one row per text.
    texts: pl.DataFrame
    #: float32 (texts, dim); vectors of texts with an error are ignored.
    vectors: np.ndarray[Any, Any]
    #: row UInt32, entity_type, id, content_hash, metadata_hash (null if it does not matter), stored, in key order.
    entities: pl.DataFrame
    #: row, position Int32, start Int64, end Int64, heading, text_hash: all passages of the entities, in this order.
    passages: pl.DataFrame

    def by_hash(self) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
        """The texts and the vectors, ordered by hash, so that concurrent workers cannot deadlock."""
        order = self.texts["text_hash"].arg_sort()
        return self.texts[order], self.vectors[order.to_numpy()]

    def passages_of(self, entities: pl.DataFrame) -> pl.DataFrame:
        """The passages of some of the entities, with the keys and hashes of these, in key order."""
        keys = entities.select("row", "entity_type", "id", "content_hash", "metadata_hash")
        columns = ["position", "start", "end", "heading", "text_hash"]
        return keys.join(self.passages, on="row", maintain_order="left_right").select(keys.columns[1:] + columns)

    def reused(self, passages: pl.DataFrame) -> pl.Series:
        """The hashes of passages that are not among the texts written: their vectors must be stored already."""
        hashes = passages.select("text_hash").drop_nulls().unique()
        return hashes.join(self.texts, on="text_hash", how="anti")["text_hash"]


class LeaseLostError(Exception):
    """Another worker has taken over the job; nothing was written."""


class VectorsGoneError(Exception):
    """A vector that a passage needs was deleted meanwhile; nothing was written."""


class EmbeddingEngine(Protocol):
    """A database that stores spaces, jobs and vectors. Every method may raise DatabaseError."""

    #: The preferred number of bytes of vectors in a write.
    write_bytes: int

    def spaces(self) -> pl.DataFrame:
        """space, model, dim, passages (null: none), active Boolean, created_at; in order of creation."""

    def coverage(self) -> pl.DataFrame:
        """space, embedded, due, failed of each space."""

    def add_space(self, space: str, model: str, dim: int, passages: str | None) -> bool:
        """Create a space unless it exists; returns whether it was created.

        The first space is active, and gets the jobs that upserts have queued. For any further space, jobs are created
        for everything that is due in it.
        """

    def activate_space(self, space: str) -> None:
        """Make a space the one that searches use by default."""

    def drop_space(self, space: str) -> None:
        """Delete a space with its vectors and jobs; the jobs of the last space are kept, without a space."""

    def index_space(self, space: str, dim: int, interrupt: Interrupt, advance: Callable[[int], None]) -> bool:
        """Create the index for approximate search; returns whether this database supports one.

        Args:
            space, dim: the space and the dimension of its vectors.
            interrupt: cancels it; nothing of the index remains.
            advance: called with the number of further vectors that are indexed.
        """

    def enqueue(self, space: str | None, entity_type: str | None, keys: pl.DataFrame | None) -> int:
        """Create jobs for what is due or failed in a space, of a type or of given keys; returns the number of entities.

        Without a space the jobs are for the first space that is created.
        """

    def retitled(self, space: str) -> pl.DataFrame:
        """entity_type, id of the entities that were cut with a title, and whose metadata have changed since."""

    def retry_failed(self, space: str) -> int:
        """Create jobs for what failed in a space, and requeue failed jobs; returns the number of entities in these."""

    def jobs(self, state: str | None) -> pl.DataFrame:
        """The jobs, oldest first."""

    def open_jobs(self, space: str) -> int:
        """The number of pending and running jobs of a space, including those without a space."""

    def claim(self, space: str, worker: Worker) -> Job | None:
        """Claim the oldest job that is pending, or whose lease has expired.

        A job without a space is assigned to this space, with a copy for every other space.
        """

    def split_jobs(self, space: str, rows: int) -> int:
        """Split pending jobs with more keys than `rows`, so that more workers share them; returns how many were split.

        On DuckDB nothing is split: its workers are threads of one process.
        """

    def give_back(self, process: str) -> int:
        """Let the leases of a process that has died expire now, for others to claim; returns the number of its jobs.

        On DuckDB there are none: its workers have died with the process that could call this.
        """

    def now(self) -> datetime:
        """The time of the database."""

    def embedded_by(self, process: str, space: str, since: datetime) -> pl.DataFrame:
        """The entities of jobs that a process was the last to claim, with a vector that was written since some time.

        Returns:
            job_id, entity_type, id, error (String, of a text that cannot be embedded).
        """

    def members(self, job: Job, metadata: bool) -> pl.DataFrame:
        """The entities of a job that are still due, in key order.

        Args:
            job: the job.
            metadata: whether the metadata is needed.

        Returns:
            entity_type, id, content, content_hash (Binary), metadata (JSON text, or null), metadata_hash (Binary),
            stored Boolean (whether the entity has passages in the space, of older content too).
        """

    def embedded(self, space: str, hashes: pl.Series) -> pl.DataFrame:
        """text_hash and error of those of the given texts (Binary, SHA-256) that have a vector or an error."""

    def write_vectors(self, job: Job, embedded: Embedded, end: JobEnd, interrupt: Interrupt) -> pl.DataFrame:
        """Write vectors in one transaction, and the passages of entities, except of those that have changed.

        A text that has a vector keeps it.

        Args:
            job: the job that the entities belong to.
            embedded: what is written.
            end: the next state of the job, set in the same transaction: running, with a renewed lease, or done.
            interrupt: cancels the transaction.

        Returns:
            entity_type, id of the entities whose passages were written.

        Raises:
            LeaseLostError: another worker now holds the job.
            VectorsGoneError: a passage needs a vector that was deleted.
        """

    def put_vectors(self, space: str, embedded: Embedded, interrupt: Interrupt) -> pl.DataFrame:
        """Like `write_vectors` without a job; the vectors replace those that the texts have."""

    def vectors(self, space: str, dim: int, entity_type: str | None) -> Iterator[pl.DataFrame]:
        """All vectors of current contents, in chunks, in no particular order.

        Returns:
            entity_type, id, content_hash (hex), start, end, heading, vector Array(Float32).
        """

    def vacuum(self) -> int:
        """Delete vectors and errors that no passage uses; returns their number."""

    def move(self, job: Job, end: JobEnd) -> bool:
        """Change the state of a job; returns False if another worker now holds it."""

    def nearest(
        self, space: str, vector: np.ndarray[Any, Any], limit: int, entity_type: str | None, where: Predicate | None
    ) -> tuple[pl.DataFrame, bool]:
        """The entities with the nearest passages, best first, ties ordered by key.

        Returns:
            score Float64 (cosine), the columns of the entity, and start, end (null: to the end) and heading of its best
            passage, at most `limit` rows; and whether there may be more.
        """

    def passages_near(self, space: str, vector: np.ndarray[Any, Any], keys: pl.DataFrame) -> pl.DataFrame:
        """The passages of entities that still have the given content_hash (hex), best first for each entity.

        Returns:
            position, score Float64 (cosine), start, end (null: to the end), heading.
        """


def certain(found: pl.DataFrame, limit: int, texts: int) -> tuple[pl.DataFrame, bool]:
    """The entities of the result of a search that come first in any case, and whether there may be more.

    Args:
        found: the result, with the number of texts that were considered, and the lowest of their scores.
        limit: the maximum number of entities.
        texts: the maximum number of texts. If there are so many, others may have the lowest score too, and their
            entities may come before those that were found.
    """
    considered, lowest = found.select("considered", "lowest").row(0)
    hits = found.drop("considered", "lowest").drop_nulls("id")
    if considered < texts:
        return hits, hits.height == limit
    return hits.filter(pl.col("score") > lowest), True


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
