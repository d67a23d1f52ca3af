"""The entities of a store as a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from entityframes.engines.base import Engine
from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError, TransientError
from entityframes.frames import records
from entityframes.frames.schema import (
    KEY,
    STORE_COLUMNS,
    check_entity_schema,
    check_not_all_null,
    in_key_order,
    readable_keys,
    types_of,
)
from entityframes.frames.values import JSON
from entityframes.metadata import dtypes
from entityframes.metadata.fields import Fields
from entityframes.writing.duplicates import disjoint
from entityframes.writing.entities import keeping
from entityframes.writing.entities.validation import validate
from entityframes.writing.options import Options
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.run import Run
from entityframes.writing.target import Attempt, Validated

#: The maximum number of types in a batch that are checked for being empty, or whose fields are recorded one by one.
_FEW_TYPES = 8

#: The maximum number of attempts to merge and write rows whose entities other writers keep changing.
_MAX_ATTEMPTS = 1_000

_TOO_LONG = "metadata is over 64 MiB when merged with the stored metadata"


class EntityTarget:
    """The target of an upsert of entities."""

    key: tuple[str, ...] = KEY
    outcomes = Outcomes(KEY, readable_keys)

    def __init__(self, engine: Engine, options: Options, run: Run) -> None:
        self._engine, self._options, self._run = engine, options, run
        self._fields = Fields(engine, recent=True)
        #: For each type, whether it had no entities when it first occurred in this run.
        self._was_empty: dict[str, bool] = {}
        self.write, self.write_each = engine.write, engine.write_each

    def expected(self, rows: Sequence[Mapping[str, Any]]) -> records.Expected:
        given = dict.fromkeys(kind for row in rows if isinstance(kind := row.get("entity_type"), str))
        fields = self._fields.expected(types_of(pl.DataFrame({"entity_type": records.texts(given)})))
        # A field without a common dtype takes any JSON.
        metadata = {name: JSON if dtype is None else dtype for name, dtype in fields.items()}
        texts = [*KEY, "content", *self._options.expected]
        return records.Expected(
            {**dict.fromkeys(texts, pl.String()), "metadata": pl.Struct(metadata)},
            columns=[*texts, "metadata", *sorted(STORE_COLUMNS.difference(texts))],
            fields="metadata",
        )

    def check(self, schema: Mapping[str, pl.DataType]) -> None:
        check_entity_schema(records.visible_schema(schema, "metadata"), self._options.expected)

    def check_values(self, frame: pl.DataFrame) -> None:
        # Of Python objects, each fails by itself.
        if records.RECORD not in frame.columns:
            check_not_all_null(frame, self._options.nulls)

    def renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame

    def comparable(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame

    def disjoint(self, left: pl.DataFrame, right: pl.DataFrame) -> bool:
        return disjoint(left, right, self.key)

    def prepare(self, frame: pl.DataFrame, *, record: bool = True) -> pl.DataFrame:
        self._with_fields(frame, self._fields.declare if record else self._fields.check)
        return records.with_details(self._options.with_expected(frame), frame)

    def validate(self, chunk: pl.DataFrame, *, record: bool = True) -> Validated:
        chunk, refused = records.split(chunk)
        if self._fields.unconfirmed:
            self._with_fields(chunk, self._fields.confirm)
        valid = validate(chunk, self._fields, self._options)
        if record and valid.inferred:
            self._fields.infer(valid.inferred)
        rows, known = valid.rows, {}
        if record and self._options.absent == "keep":
            known = self._fields.names(valid.inferred or rows["entity_type"].unique())
        if self._options.merging:
            dtype, has_content = chunk.schema.get("metadata"), "content" in chunk.columns
            rows = keeping.mark_narrow(rows, dtype, has_content, valid.shapes, known, self._options)
        invalid = valid.invalid
        if refused is not None:
            invalid = pl.concat([readable_keys(refused).hstack(refused[["rule", "error"]]), invalid])
        return Validated(keeping.without_shape(rows), invalid, known)

    def in_key_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        return in_key_order(rows)

    def pending(self, rows: pl.DataFrame, validated: Validated) -> Pending:
        only_new = "narrow" in rows.columns and self._in_new_types(rows)
        return Pending(self, rows, validated.context, only_new=only_new)

    def recovered(
        self, rows: pl.DataFrame, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None
    ) -> pl.DataFrame | None:
        return self._engine.recorded(rows, batch)

    def restore_records(self) -> None:
        self._fields.record_again()

    def _with_fields(
        self, frame: pl.DataFrame, call: Callable[[Iterable[str], Mapping[str, pl.DataType]], None]
    ) -> None:
        """Call a function with the entity types and the metadata fields of a frame, if its metadata is typed."""
        metadata = records.visible_schema(frame.schema, "metadata").get("metadata")
        if not isinstance(metadata, pl.Struct) or not frame.height:
            return
        fields = {field.name: dtypes.instance(field.dtype) for field in metadata.fields}
        frame, _ = records.split(frame)
        types, keys = types_of(frame), records.keys_of_dicts(frame)
        if keys is None or len(types) > _FEW_TYPES:
            call(types, fields)
            return
        # Python objects of each type have fields of their own.
        of_type: dict[str, set[str]] = {entity_type: set() for entity_type in types}
        for entity_type, names in set(zip(frame["entity_type"], keys, strict=True)):
            of_type.get(entity_type, set()).update(names)
        for entity_type, found in of_type.items():
            call([entity_type], {name: dtype for name, dtype in fields.items() if name in found})

    def _in_new_types(self, rows: pl.DataFrame) -> bool:
        """Whether this is a large batch of types that had no entities before the run: nothing has to be merged."""
        if rows.height <= keeping.FEW_ROWS or "expected" in rows.columns:
            return False
        if self._options.initial:
            return True
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
            batch_id=self._run.new_id(),
            new_id=self._run.new_id,
            initial=self._options.initial,
        )

    def _merge(self, rows: pl.DataFrame, known: keeping.Known) -> keeping.Merged:
        self._run.interrupt.check()
        return keeping.merge(self._engine, rows, known, self._fields, self._options)


class Pending:
    """The entities of a batch without an outcome so far.

    Rows that may lack stored fields are merged with the stored entities first, and overwrite an entity only if it is
    unchanged since it was read. Other rows overwrite any entity, unless more fields have been recorded meanwhile.
    """

    def __init__(self, target: EntityTarget, rows: pl.DataFrame, known: keeping.Known, *, only_new: bool) -> None:
        self.rows = rows
        self._target, self._known, self._only_new = target, known, only_new
        self._merge = not only_new and target._options.merging and "narrow" in rows.columns
        self._keeps_absent = target._options.absent == "keep"
        self._attempts = 0
        self.batch = self._next_batch()

    def attempt(self) -> Attempt:
        self._attempts += 1
        if self._attempts > _MAX_ATTEMPTS:
            message = f"{_MAX_ATTEMPTS:,} attempts failed: other writers kept changing the entities"
            raise TransientError(message, "40001")
        if not self._merge:
            return Attempt(self.rows)
        merged = self._target._merge(self.rows, self._known)
        pending = pl.concat([merged.ready["row"], merged.outdated["row"]])
        self.rows = self.rows.filter(pl.col("row").is_in(pending.implode()))
        invalid = merged.too_long.with_columns(rule=pl.lit("too_long"), error=pl.lit(_TOO_LONG))
        return Attempt(merged.ready, merged.skipped, invalid, merged=True)

    def keep(self, rows: pl.DataFrame, *, merge: bool) -> None:
        self._merge = self._merge or merge
        self.rows = keeping.all_narrow(rows) if self._merge and rows.height else rows
        self.batch = self._next_batch()

    def _next_batch(self) -> Batch:
        # Merged rows overwrite only the state that was read, so they lack nothing.
        known = self._known if self._keeps_absent and not self._merge else None
        return self._target._batch(known, only_new=self._only_new and not self._merge)
