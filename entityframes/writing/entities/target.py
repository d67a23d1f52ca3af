"""The entities of a store as a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import polars as pl

from entityframes.engines.base import Engine
from entityframes.engines.batch import Batch
from entityframes.errors import TransientError
from entityframes.frames.schema import (
    KEY,
    check_entity_schema,
    check_not_all_null,
    in_key_order,
    readable_keys,
    types_of,
)
from entityframes.metadata import dtypes
from entityframes.metadata.fields import Fields
from entityframes.writing.entities import keeping
from entityframes.writing.entities.validation import validate
from entityframes.writing.options import Options
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.run import Run
from entityframes.writing.target import Attempt, Validated

#: Whether types had no entity is asked of so many at most.
_FEW_TYPES = 8

#: How often rows are read and merged again because their entities change all the time.
_MAX_ROUNDS = 1_000

_TOO_LONG = "metadata is over 64 MiB once it is merged with what is stored"


class EntityTarget:
    """What an upsert of entities writes to."""

    key: tuple[str, ...] = KEY
    outcomes = Outcomes(KEY, readable_keys)

    def __init__(self, engine: Engine, options: Options, run: Run) -> None:
        self._engine, self._options, self._run = engine, options, run
        self._fields = Fields(engine, recent=True)
        #: Types that had no entity when this run first met them.
        self._was_empty: dict[str, bool] = {}
        self.write, self.write_each, self.recovered = engine.write, engine.write_each, engine.recorded

    def check(self, schema: Mapping[str, pl.DataType]) -> None:
        check_entity_schema(schema, self._options.expected)

    def check_values(self, frame: pl.DataFrame) -> None:
        check_not_all_null(frame, self._options.nulls)

    def prepare(self, frame: pl.DataFrame, *, record: bool = True) -> pl.DataFrame:
        self._with_fields(frame, self._fields.declare if record else self._fields.check)
        return self._options.expecting(frame)

    def validate(self, chunk: pl.DataFrame, *, record: bool = True) -> Validated:
        if self._fields.unconfirmed:
            self._with_fields(chunk, self._fields.confirm)
        valid = validate(chunk, self._fields, self._options)
        if record and valid.inferred:
            self._fields.infer(valid.inferred)
        rows, known = valid.rows, {}
        if record and self._options.absent == "keep":
            known = self._fields.names(valid.inferred or rows["entity_type"].unique())
        if self._options.merging:
            carried = chunk.schema.get("metadata")
            rows = keeping.marked(rows, carried, "content" in chunk.columns, valid.shapes, known, self._options)
        return Validated(keeping.without_shape(rows), valid.invalid, known)

    def in_key_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        return in_key_order(rows)

    def pending(self, rows: pl.DataFrame, validated: Validated) -> Pending:
        only_new = "narrow" in rows.columns and self._in_new_types(rows)
        return Pending(self, rows, validated.known, only_new=only_new)

    def reconnected(self) -> None:
        self._fields.record_again()

    def _with_fields(self, frame: pl.DataFrame, do: Callable[[Iterable[str], Mapping[str, pl.DataType]], None]) -> None:
        """Do something with the types of a frame whose metadata is typed, and with its fields."""
        metadata = frame.schema.get("metadata")
        if isinstance(metadata, pl.Struct) and frame.height:
            do(types_of(frame), {field.name: dtypes.instance(field.dtype) for field in metadata.fields})

    def _in_new_types(self, rows: pl.DataFrame) -> bool:
        """Whether the types of a large batch had no entity when the run first met them: there is nothing to keep."""
        if rows.height <= keeping.FEW_ROWS or "expected" in rows.columns:
            return False
        entity_types = rows["entity_type"].unique().to_list()
        if len(entity_types) > _FEW_TYPES:
            return False
        for name in entity_types:
            if name not in self._was_empty:
                self._was_empty[name] = self._engine.is_empty(name)
        return all(self._was_empty[name] for name in entity_types)

    def _batch(self, known: keeping.Known | None, *, only_new: bool) -> Batch:
        return Batch(
            self._run.run_id,
            self._run.interrupt,
            self._options.embed,
            self._options.on_error != "isolate",
            known=known,
            only_new=only_new,
        )

    def _look(self, rows: pl.DataFrame, known: keeping.Known) -> keeping.Look:
        self._run.interrupt.check()
        return keeping.look(self._engine, rows, known, self._fields, self._options)


class Pending:
    """Entities of a batch that have no outcome yet.

    Rows that lack something of what may be stored are merged with it first, and are written over just the state that
    was read; the others are written over whatever is stored, unless more fields have been recorded by then.
    """

    def __init__(self, target: EntityTarget, rows: pl.DataFrame, known: keeping.Known, *, only_new: bool) -> None:
        self.rows = rows
        self._target, self._known, self._only_new = target, known, only_new
        self._merge = not only_new and target._options.merging and "narrow" in rows.columns
        self._keeps = target._options.absent == "keep"
        self._rounds = 0
        self.batch = self._next_batch()

    def attempt(self) -> Attempt:
        self._rounds += 1
        if self._rounds > _MAX_ROUNDS:
            raise TransientError("other writers changed the same entities again and again meanwhile", "40001")
        if not self._merge:
            return Attempt(self.rows)
        seen = self._target._look(self.rows, self._known)
        written = pl.concat([seen.ready["row"], seen.later["row"]])
        self.rows = self.rows.filter(pl.col("row").is_in(written.implode()))
        invalid = seen.too_long.with_columns(rule=pl.lit("too_long"), error=pl.lit(_TOO_LONG))
        return Attempt(seen.ready, seen.ended, invalid, merged=True)

    def keep(self, rows: pl.DataFrame, *, merge: bool) -> None:
        self._merge = self._merge or merge
        self.rows = keeping.all_of(rows) if self._merge and rows.height else rows
        self.batch = self._next_batch()

    def _next_batch(self) -> Batch:
        # What was merged is written over just the state that was read: nothing can be lacking there.
        known = self._known if self._keeps and not self._merge else None
        return self._target._batch(known, only_new=self._only_new and not self._merge)
