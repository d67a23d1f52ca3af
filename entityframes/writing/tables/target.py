"""A table of the user as a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import polars.selectors as cs

from entityframes.engines.batch import Batch
from entityframes.engines.tables import Relation, TableEngine, Writing, canonical
from entityframes.errors import ConnectionLostError, SchemaError
from entityframes.frames import records
from entityframes.frames.utf8 import readable
from entityframes.frames.values import JSON
from entityframes.results import UPSERT_STATUSES, outcome_schema
from entityframes.writing.duplicates import disjoint
from entityframes.writing.options import Nulls, TableOptions
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.run import Run
from entityframes.writing.tables.values import Problems, convert, convert_key, refusal
from entityframes.writing.target import Attempt, Validated

#: Within a run, columns of the table have these prefixes, so that they are not mistaken for others.
KEY, VALUE = "key:", "value:"

#: The columns that a row of Python objects lacks (a Struct of Booleans), and the mark of rows whose nulls keep values.
ABSENT, KEEPS = "absent:", "keeps:"

#: The columns of a frame that was made by a plan: whether the row was stored, and the prefix of its values as text.
STORED, OLD = "stored:", "old:"

_RESERVED = frozenset(outcome_schema(jobs=True)) - {"entity_type", "id"}


def key_name(name: str) -> str:
    """The name of a column of the key in outcomes, where it must not be mistaken for another column."""
    return f"key.{name}" if name in _RESERVED or name.startswith("key.") else name


class TableNames:
    """The names that the columns of a table have within a run."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.of = {
            column.name: (KEY if column.name in relation.key else VALUE) + column.name for column in relation.columns
        }
        self.key = tuple(self.of[name] for name in relation.key)
        #: The names of the key columns in outcomes.
        self.labels = tuple(map(key_name, relation.key))

    def renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame with columns of the table, with the names that they have within a run."""
        return frame.rename({name: self.of.get(name, name) for name in frame.columns})

    def outcomes(self, statuses: tuple[str, ...] = UPSERT_STATUSES) -> Outcomes:
        """Builds the outcomes of rows of the table."""
        return Outcomes(
            self.key,
            self.displayable,
            statuses,
            tuple(canonical(self.relation[name]) for name in self.relation.key),
            labels=self.labels,
            jobs=False,
            conflict="the stored row is not as it was when the plan was made: another writer changed, created or "
            "deleted it",
        )

    def displayable(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Row and key of rows that were not validated, with nulls for what is no valid key."""
        return pl.DataFrame([rows["row"], *self.keys(rows).get_columns()])

    def keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The columns of the key in canonical form, with nulls for what is no valid key."""
        frame, _ = readable_texts(rows.select(self.key))
        return pl.DataFrame(
            [
                convert_key(frame[name], self.relation[of_table], Problems(frame.height)).alias(name)
                for name, of_table in zip(self.key, self.relation.key, strict=True)
                if refusal(frame[name].dtype, self.relation[of_table]) is None
            ]
        )


class TableTarget:
    """The target of an upsert into a table."""

    def __init__(self, engine: TableEngine, relation: Relation, options: TableOptions, run: Run) -> None:
        self._engine, self._relation, self._options, self._run = engine, relation, options, run
        self._names = TableNames(relation)
        self.key = self._names.key
        self.outcomes = run.outcomes

    def expected(self, rows: Sequence[Mapping[str, Any]]) -> records.Expected:
        documents = [column.name for column in self._relation.columns if column.family == "json"]
        return records.Expected(dict.fromkeys(documents, JSON), columns=list(self._relation.by_name))

    def check(self, schema: Mapping[str, pl.DataType]) -> None:
        # The frame of a plan was checked when the plan was made, and its columns renamed.
        if not self._options.expecting:
            check_columns(self._relation, records.visible_schema(schema), self._options)

    def check_values(self, frame: pl.DataFrame) -> None:
        """Values are checked row by row."""

    def renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame if self._options.expecting else self._names.renamed(frame)

    def comparable(self, frame: pl.DataFrame) -> pl.DataFrame:
        return comparable_keys(self._engine, self._names, frame)

    def disjoint(self, left: pl.DataFrame, right: pl.DataFrame) -> bool:
        if self._relation.has_loose_key:
            return False
        return disjoint(self._names.keys(left), self._names.keys(right), self.key)

    def prepare(self, frame: pl.DataFrame, *, record: bool = True) -> pl.DataFrame:
        return frame

    def validate(self, chunk: pl.DataFrame, *, record: bool = True) -> Validated:
        return validate(self._names, chunk)

    def in_key_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        # With a single writer, the order does not matter.
        ordered = len(self.key) == 1 and rows[self.key[0]].is_sorted()
        if rows.height < 2 or ordered or self._engine.database.writers == 1:
            return rows
        return rows.sort(self.key, maintain_order=True)

    def pending(self, rows: pl.DataFrame, validated: Validated) -> Pending:
        batch = Batch(self._run.run_id, self._run.interrupt, whole=self._options.on_error != "isolate")
        return Pending(rows, batch, self._options.nulls)

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        writing, numbered = self._writing(rows)
        return self._engine.write(writing, numbered, batch)

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        writing, numbered = self._writing(rows)
        return self._engine.write_each(writing, numbered, batch)

    def recovered(
        self, rows: pl.DataFrame, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None
    ) -> pl.DataFrame | None:
        return self._engine.recovered(batch, lost.answer, later)

    def restore_records(self) -> None:
        """Nothing is recorded about a table."""

    def _writing(self, rows: pl.DataFrame) -> tuple[Writing, pl.DataFrame]:
        options = self._options
        return writing_of(
            self._names,
            rows,
            on_match=options.on_match,
            nulls="keep" if KEEPS in rows.columns else options.nulls,
            ignore=frozenset(options.ignore),
            expecting=options.expecting,
            undelete=options.undelete,
        )


class Pending:
    """The rows of a batch without an outcome so far; those that lack different columns are written one by one."""

    def __init__(self, rows: pl.DataFrame, batch: Batch, nulls: Nulls) -> None:
        self.rows, self.batch, self._nulls = rows, batch, nulls

    def attempt(self) -> Attempt:
        return Attempt(next(by_columns(self.rows, self._nulls)))

    def keep(self, rows: pl.DataFrame, *, merge: bool) -> None:
        self.rows, self.batch = rows, Batch(self.batch.run_id, self.batch.interrupt, whole=self.batch.whole)


def by_columns(rows: pl.DataFrame, nulls: Nulls) -> Iterator[pl.DataFrame]:
    """Rows, made from Python objects, by the columns that they have; nothing is done with a column that a row lacks.

    Args:
        rows: the rows of a batch, of which some lack columns if there is the column `ABSENT`.
        nulls: what a null in a column means that a row has.

    Yields:
        Rows with the same columns; or rows that lack different columns, in which all nulls mean that the stored value
        is kept, with a column `KEEPS`.
    """
    if ABSENT not in rows.columns:
        yield rows
        return
    flags = rows[ABSENT].struct.unnest()
    rows = rows.drop(ABSENT)
    lacks = flags.select(pl.any_horizontal(pl.all())).to_series()
    mixed = pl.repeat(False, rows.height, eager=True)
    if nulls == "write":
        # A row that lacks columns, and has nulls in others, needs a statement with its columns.
        for name in (name for name in rows.columns if name.startswith(VALUE)):
            written = rows[name].is_null()
            mixed |= lacks & (written & ~flags[name] if name in flags.columns else written)
    for part in (rows.filter(~lacks), rows.filter(lacks & ~mixed).with_columns(pl.lit(True).alias(KEEPS))):
        if part.height:
            yield part
    for part in rows.hstack([flags.to_struct(ABSENT)]).filter(mixed).partition_by(ABSENT, maintain_order=True):
        lacked = [name for name, is_absent in part[ABSENT][0].items() if is_absent]
        yield part.drop(ABSENT, *lacked)


def writing_of(names: TableNames, rows: pl.DataFrame, **options: Any) -> tuple[Writing, pl.DataFrame]:
    """What a batch writes, and its rows with the names that the engine expects."""
    columns = [column for column in names.relation.columns if names.of[column.name] in rows.columns]
    renamed = [pl.col(names.of[column.name]).alias(f"c{number}") for number, column in enumerate(columns)]
    writing = Writing(names.relation, tuple(columns), **options)
    if writing.expecting:
        renamed.append(pl.col(STORED).alias("stored"))
        renamed += [pl.col(OLD + column.name).alias(f"e{name[1:]}") for name, column in writing.values]
    return writing, rows.select("row", *renamed)


def check_columns(relation: Relation, schema: Mapping[str, pl.DataType], options: TableOptions) -> None:
    """Check that a frame with these columns can be written to a table.

    Raises:
        SchemaError: naming the columns that cannot.
    """
    known = relation.by_name
    if relation.has_rules:
        raise SchemaError(f"{relation.name} has rules for INSERT or UPDATE, with which PostgreSQL allows no upsert")
    if computed := [name for name in relation.key if known[name].generated]:
        raise SchemaError(
            f"the database computes {', '.join(map(repr, computed))} of the key of {relation.name} itself",
            advice="open the table with another key",
        )
    if relation.most_columns is not None and len(schema) > relation.most_columns:
        raise SchemaError(
            f"the frame has {len(schema):,} columns, and at most {relation.most_columns:,} can be written at once",
            advice="drop some, which leaves their values as they are",
        )
    if unknown := [name for name in schema if name not in known]:
        similar = {name.lower(): name for name in known}
        hints = [f"{name!r} (there is {similar[name.lower()]!r})" for name in unknown if name.lower() in similar]
        raise SchemaError(
            f"the table {relation.name} has no column {', '.join(hints or map(repr, unknown))}",
            advice="rename or drop the columns, or add them to the table with table.add_columns(frame)",
        )
    if missing := [name for name in relation.key if name not in schema]:
        raise SchemaError(f"the frame lacks {', '.join(map(repr, missing))} of the key of {relation.name}")
    if generated := [name for name in schema if known[name].generated]:
        raise SchemaError(
            f"the database computes {', '.join(map(repr, generated))} of {relation.name} itself",
            advice=f"drop the columns, for example with frame.drop({', '.join(map(repr, generated))})",
        )
    refusals = [refusal(schema[name], known[name]) for name in schema]
    if problems := [problem for problem in refusals if problem]:
        happened, advice = zip(*problems[:10], strict=True)
        raise SchemaError("; ".join(happened), advice="; ".join(dict.fromkeys(advice)))
    if ignored := [name for name in options.ignore if name not in known or name in relation.key]:
        raise SchemaError(f"ignore has {', '.join(map(repr, ignored))}, which is no column to compare")


def validate(names: TableNames, chunk: pl.DataFrame) -> Validated:
    """The rows of a batch in canonical form, and those that cannot be written."""
    chunk, refused = records.split(chunk)
    frame, unreadable = readable_texts(chunk)
    problems = Problems(frame.height)
    if unreadable is not None:
        problems.add(unreadable.is_not_null(), "not_utf8", lambda row: _shown_name(str(unreadable[row])))
    columns = [frame["row"]]
    for column in names.relation.columns:
        name = names.of[column.name]
        if name not in frame.columns:
            continue
        values = frame[name]
        is_key = column.name in names.relation.key
        converted = (convert_key if is_key else convert)(values, column, problems).alias(name)
        if is_key:
            problems.add(values.is_null(), "null_key", lambda _, column=column: f"{column.name} is null")  # type: ignore[misc]
        columns.append(converted)
    if (lacks := records.absences(chunk)) is not None:
        columns.append(lacks.rename({name: names.of[name] for name in lacks.columns}).to_struct(ABSENT))
    rows = pl.DataFrame(columns + [frame[name] for name in frame.columns if name.startswith((STORED, OLD))])
    invalid = _none(rows, names.key)
    if (found := problems.columns()) is not None:
        rules, errors = found
        wrong = errors.is_not_null()
        invalid = rows.select("row", *names.key).with_columns(rules, errors).filter(wrong)
        rows = rows.filter(~wrong)
    if refused is not None:
        reasons = refused[["rule", "error"]].get_columns()
        invalid = pl.concat([names.displayable(refused).hstack(reasons), invalid])
    return Validated(rows, invalid)


def readable_texts(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
    """A frame with a replacement for each text that is not UTF-8, and the errors by row, or None without any."""
    texts, errors = readable(frame.select(cs.string()))
    return frame.with_columns(texts.get_columns()), errors


def _shown_name(error: str) -> str:
    return error.removeprefix(VALUE).removeprefix(KEY)


def _none(rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    schema = {"row": rows.schema["row"], **{name: rows.schema[name] for name in key}}
    return pl.DataFrame(schema={**schema, "rule": pl.String, "error": pl.String})


def comparable_keys(engine: TableEngine, names: TableNames, rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of the key, so that keys that the database considers equal have equal values."""
    keys = names.keys(rows)
    if not names.relation.has_loose_key or keys.height < 2:
        return keys
    numbered = keys.rename({name: f"c{number}" for number, name in enumerate(keys.columns)})
    return keys[engine.same_keys(names.relation, numbered)]


def usable_keys(relation: Relation, keys: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Keys in canonical form, as ``c0``, ``c1``, ..., and which of them can be stored at all.

    Raises:
        SchemaError: a dtype cannot be compared with a column of the key.
    """
    frame, unreadable = readable_texts(keys)
    problems = Problems(frame.height)
    columns = []
    for number, name in enumerate(relation.key):
        if refused := refusal(frame[name].dtype, relation[name]):
            happened, advice = refused
            raise SchemaError(happened, advice=advice)
        columns.append(convert_key(frame[name], relation[name], problems).alias(f"c{number}"))
    converted = pl.DataFrame(columns)
    found = problems.columns()
    usable = converted.select(~pl.any_horizontal(pl.all().is_null())).to_series()
    if found is not None:
        usable &= found[0].is_null()
    return converted, usable if unreadable is None else usable & unreadable.is_null()
