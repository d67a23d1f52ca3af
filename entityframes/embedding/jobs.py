"""Jobs and spaces as frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from entityframes.embedding import spaces as spaces_
from entityframes.engines.base import Engine
from entityframes.engines.embedding import STATES
from entityframes.errors import EntityFramesError, SpaceError
from entityframes.frames import sources
from entityframes.frames.schema import KEY, check_id_schema, usable_ids
from entityframes.retry import retry

_TIME = pl.Datetime("us", "UTC")
JOB_SCHEMA = pl.Schema(
    {
        "job_id": pl.String(),
        "batch_id": pl.String(),
        "space": pl.String(),
        "state": pl.Enum(STATES),
        "entities": pl.Int64(),
        "attempts": pl.Int64(),
        "worker": pl.String(),
        "lease_until": _TIME,
        "error": pl.String(),
        "created_at": _TIME,
        "updated_at": _TIME,
    }
)


def jobs(engine: Engine, state: str | None) -> pl.DataFrame:
    """See `EntityStore.jobs`."""
    if state is not None and state not in STATES:
        raise ValueError(f"state must be {', '.join(map(repr, STATES))} or None, got {state!r}")
    return engine.embedding.jobs(state).select(pl.col(name).cast(dtype) for name, dtype in JOB_SCHEMA.items())


def spaces(engine: Engine) -> pl.DataFrame:
    """See `EntityStore.spaces`."""
    counts = pl.col("embedded", "due", "failed").cast(pl.Int64)
    covered = engine.embedding.spaces().join(engine.embedding.coverage(), on="space", how="left", maintain_order="left")
    return covered.select("space", "model", pl.col("dim").cast(pl.Int64), "passages", "active", counts, "created_at")


def stats(engine: Engine, space: str | None) -> pl.DataFrame:
    """See `EntityStore.stats`."""
    if space is not None:
        spaces_.find(engine, space)
    return engine.stats(space).with_columns(pl.col("entities", "embedded", "due", "failed").cast(pl.Int64))


def drop_space(engine: Engine, space: str) -> None:
    """See `EntityStore.drop_space`."""
    row = spaces_.find(engine, space)
    if row["active"] and engine.embedding.spaces().height > 1:
        raise SpaceError(f"the space {space} is active", advice="activate another space before dropping it")
    spaces_.drop(engine, space)


@dataclass(frozen=True)
class Remaining:
    """Counts what is still due in a space after a run."""

    engine: Engine
    space: str

    def waiting(self, *, stopped: bool) -> int:
        """How many entities are due in failed jobs, or in open jobs left by a stopped run."""
        kept = self._listed("failed") + (self._open() if stopped else 0)
        return min(kept, self._due()) if kept else 0

    def in_no_job(self) -> int | None:
        """How many entities are due and in no job; None if the store can no longer be queried."""
        try:
            due = self._due()
            return max(0, due - self._open() - self._listed("failed")) if due else 0
        except EntityFramesError:
            return None

    def _due(self) -> int:
        return int(self.engine.stats(self.space)["due"].sum())

    def _open(self) -> int:
        return self._listed("pending") + self._listed("running")

    def _listed(self, state: str) -> int:
        """How many entities are listed by the jobs of the space and by jobs that have no space yet."""
        jobs = self.engine.embedding.jobs(state).filter(pl.col("space").is_null() | (pl.col("space") == self.space))
        return int(jobs["entities"].sum())


def enqueue(engine: Engine, what: Any, space: str | None) -> int:
    """See `EntityStore.enqueue`."""
    if space is not None or engine.embedding.spaces()["active"].any():
        space = spaces_.find(engine, space)["space"]
    if what is None or isinstance(what, str):
        return _counted(lambda: engine.embedding.enqueue(space, what, None), "enqueue")
    given = sources.as_frame(what)
    check_id_schema(given.schema)
    keys = usable_ids(given).filter("usable").select(KEY).unique()
    return _counted(lambda: engine.embedding.enqueue(space, None, keys), "enqueue")


def retry_failed(engine: Engine, space: str | None) -> int:
    """See `EntityStore.retry_failed`."""
    name = spaces_.find(engine, space)["space"]
    return _counted(lambda: engine.embedding.retry_failed(name), "retry_failed")


def _counted(call: Callable[[], int], what: str) -> int:
    """The number of entities that a call queues; a second call after a COMMIT that succeeded would find none."""
    return retry(call, what=what, when=lambda error: not error.committing)
