"""Plans for tables: compare a frame with a table without writing, and apply the result later."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl

from entityframes import forks
from entityframes.engines.tables import EXISTS, Relation, TableEngine
from entityframes.frames.records import Whole, visible_schema
from entityframes.frames.schema import numbered
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.results import UpsertResult
from entityframes.writing.duplicates import Superseded
from entityframes.writing.options import OnError, TableOptions
from entityframes.writing.plan import ACTIONS, PLAN_SCHEMA, Plan
from entityframes.writing.tables.mirror import Deletions
from entityframes.writing.tables.target import (
    KEEPS,
    OLD,
    STORED,
    TableNames,
    by_columns,
    check_columns,
    comparable_keys,
    usable_keys,
    validate,
    writing_of,
)

#: Number of rows that are compared at a time.
_CHUNK_ROWS = 50_000


@forks.guarded
@dataclass(frozen=True, repr=False)
class TablePlan(Plan):
    """What an upsert of a frame would do to a table in the state that it had. Made by `Table.plan`.

    Attributes:
        frame: one row per input row, in input order: ``row`` UInt32, the columns of the key, ``action`` Enum (create,
            update, unchanged, duplicate, invalid), ``changes`` List(Struct(field, old, new)) with the text of each
            value that would change (the list is null unless the action is create or update), ``rule`` and ``error``
            String (why the row is invalid).

    Examples:
        >>> table = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
        >>> result = table.upsert(pl.DataFrame({"id": [1], "name": ["Ada"]}))
        >>> table.plan(pl.DataFrame({"id": [1, 2], "name": ["Ada L.", "Bob"]})).frame["action"].to_list()
        ['update', 'create']
    """

    @property
    def changed_contents(self) -> int:
        """Always 0: a table has no content apart from its columns.

        Examples:
            >>> table = ef.create_table(store, "people", pl.DataFrame({"id": [1]}), key="id")
            >>> table.plan(pl.DataFrame({"id": [1]})).changed_contents
            0
        """
        return 0

    def apply(  # type: ignore[override]
        self,
        *,
        batch_size: int | None = None,
        on_error: OnError = "isolate",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Carry out the plan, except for rows that have been changed since it was made.

        The values of each stored row are compared in the transaction that writes it. It may be called again: rows that
        are done are then unchanged.

        Args:
            batch_size, on_error, progress, cancel: as for `Table.upsert`.

        Returns:
            UpsertResult. A row has the status conflict, and is not written, if the stored row is neither as it was
            when the plan was made nor as the plan would leave it.

        Raises:
            SchemaError, DatabaseError, ValidationError, KeyboardInterrupt: as for `Table.upsert`.

        Examples:
            >>> table = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> plan = table.plan(pl.DataFrame({"id": [1], "name": ["Ada"]}))
            >>> plan.apply().counts["created"]
            1
        """
        assert isinstance(self._options, TableOptions)
        options = replace(self._options, batch_size=batch_size, on_error=on_error, expecting=True)
        return self._upsert(self._given, options, progress, cancel)


def make(
    engine: TableEngine,
    relation: Relation,
    given: Whole,
    options: TableOptions,
    upsert: Any,
    deletions: Deletions | None,
    progress: Progress,
    interrupt: Interrupt,
) -> TablePlan:
    """Compare a frame with a table.

    Args:
        engine: the engine.
        relation: the table.
        given: rows with columns of the table.
        options: the options of the upsert.
        upsert: called by `TablePlan.apply` with a frame, options, progress and cancel.
        deletions: the rows that a mirror would delete; None for an upsert.
        progress: see `Progress`.
        interrupt: stops the comparison between two chunks.

    Raises:
        SchemaError: the frame cannot be stored.
        DuplicateError: a key is repeated and ``on_duplicate="error"``.
        StatementCancelledError: the interrupt was requested.
    """
    frame = given.frame
    check_columns(relation, visible_schema(frame.schema), options)
    names = TableNames(relation)
    frame = names.renamed(frame)
    validated = validate(names, numbered(frame))
    superseded = Superseded(names.key, options.on_duplicate, partial(comparable_keys, engine, names))
    rows, duplicates = superseded.split(validated.rows)
    compared = []
    with Reporter(progress, rows.height, what="plan") as reporter:
        for start in range(0, max(rows.height, 1), _CHUNK_ROWS):
            interrupt.check()
            chunk = rows[start : start + _CHUNK_ROWS]
            same_columns = by_columns(chunk, options.nulls) if chunk.height else iter([chunk])
            compared += [_compare(engine, names, part, options) for part in same_columns]
            reporter.advance(chunk.height)
    decided = pl.concat(compared, how="diagonal")
    schema = _schema(names, rows, mirror=deletions is not None)
    parts = [
        _as_plan(decided, schema),
        _as_plan(duplicates.select("row", *names.key, action=pl.lit("duplicate")), schema),
        _as_plan(validated.invalid.with_columns(action=pl.lit("invalid")), schema),
    ]
    if deletions is not None:
        parts.append(_as_plan(_as_deleted(names, deletions), schema))
    state = pl.DataFrame({"row": pl.int_range(frame.height, dtype=pl.UInt32, eager=True)}).join(
        decided.select("row", STORED, *(name for name in decided.columns if name.startswith(OLD))),
        on="row", how="left", maintain_order="left",
    )  # fmt: skip
    kept = Whole(frame.hstack(state.drop("row").get_columns()), given.objects)
    taken = {"row", "action", "changes", "rule", "error"}
    labels = [f"key.{name}" if name in taken or name.startswith("key.") else name for name in relation.key]
    planned = pl.concat(parts).sort("row", nulls_last=True).rename(dict(zip(names.key, labels, strict=True)))
    return TablePlan(planned, kept, options, upsert)


def _as_deleted(names: TableNames, deletions: Deletions) -> pl.DataFrame:
    """The key, action and changes of the rows that would be deleted."""
    keys, _ = usable_keys(names.relation, deletions.rows)
    renamed = keys.rename(dict(zip(keys.columns, names.key, strict=True)))
    changes = [
        pl.struct(field=pl.lit(name), old=pl.col(OLD + name), new=pl.lit(None, pl.String))
        for name in deletions.expected
    ]
    listed = deletions.rows.select(changes=pl.concat_list(changes) if changes else pl.lit(None))
    return renamed.hstack(listed.get_columns()).with_columns(action=pl.lit("delete"))


def _schema(names: TableNames, rows: pl.DataFrame, *, mirror: bool) -> dict[str, pl.DataType]:
    return {
        "row": pl.UInt32(),
        **{name: rows.schema[name] for name in names.key},
        "action": pl.Enum([*ACTIONS, "delete"] if mirror else ACTIONS),
        "changes": PLAN_SCHEMA["changes"],
        "rule": pl.String(),
        "error": pl.String(),
    }


def _as_plan(rows: pl.DataFrame, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in schema.items()
    )


def _compare(engine: TableEngine, names: TableNames, rows: pl.DataFrame, options: TableOptions) -> pl.DataFrame:
    """row, key, action, changes, rule and error of rows, with the state of the stored rows."""
    writing, numbered_rows = writing_of(
        names,
        rows,
        on_match=options.on_match,
        nulls="keep" if KEEPS in rows.columns else options.nulls,
        ignore=frozenset(options.ignore),
        undelete=options.undelete,
    )
    texts = {column.name: name[1:] for name, column in writing.values}
    found = engine.compare(writing, numbered_rows)
    positions = rows.select("row", *names.key).with_columns(
        position=pl.int_range(rows.height, dtype=pl.UInt32, eager=True)
    )
    joined = positions.join(found, on="position", how="left", maintain_order="left")
    if "error" not in joined.columns:
        joined = joined.with_columns(error=pl.lit(None, pl.String), rule=pl.lit(None, pl.String))
    created, error = pl.col("created"), pl.col("error")
    action = (
        pl.when(error.is_not_null()).then(pl.lit("invalid")).when(created.is_null()).then(pl.lit("unchanged"))
        .when(created).then(pl.lit("create"))
        .otherwise(pl.lit("invalid" if options.on_match == "fail" else "update"))
    )  # fmt: skip
    if options.on_match == "fail":
        exists = pl.lit(EXISTS)
        error = pl.when(created.not_()).then(exists).otherwise(error)
    changes = [
        pl.when(pl.col(f"o{n}").ne_missing(pl.col(f"n{n}")))
        .then(pl.struct(field=pl.lit(name), old=pl.col(f"o{n}"), new=pl.col(f"n{n}")))
        for name, n in texts.items()
    ]  # fmt: skip
    dtype = PLAN_SCHEMA["changes"]
    listed = pl.concat_list(changes).list.drop_nulls() if changes else pl.lit([], dtype=dtype)
    changed = pl.when(created.is_not_null()).then(listed.cast(dtype))
    old = [pl.col(f"o{n}").alias(OLD + name) for name, n in texts.items()]
    return joined.select(
        "row", *names.key, action=action, changes=changed, rule="rule", error=error,
        **{STORED: created.not_()},
    ).hstack(joined.select(old))  # fmt: skip
