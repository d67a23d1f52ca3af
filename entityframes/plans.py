"""Plans: what an upsert would do, row by row, without doing it; and doing just that."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from entityframes import forks, frames
from entityframes.batches import UpsertRun
from entityframes.engines import Engine, Interrupt
from entityframes.frames import KEY
from entityframes.options import OnError, Options
from entityframes.progress import Progress
from entityframes.results import UpsertResult
from entityframes.visible import visible

#: What a plan says of a row. create, update, unchanged: what an upsert would report; duplicate: another row of the
#: frame has the key; invalid: the row breaks a rule of the data, with the reason in ``error``.
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

#: Entities whose metadata is asked for at once; their content comes with it.
_LOOKUP_ROWS = 50_000

#: Columns that a plan adds to its rows when it is applied.
_EXPECTED = ("expected_hash", "expected_metadata_hash")


@forks.guarded
@dataclass(frozen=True, repr=False)
class Plan:
    """What an upsert of a frame would do to the store as it was; made by `EntityStore.plan`, which wrote nothing."""

    #: One row for each input row, in input order: ``row`` UInt32, ``entity_type``, ``id`` String, ``action`` Enum
    #: (create, update, unchanged, duplicate, invalid), ``old_hash`` and ``new_hash`` String (sha256 of the content in
    #: hex; null where there is none), ``changes`` List(Struct(field, old, new)) with the JSON text of each metadata
    #: field that differs (null where it is not there; for create and update), ``error`` String.
    frame: pl.DataFrame
    _given: pl.DataFrame = field(compare=False)
    _on_duplicate: str = field(compare=False)
    _upsert: Callable[..., UpsertResult] = field(compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each action."""
        found = dict(self.frame["action"].cast(pl.String).value_counts().iter_rows())
        return {action: found.get(action, 0) for action in ACTIONS}

    @property
    def changed_fields(self) -> dict[str, int]:
        """How many updates change each metadata field, the most changed first."""
        changes = self.frame.filter(pl.col("action") == "update")["changes"].explode(empty_as_null=False)
        fields = changes.drop_nulls().struct.field("field").value_counts(sort=True)
        return dict(fields.sort(["count", "field"], descending=[True, False]).iter_rows())

    @property
    def changed_contents(self) -> int:
        """How many updates change the content."""
        content = (pl.col("action") == "update") & (pl.col("old_hash") != pl.col("new_hash"))
        return self.frame.filter(content).height

    def summary(self) -> str:
        """A few lines for a person: how many rows have each action, what the updates change, the first bad rows."""
        names = {"create": "to create", "update": "to update"}
        counted = [f"{count:,} {names.get(action, action)}" for action, count in self.counts.items() if count]
        lines = [f"{self.frame.height:,} rows: {', '.join(counted) or 'nothing to do'}"]
        if self.counts["update"]:
            parts = [f"the content of {self.changed_contents:,}"] if self.changed_contents else []
            parts += [f"{visible(name)} of {count:,}" for name, count in list(self.changed_fields.items())[:10]]
            lines.append(f"updates change {', '.join(parts)}")
        invalid = self.frame.filter(pl.col("action") == "invalid").head(3).iter_rows(named=True)
        lines += [
            f"row {row['row']} ({visible(row['entity_type'])}/{visible(row['id'])}): {visible(row['error'])}"
            for row in invalid
        ]
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
        """Do what the plan says, and leave alone what somebody else has changed since.

        The state that each entity had is compared in the transaction that writes it. May be called again: what is
        done is then unchanged.

        Args:
            batch_size, embed, on_error, progress, cancel: as for `EntityStore.upsert`.

        Returns:
            UpsertResult; a row whose entity is neither as it was when the plan was made nor as the plan wants it has
            the status conflict, and nothing of it is written.

        Raises:
            SchemaError, DatabaseError, KeyboardInterrupt: as `EntityStore.upsert`.
        """
        options = Options(batch_size, embed, self._on_duplicate, on_error, *_EXPECTED)  # type: ignore[arg-type]
        return self._upsert(self._given, options, progress, cancel)

    def __repr__(self) -> str:
        return f"Plan: {self.summary()}"


def make(engine: Engine, given: pl.DataFrame, on_duplicate: str, upsert: Callable[..., UpsertResult]) -> Plan:
    """Compare a frame with the store.

    Args:
        engine: the store's.
        given: an entity frame.
        on_duplicate: as for `EntityStore.upsert`.
        upsert: called by `Plan.apply` with a frame, `Options`, progress and cancel.

    Raises:
        SchemaError: the frame cannot be stored.
        DuplicateError: a key stands twice and ``on_duplicate="error"``.
    """
    run = UpsertRun(engine, Options(on_duplicate=on_duplicate), Interrupt())  # type: ignore[arg-type]
    rows, invalid, duplicates = run.preview(given)
    stored = _stored(engine, rows)
    compared = rows.select("row", *KEY, "content_hash", "metadata_hash").hstack(stored.get_columns())
    absent = pl.col("old_hash").is_null()
    same_metadata = pl.col("metadata_hash") == pl.col("old_metadata_hash")
    same = (pl.col("content_hash") == pl.col("old_hash")) & same_metadata
    action = pl.when(absent).then(pl.lit("create")).when(same).then(pl.lit("unchanged")).otherwise(pl.lit("update"))
    decided = compared.with_columns(action=action, new_hash=pl.col("content_hash"))
    decided = decided.with_columns(_changes(engine, rows, decided))
    told = [
        _as_plan(decided.with_columns(pl.col("old_hash", "new_hash").bin.encode("hex"))),
        _as_plan(duplicates.select("row", *KEY, action=pl.lit("duplicate"))),
        _as_plan(invalid.with_columns(action=pl.lit("invalid"))),
    ]
    expected = (
        frames.numbered(given)
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
    return Plan(pl.concat(told).sort("row"), kept.with_columns(columns), on_duplicate, upsert)


def _as_plan(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in PLAN_SCHEMA.items()
    )


def _stored(engine: Engine, rows: pl.DataFrame) -> pl.DataFrame:
    """old_hash and old_metadata_hash of each row's entity, null where there is none."""
    found = []
    for start in range(0, rows.height, engine.lookup_rows):
        answer = engine.hashes(rows[start : start + engine.lookup_rows].select(KEY))
        found.append(answer.with_columns(pl.col("position").cast(pl.Int64) + start))
    schema = {"position": pl.Int64, "content_hash": pl.Binary, "metadata_hash": pl.Binary}
    answers = pl.concat(found) if found else pl.DataFrame(schema=schema)
    positions = pl.DataFrame({"position": pl.int_range(rows.height, eager=True)})
    return positions.join(answers, on="position", how="left", maintain_order="left").select(
        old_hash="content_hash", old_metadata_hash="metadata_hash"
    )


def _changes(engine: Engine, rows: pl.DataFrame, decided: pl.DataFrame) -> pl.Series:
    """The metadata fields that differ; the old metadata is fetched only where its hash differs."""
    dtype = PLAN_SCHEMA["changes"]
    differs = (decided["action"] == "update") & (decided["metadata_hash"] != decided["old_metadata_hash"])
    old: dict[int, str] = {}
    asked = differs.fill_null(False).arg_true()
    for start in range(0, len(asked), _LOOKUP_ROWS):
        piece = asked[start : start + _LOOKUP_ROWS]
        answer = engine.lookup(rows[piece].select(KEY))
        old |= zip(piece[answer["position"]].to_list(), answer["metadata"].to_list(), strict=True)
    changes = [
        _difference("{}" if action == "create" else old.get(position, new), new) if action != "unchanged" else None
        for position, (action, new) in enumerate(zip(decided["action"], rows["metadata"], strict=True))
    ]
    return pl.Series("changes", changes, dtype=dtype)


def _difference(old: str, new: str) -> list[dict[str, Any]]:
    """field, old and new (JSON text) of each top-level field that differs, ordered by name."""
    if old == new:
        return []
    before, after = json.loads(old), json.loads(new)
    return [
        {"field": name, "old": _json(before, name), "new": _json(after, name)}
        for name in sorted(before.keys() | after.keys())
        if _json(before, name) != _json(after, name)
    ]


def _json(metadata: dict[str, Any], name: str) -> str | None:
    if name not in metadata:
        return None
    return json.dumps(metadata[name], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
