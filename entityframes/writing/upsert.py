"""An upsert: prepare -> split -> validate -> write -> recover -> outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import polars as pl

from entityframes.engines.base import Engine
from entityframes.errors import EntityFramesError
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import UpsertResult
from entityframes.threads import Submit
from entityframes.writing.batch import BatchWriter
from entityframes.writing.duplicates import Superseded
from entityframes.writing.entities.target import EntityTarget
from entityframes.writing.options import Options
from entityframes.writing.prepare import Stream, Whole
from entityframes.writing.run import Run


class Upsert:
    """One call of `upsert`."""

    def __init__(self, engine: Engine, options: Options, interrupt: Interrupt) -> None:
        self._engine, self._options, self._interrupt = engine, options, interrupt
        self._run = Run(engine, interrupt, EntityTarget.outcomes)
        self._target = EntityTarget(engine, options, self._run)
        self._superseded = Superseded(self._target.key, options.on_duplicate)

    def result(self) -> UpsertResult:
        """What has happened so far."""
        run = self._run
        return UpsertResult(dict(run.log.counts), run.batches, run.elapsed, run.log)

    def execute(
        self, source: pl.DataFrame | Iterator[pl.DataFrame], reporter: Reporter, submit: Submit
    ) -> UpsertResult:
        """Write a frame, or frames that come one after the other; `result` stays right whatever is raised.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            SchemaError: a frame cannot be stored; for a whole frame before anything was written.
            ValidationError, DatabaseError: rows failed and ``on_error="raise"``, or no batch could succeed.
        """
        size = self._options.batch_size
        whole = isinstance(source, pl.DataFrame)
        batches = (
            Whole(source, self._target, self._superseded, self._engine, size)
            if isinstance(source, pl.DataFrame)
            else Stream(source, self._target, size)
        )
        writer = BatchWriter(self._target, self._options, self._run, self._superseded)
        try:
            self._run.execute(
                batches,
                writer.work,
                reporter,
                submit,
                disjoint=None if whole else self._share_no_key,
                must_stay=self._options.on_error == "raise",
            )
        finally:
            if self._run.lost_connection and not self._interrupt.requested:
                # The next run does it if it cannot be done.
                with suppress(EntityFramesError):
                    self._target.reconnected()
        return self.result()

    def _share_no_key(self, one: pl.DataFrame, other: pl.DataFrame) -> bool:
        key = self._target.key
        keys = [rows.select(pl.col(key).cast(pl.Binary)) for rows in (one, other)]
        return keys[0].join(keys[1], on=key, how="semi").is_empty()
