"""Plans: compare a frame with the store without writing, and apply the result later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from entityframes import forks, views
from entityframes.engines.base import Engine
from entityframes.frames.records import Records, Whole, with_details
from entityframes.frames.schema import KEY, numbered
from entityframes.interrupt import Interrupt
from entityframes.metadata.merging import differences, merged_texts
from entityframes.progress import Progress, Reporter
from entityframes.results import UpsertResult, row_and_key
from entityframes.visible import visible
from entityframes.writing.duplicates import Superseded
from entityframes.writing.entities import keeping
from entityframes.writing.entities.target import EntityTarget
from entityframes.writing.options import OnError, Options, RunOptions
from entityframes.writing.run import Run

#: The actions of a plan. create, update, unchanged: the outcome that an upsert would have; duplicate: another row with
#: the same key is written instead; invalid: the row fails validation, with the reason in ``error``.
ACTIONS = ("create", "update", "unchanged", "duplicate", "invalid")

#: Columns of `Plan.frame`.
PLAN_SCHEMA = pl.Schema(
    {
        "row": pl.UInt32(),
        "entity_type": pl.String(),
        "id": pl.String(),
        "action": pl.Enum(ACTIONS),
        "old_hash": pl.String(),
        "new_hash": pl.String(),
        "changes": pl.List(pl.Struct({"field": pl.String(), "old": pl.String(), "new": pl.String()})),
        "error": pl.String(),
    }
)

#: Number of rows that are compared at a time; their stored metadata is in memory meanwhile.
_CHUNK_ROWS = 50_000

#: The columns with the expected hashes of the frame that `Plan.apply` writes.
_EXPECTED = ("expected_hash", "expected_metadata_hash")


@forks.guarded
@dataclass(frozen=True, repr=False)
class Plan:
    """What an upsert of a frame would do to the store in the state that it had. Made by `EntityStore.plan`.

    Attributes:
        frame: one row per input row, in input order: ``row`` UInt32, ``entity_type``, ``id`` String, ``action`` Enum
            (create, update, unchanged, duplicate, invalid), ``old_hash`` and ``new_hash`` String (SHA-256 of the
            content in hex; null if there is none), ``changes`` List(Struct(field, old, new)) with the JSON text of
            each metadata field that would change (null if the field is absent on that side; the list is null unless
            the action is create or update), ``error`` String (why the row is invalid).

    Examples:
        >>> plan = store.plan(ef.entities(pl.DataFrame({"id": ["a", "d"], "year": [1842, 2000]}), "note", id="id"))
        >>> plan.frame["action"].to_list()
        ['update', 'create']
        >>> plan.frame["changes"].to_list()[0]
        [{'field': 'year', 'old': '1843', 'new': '1842'}]
    """

    frame: pl.DataFrame
    _given: Whole = field(compare=False)
    _options: RunOptions = field(compare=False)
    _upsert: Callable[..., UpsertResult] = field(compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by action, with an entry for each action.

        Examples:
            >>> store.plan(ef.ids("note", ["a", "d", None])).counts
            {'create': 1, 'update': 0, 'unchanged': 1, 'duplicate': 0, 'invalid': 1}
        """
        found = dict(self.frame["action"].cast(pl.String).value_counts().iter_rows())
        dtype = self.frame.schema["action"]
        assert isinstance(dtype, pl.Enum)
        return {action: found.get(action, 0) for action in dtype.categories}

    @property
    def changed_fields(self) -> dict[str, int]:
        """Number of updates that change each metadata field, most frequent first.

        Examples:
            >>> frame = pl.DataFrame({"id": ["a", "b"], "year": [1842, 1941], "seen": [True, True]})
            >>> store.plan(ef.entities(frame, "note", id="id")).changed_fields
            {'seen': 2, 'year': 1}
        """
        changes = self.frame.filter(pl.col("action") == "update")["changes"].explode(empty_as_null=False)
        fields = changes.drop_nulls().struct.field("field").value_counts(sort=True)
        return dict(fields.sort(["count", "field"], descending=[True, False]).iter_rows())

    @property
    def changed_contents(self) -> int:
        """Number of updates that change the content.

        Examples:
            >>> frame = pl.DataFrame({"entity_type": "note", "id": ["a", "d"], "content": ["new text", "text"]})
            >>> store.plan(frame).changed_contents
            1
        """
        content = (pl.col("action") == "update") & (pl.col("old_hash") != pl.col("new_hash"))
        return self.frame.filter(content).height

    def summary(self) -> str:
        """A few lines of text: number of rows by action, what the updates change, and the first invalid rows.

        Examples:
            >>> print(store.plan(ef.ids("note", ["a", "d"])).summary())
            2 rows: 1 to create, 1 unchanged
        """
        counted = [f"{count:,} {views.TO_DO.get(action, action)}" for action, count in self.counts.items() if count]
        lines = [f"{self.frame.height:,} rows: {', '.join(counted) or 'nothing to do'}"]
        if self.counts["update"]:
            parts = [f"the content of {self.changed_contents:,}"] if self.changed_contents else []
            parts += [f"{visible(name)} of {count:,}" for name, count in list(self.changed_fields.items())[:10]]
            lines.append(f"updates change {', '.join(parts)}")
        invalid = self.frame.filter(pl.col("action") == "invalid").head(3).iter_rows(named=True)
        key = _key_columns(self.frame.columns)
        lines += [f"{row_and_key(row, key)}: {visible(row['error'])}" for row in invalid]
        return "\n".join(lines)

    def apply(
        self,
        *,
        batch_size: int | None = None,
        embed: bool = True,
        on_error: OnError = "isolate",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Carry out the plan, except for entities that have been changed since it was made.

        The state of each entity is compared in the transaction that writes it. It may be called again: rows that are
        done are then unchanged.

        Args:
            batch_size, embed, on_error, progress, cancel: as for `EntityStore.upsert`.

        Returns:
            UpsertResult. A row has the status conflict, and is not written, if its entity is neither as it was when
            the plan was made nor as the plan would leave it.

        Raises:
            SchemaError, DatabaseError, ValidationError, KeyboardInterrupt: as for `EntityStore.upsert`.

        Examples:
            >>> plan = store.plan(store.get(ef.ids("note", ["a", "b"])).with_columns(content=pl.lit("new text")))
            >>> edit = store.upsert_entity("note", "b", "another edit")
            >>> plan.apply().outcomes["status"].to_list()
            ['updated', 'conflict']
        """
        content, metadata = _EXPECTED
        assert isinstance(self._options, Options)
        options = replace(
            self._options,
            batch_size=batch_size,
            embed=embed,
            on_error=on_error,
            expected_hash=content,
            expected_metadata_hash=metadata,
        )
        return self._upsert(self._given, options, progress, cancel)

    def __repr__(self) -> str:
        counted, *rest = self.summary().split("\n")
        return f"{type(self).__name__}: {counted}\n{'; '.join([*rest, 'apply() carries it out'])}"

    def _repr_html_(self) -> str:
        _, *lines = self.summary().split("\n")
        open_rows = self.frame.filter(~pl.col("action").cast(pl.String).is_in(["unchanged", "duplicate"]))
        key = _key_columns(self.frame.columns)
        rows = [
            (row["row"], *(row[name] for name in key), views.status(row["action"]), self._change(row))
            for row in open_rows.head(views.MOST).iter_rows(named=True)
        ]
        header = ["row", *key, "action", "change"]
        return views.plan(type(self).__name__, self.counts, lines, header, rows, open_rows.height - len(rows))

    def _change(self, row: dict[str, Any]) -> object:
        """What a view says of a row: why it is invalid, or what changes."""
        if row["action"] == "invalid":
            return row["error"]
        changes = [(one["field"], one["old"], one["new"]) for one in row["changes"] or []]
        content = row["action"] == "update" and row.get("old_hash") != row.get("new_hash")
        return views.changes(changes, content=content)


def _key_columns(columns: list[str]) -> list[str]:
    return columns[columns.index("row") + 1 : columns.index("action")]


def make(
    engine: Engine,
    given: pl.DataFrame | Records,
    options: Options,
    upsert: Callable[..., UpsertResult],
    progress: Progress = None,
    interrupt: Interrupt | None = None,
) -> Plan:
    """Compare a frame with the store.

    Args:
        engine: the engine of the store.
        given: an entity frame, or the Python objects that it is made from.
        options: the options of the upsert.
        upsert: called by `Plan.apply` with a frame, `Options`, progress and cancel.
        progress: see `Progress`.
        interrupt: stops the comparison between two chunks.

    Raises:
        SchemaError: the frame cannot be stored.
        DuplicateError: a key is repeated and ``on_duplicate="error"``.
        StatementCancelledError: the interrupt was requested.
    """
    interrupt = interrupt or Interrupt()
    target = EntityTarget(engine, options, Run(engine, interrupt, EntityTarget.outcomes))
    whole = given.whole(target.expected) if isinstance(given, Records) else Whole(given)
    given = whole.frame
    target.check(given.schema)
    target.check_values(given)
    validated = target.validate(numbered(target.prepare(given, record=False)), record=False)
    rows, duplicates = Superseded(KEY, options.on_duplicate).split(validated.rows)
    compared = []
    with Reporter(progress, rows.height, what="plan") as reporter:
        for start in range(0, max(rows.height, 1), _CHUNK_ROWS):
            interrupt.check()
            compared.append(_compare(engine, rows[start : start + _CHUNK_ROWS], options))
            reporter.advance(compared[-1].height)
    decided = pl.concat(compared)
    parts = [
        _as_plan(decided.with_columns(pl.col("old_hash", "new_hash").bin.encode("hex"))),
        _as_plan(duplicates.select("row", *KEY, action=pl.lit("duplicate"))),
        _as_plan(validated.invalid.with_columns(action=pl.lit("invalid"))),
    ]
    expected = (
        numbered(given)
        .select("row")
        .join(
            decided.select("row", pl.col("old_hash", "old_metadata_hash").bin.encode("hex")),
            on="row",
            how="left",
            maintain_order="left",
        )
    )
    columns = [
        expected[name].alias(alias) for name, alias in zip(("old_hash", "old_metadata_hash"), _EXPECTED, strict=True)
    ]
    kept = given.select(name for name in (*KEY, "content", "metadata") if name in given.columns)
    kept = with_details(kept.with_columns(columns), given)
    return Plan(pl.concat(parts).sort("row"), Whole(kept, whole.objects), options, upsert)


def _as_plan(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in PLAN_SCHEMA.items()
    )


def _compare(engine: Engine, rows: pl.DataFrame, options: Options) -> pl.DataFrame:
    """Compare rows with the stored entities: row, key, action, old_hash, old_metadata_hash, new_hash and changes."""
    stored = keeping.stored(engine, rows)
    keeps = rows["keeps_content"] if "keeps_content" in rows.columns else pl.repeat(False, rows.height, eager=True)
    new = merged_texts(rows["metadata"], stored["metadata"], absent=options.absent, nulls=options.nulls)
    old_hash, given_hash = stored["content_hash"], rows["content_hash"]
    absent = old_hash.is_null()
    new_hash = old_hash.zip_with(keeps & ~absent, given_hash)
    fetched = stored["metadata"].is_not_null()
    same_metadata = (new == stored["metadata"]).zip_with(fetched, stored["metadata_hash"] == rows["metadata_hash"])
    same = (new_hash == old_hash) & same_metadata
    decided = rows.select("row", *KEY).with_columns(
        old_hash.alias("old_hash"),
        stored["metadata_hash"].alias("old_metadata_hash"),
        new_hash.alias("new_hash"),
        absent.alias("absent"),
        same.fill_null(False).alias("same"),
    )
    action = pl.when("absent").then(pl.lit("create")).when("same").then(pl.lit("unchanged")).otherwise(pl.lit("update"))
    decided = decided.with_columns(action=action)
    # Metadata is not fetched if it is equal, or if there is no entity.
    old = stored["metadata"].zip_with(fetched, pl.Series(["{}"]).new_from_index(0, rows.height).zip_with(absent, new))
    return decided.drop("absent", "same").hstack([_changes(old, new, decided["action"])])


def _changes(old: pl.Series, new: pl.Series, action: pl.Series) -> pl.Series:
    """The fields that differ (List), empty if none does, null for unchanged rows."""
    dtype = PLAN_SCHEMA["changes"]
    found = differences(old, new)
    lists = found.group_by("place", maintain_order=True).agg(changes=pl.struct("field", "old", "new"))
    each = pl.DataFrame({"place": pl.int_range(len(old), dtype=pl.UInt32, eager=True), "action": action})
    each = each.join(lists, on="place", how="left", maintain_order="left")
    changes = pl.col("changes").cast(dtype).fill_null(pl.lit([], dtype=dtype))
    return each.select(pl.when(pl.col("action") != "unchanged").then(changes).alias("changes")).to_series()
