"""The calls of a store that are about embeddings, thin; what is behind them is imported when it is called."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes import forks
from entityframes.engines.base import Engine, check_writable
from entityframes.errors import EmbedderError
from entityframes.progress import Progress, Reporter
from entityframes.reading import lookup
from entityframes.results import EmbedResult, UpsertResult

if TYPE_CHECKING:
    from entityframes.embedding import Embedder
    from entityframes.embedding.search import Mode


@forks.guarded
class EmbeddingCalls:
    """Embedding, its jobs and spaces, and search; a part of `EntityStore`."""

    _engine: Engine
    #: The embedders that this store has used, by model, so that a search need not name one.
    _embedders: dict[str, Embedder]
    #: The result of the last upsert, delete or embed, also where it ended in an exception.
    last_result: UpsertResult | None

    def embed(
        self,
        embedder: Embedder,
        *,
        space: str | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        max_attempts: int = 3,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> EmbedResult:
        """Embed what is due, job by job, until no job is left; several processes may do so at once on PostgreSQL.

        A vector is written only while the content is still what was embedded. Of a batch that fails, the texts at
        fault are found and recorded; `retry_failed` queues them again.

        Args:
            embedder: see `entityframes.embedding.Embedder`.
            space: where its vectors go; None for the active space, or a new one of the model's name. A space that is
                not the first begins with everything that is due in it.
            batch_size: texts in a call of the embedder; None for as many as it takes.
            workers: how many jobs are worked off at once, each in a thread.
            max_attempts: how often a call is tried while the embedder is busy, after 1, 2, 4, ... 60 seconds or as
                long as it says; then the job is failed and its entities stay due.
            progress, cancel: as in `upsert`, but the batch in flight is still written.

        Returns:
            EmbedResult, whose ``outcomes`` have one row for each entity that was due in a job, in the order of the
            work. It is not `ok` while entities are due in jobs that failed, or that a stopped run left open;
            what is due and in no job, since it was stored with ``embed=False``, its text tells, and `enqueue` queues.

        Raises:
            SpaceError: the space is of another model or dimension.
            EmbedderError: the embedder cannot work at all: every text fails. A space that was new is not kept.
            DatabaseError: the database cannot.
            KeyboardInterrupt: on Ctrl-C; `last_result` holds what was done.
        """
        from entityframes.embedding.worker import EmbedOptions

        return self._embed(embedder, space, EmbedOptions(batch_size, workers, max_attempts), progress, cancel)

    def _embed(
        self, embedder: Embedder, space: str | None, options: Any, progress: Progress, cancel: threading.Event | None
    ) -> EmbedResult:
        from entityframes.embedding import spaces
        from entityframes.embedding.worker import EmbedRun

        check_writable(self._engine)
        name, made = spaces.settle(self._engine, embedder, space)
        self._embedders[embedder.name] = embedder
        run = EmbedRun(self._engine, embedder, name, options)
        if not self._engine.embedding.open_jobs(name):
            # A bar would be full of what is in no job.
            progress = False

        def due() -> int:
            return int(self._engine.stats(name)["due"].sum())

        with Reporter(progress, due, unit="texts") as reporter:
            try:
                return run.execute(reporter, cancel)
            except EmbedderError:
                if made:
                    spaces.undo(self._engine, name)
                raise
            finally:
                self.last_result = run.result()

    def enqueue(self, what: Any = None, /, *, space: str | None = None) -> int:
        """Make embedding jobs for what is due or failed: what was stored with ``embed=False``, for one.

        Args:
            what: an entity type, an id frame, or None for everything.
            space: where it is due; None for the active space, or the first one to come.

        Returns:
            How many entities the jobs list.

        Raises:
            SpaceError: there is no such space.
            SchemaError: `what` is no id frame.
        """
        from entityframes.embedding import jobs

        check_writable(self._engine)
        if isinstance(what, str):
            self._warn_of_unknown(what)
        return jobs.enqueue(self._engine, what, space)

    def _warn_of_unknown(self, entity_type: str) -> None:
        """Warn of a type that the store has nothing of, which is often a slip of the pen."""
        said = lookup.unknown_type_message(self._engine, entity_type)
        if said is not None:
            warnings.warn(said, UserWarning, stacklevel=4)

    def retry_failed(self, *, space: str | None = None) -> int:
        """Queue again what the embedder refused, and the jobs that failed; how many entities these jobs list."""
        from entityframes.embedding import spaces

        check_writable(self._engine)
        return self._engine.embedding.retry_failed(spaces.find(self._engine, space)["space"])

    def jobs(self, state: str | None = None) -> pl.DataFrame:
        """The embedding jobs, oldest first.

        Args:
            state: "pending", "running", "done" or "failed"; None for all.

        Returns:
            ``job_id``, ``batch_id``, ``space`` (null until a worker takes it), ``state`` Enum, ``entities`` Int64 (how
            many it lists), ``attempts`` Int64, ``worker``, ``lease_until``, ``error``, ``created_at``, ``updated_at``.
        """
        from entityframes.embedding import jobs

        return jobs.jobs(self._engine, state)

    def spaces(self) -> pl.DataFrame:
        """The spaces, oldest first.

        Returns:
            ``space``, ``model``, ``dim`` Int64, ``active`` Boolean, ``embedded``, ``due``, ``failed`` Int64 (how many
            entities), ``created_at``.
        """
        from entityframes.embedding import jobs

        return jobs.spaces(self._engine)

    def activate(self, space: str) -> None:
        """Let searches use a space from now on. Raises SpaceError if there is no such space."""
        from entityframes.embedding import spaces

        check_writable(self._engine)
        self._engine.embedding.activate_space(spaces.find(self._engine, space)["space"])

    def drop_space(self, space: str) -> None:
        """Delete a space with its vectors. Raises SpaceError if there is none, or if others wait and it is active."""
        from entityframes.embedding import jobs

        check_writable(self._engine)
        jobs.drop_space(self._engine, space)

    def index_space(self, space: str | None = None) -> bool:
        """Make the index for approximate search (pgvector's HNSW), after which vectors cost more to write.

        Returns:
            Whether there is one now. Without it (DuckDB, PostgreSQL without pgvector 0.8) search is exact.
        """
        from entityframes.embedding import spaces

        check_writable(self._engine)
        row = spaces.find(self._engine, space)
        return self._engine.embedding.index_space(row["space"], row["dim"])

    def search(
        self,
        query: Any,
        *,
        entity_type: str | None = None,
        k: int = 10,
        mode: Mode = "vector",
        where: pl.Expr | None = None,
        embedder: Embedder | None = None,
    ) -> pl.DataFrame:
        """Find entities by meaning, by words, or by both.

        Args:
            query: a text, or for ``mode="vector"`` also a vector (any sequence of numbers). An empty text, or one of
                spaces, finds nothing.
            entity_type: the type to search; None for all. One that the store has nothing of is a UserWarning.
            k: how many entities at most.
            mode: "vector" compares with the active space by cosine, "text" ranks by words (BM25), "hybrid" fuses both
                rankings. A vector of content that has changed since is not compared.
            where: a filter over the columns of `read` where a type is given, else over those of `scan`; applied before
                the limit, by the database as far as it judges like Polars. One that looks at more than a row (a
                maximum, ``over``, ``shift``) keeps what it would keep of `read`, and takes as long.
            embedder: what embeds the query; None for the one that this store has used for the space, or a shipped one
                of that name.

        Returns:
            ``rank`` UInt32 from 1, ``score`` Float64 (cosine, BM25, or the sum of 1 / (10 + rank)), and the entity's
            columns; best first, equal scores by key.

        Raises:
            SpaceError: nothing is embedded yet, or embedder or vector do not fit.
            EmbedderError: the query cannot be embedded.
        """
        from entityframes.embedding.search import search

        if entity_type is not None:
            self._warn_of_unknown(entity_type)
        return search(
            self._engine, query, entity_type=entity_type, k=k, mode=mode, where=where, embedder=embedder,
            remembered=self._embedders,
        )  # fmt: skip
