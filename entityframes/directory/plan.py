"""The action for a file and its entity, decided from how each has changed since they were last in sync.

A row is a file, or an entity that should have one. `survey` joins the current state of the folder and the store with
the state recorded at the last sync; `decide` looks up the action in one table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import polars as pl

from entityframes import views
from entityframes.directory.left_out import notes
from entityframes.progress import Progress
from entityframes.results import SyncResult

Direction = Literal["import", "export", "both"]
OnConflict = Literal["report", "files", "store", "newer"]

#: The actions of a row:
#: create, update: the entity is written from the file;
#: export: the file is written from the entity; delete: the entity or the file is deleted;
#: rename: the entity gets the key of the file's new path, or the file gets the path of the entity's new key;
#: conflict: both changed; invalid: the file cannot be an entity, or the entity cannot be a file; unchanged: nothing.
ACTIONS = ("create", "update", "delete", "rename", "export", "conflict", "invalid", "unchanged")
#: import: from the folder to the store; export: from the store to the folder.
DIRECTIONS = ("import", "export")

#: Maximum number of entities that a sync exports of a type without any file in the folder.
MAX_NEW_TYPE = 1_000

#: Columns of `SyncPlan.frame`.
PLAN_SCHEMA = pl.Schema(
    {
        "path": pl.String(),
        "entity_type": pl.String(),
        "id": pl.String(),
        "action": pl.Enum(ACTIONS),
        "direction": pl.Enum(DIRECTIONS),
        "reason": pl.String(),
    }
)


class Move(NamedTuple):
    """An action with its direction, and the reason if it needs one."""

    action: str
    direction: str | None = None
    reason: str | None = None


_CREATE = Move("create", "import")
_UPDATE = Move("update", "import")
_EXPORT = Move("export", "export")
_DELETE_ENTITY = Move("delete", "import", "the file is gone")
_DELETE_FILE = Move("delete", "export", "the entity is gone")
_NOTHING = Move("unchanged")
_BOTH = Move("conflict", None, "both the file and the entity changed")
_DIFFERENT = Move("conflict", None, "the file and the entity differ, and have never been synced")
_EDITED_GONE = Move("conflict", None, "the file was edited and the entity was deleted")
_GONE_EDITED = Move("conflict", None, "the file is gone and the entity was changed")


def _skip(reason: str) -> Move:
    return Move("unchanged", None, reason)


#: The moves of import, export and sync, by the changes of the file and of the entity since they were last in sync.
#: A file or an entity is the same, changed, gone, new (not synced before) or none (it never existed).
TABLE: dict[tuple[str, str], tuple[Move, Move, Move]] = {
    ("same", "same"): (_NOTHING, _NOTHING, _NOTHING),
    ("same", "changed"): (_skip("the entity was changed: use export or sync to update the file"), _EXPORT, _EXPORT),
    ("same", "gone"): (_CREATE, _DELETE_FILE, _DELETE_FILE),
    ("changed", "same"): (_UPDATE, _skip("the file was edited: use import or sync to update the store"), _UPDATE),
    ("changed", "changed"): (_UPDATE, _BOTH, _BOTH),
    ("changed", "gone"): (_CREATE, _skip("the file was edited and the entity was deleted"), _EDITED_GONE),
    ("new", "none"): (_CREATE, _skip("not in the store: use import or sync to add it"), _CREATE),
    ("new", "new"): (_UPDATE, _DIFFERENT, _DIFFERENT),
    ("gone", "same"): (_DELETE_ENTITY, _EXPORT, _DELETE_ENTITY),
    ("gone", "changed"): (_GONE_EDITED, _EXPORT, _GONE_EDITED),
    ("gone", "gone"): (_NOTHING, _NOTHING, _NOTHING),
    ("none", "new"): (_skip("no file yet: use export or sync to create it"), _EXPORT, _EXPORT),
}

#: How a conflict is resolved if the file wins, and if the entity wins.
_FILE_WINS = {"changed changed": _UPDATE, "changed gone": _CREATE, "new new": _UPDATE, "gone changed": _DELETE_ENTITY}
_STORE_WINS = {
    "changed changed": _EXPORT,
    "changed gone": _DELETE_FILE,
    "new new": _EXPORT,
    "gone changed": _EXPORT,
}

_COLUMN = {"import": 0, "export": 1, "both": 2}
_TWO_SIDES = pl.concat_str("file", "entity", separator=" ")


def decide(rows: pl.DataFrame, direction: Direction, on_conflict: OnConflict, delete: bool) -> pl.DataFrame:
    """Decide the action of rows that have none yet.

    Args:
        rows: with file, entity, `equal` (Boolean: file and entity have the same content and metadata), and `newer`
            (Boolean: the file was changed after the entity; null if not known).
        direction: the direction in which changes are applied.
        on_conflict: which side wins if both changed.
        delete: whether deletions are applied.

    Returns:
        The rows with action, direction, reason, and resolved (Boolean: a conflict was resolved).
    """
    column = _COLUMN[direction]
    table = _lookup({f"{file} {entity}": moves[column] for (file, entity), moves in TABLE.items()})
    decided = rows.rename({"reason": "note"}).drop("action", "direction").with_columns(_TWO_SIDES.alias("sides"))
    decided = decided.join(table, on="sides", how="left", maintain_order="left").with_columns(resolved=pl.lit(False))
    conflict = pl.col("action") == "conflict"
    if on_conflict != "report" and decided.select(conflict.any()).item():
        file_wins = {
            "files": pl.lit(True),
            "store": pl.lit(False),
            # The time of a deletion is not known: the side that still exists is kept.
            "newer": pl.when(pl.col("file") == "gone").then(False).when(pl.col("entity") == "gone").then(True)
            .otherwise(pl.col("newer")),
        }[on_conflict]  # fmt: skip
        for wins, moves in ((file_wins, _FILE_WINS), (~file_wins, _STORE_WINS)):
            answer = decided.select("sides").join(_lookup(moves), on="sides", how="left", maintain_order="left")
            allowed = answer["action"].is_not_null() & (pl.lit(delete) | (answer["action"] != "delete"))
            chosen = conflict & wins & allowed & ~pl.col("resolved")
            decided = decided.with_columns(
                resolved=pl.col("resolved") | chosen,
                **{name: pl.when(chosen).then(answer[name]).otherwise(pl.col(name)) for name in Move._fields},
            )
    equal = pl.col("equal").fill_null(False)
    kept = (pl.col("action") == "delete") & pl.lit(not delete)
    decided = decided.with_columns(
        action=pl.when(equal | kept).then(pl.lit("unchanged")).otherwise("action"),
        direction=pl.when(equal | kept).then(None).otherwise("direction"),
        reason=pl.when(equal)
        .then(None)
        .when(kept)
        .then(pl.format("{}; deletions are applied only with delete=True", "reason"))
        .otherwise("reason"),
        resolved=pl.col("resolved") & ~equal,
    )
    return decided.with_columns(pl.coalesce("reason", "note").alias("reason")).drop("sides", "note")


def limit_deletions(rows: pl.DataFrame, known: int, max_delete: int | None, *, empty: bool) -> pl.DataFrame:
    """Refuse deletions if there are too many of them to be intended.

    Args:
        rows: rows with an action.
        known: number of files recorded at the last sync.
        max_delete: maximum number of deletions in each direction; None for a fifth of the files, at least 1 and at most
            100.
        empty: whether the folder contains no files at all, which may mean that it is not mounted.

    Returns:
        The rows with refused (Boolean), and the reason.
    """
    most = max(1, min(100, known // 5)) if max_delete is None else max_delete
    for direction, what in (("import", "files"), ("export", "entities")):
        which = (pl.col("action") == "delete") & (pl.col("direction") == direction) & ~pl.col("resolved")
        count = rows.filter(which).height
        if direction == "import" and empty and count:
            reason = "refused: the folder contains no files at all, so nothing is deleted; is it mounted?"
        elif count > most:
            reason = (
                f"refused: {count:,} of {known:,} {what} are gone, more than the limit of {most:,} deletions per sync; "
                f"max_delete={count} allows them"
            )
        else:
            continue
        explained = pl.when(which).then(pl.lit(reason)).otherwise("reason")
        rows = rows.with_columns(refused=which | pl.col("refused"), reason=explained)
    return rows


def limit_new_types(rows: pl.DataFrame, types: pl.Series) -> pl.DataFrame:
    """Refuse to export large numbers of entities of a type without any file in the folder.

    Args:
        rows: rows with an action.
        types: the types that have files in the folder.

    Returns:
        The rows with refused (Boolean), and the reason.
    """
    which = (pl.col("action") == "export") & (pl.col("file") == "none") & ~pl.col("entity_type").is_in(types.implode())
    new = rows.filter(which).group_by("entity_type").len("count").filter(pl.col("count") > MAX_NEW_TYPE)
    for entity_type, count in new.sort("entity_type").iter_rows():
        reason = (
            f"refused: {count:,} entities of type {entity_type!r}, which has no files in this folder: "
            "name the types that belong to the folder (types=, --type), or export them"
        )
        of_type = which & (pl.col("entity_type") == entity_type)
        explained = pl.when(of_type).then(pl.lit(reason)).otherwise("reason")
        rows = rows.with_columns(refused=of_type | pl.col("refused"), reason=explained)
    return rows


def _lookup(moves: dict[str, Move]) -> pl.DataFrame:
    return pl.DataFrame(
        [(sides, *move) for sides, move in moves.items()],
        schema=dict.fromkeys(("sides", *Move._fields), pl.String),
        orient="row",
    )


#: The columns that must be unchanged when a plan is applied.
_SEEN = ("action", "direction", "file_hash", "stored_content", "stored_metadata")
STATES = (*PLAN_SCHEMA, "file_hash", "stored_content", "stored_metadata")
_SINCE = "changed since the plan was made: plan again"


@dataclass(frozen=True, repr=False, eq=False)
class SyncPlan:
    """What a sync of a folder would do. Made by `DirectorySync.plan`.

    All other attributes of a data frame (``plan["action"]``, ``plan.filter(...)``, ``plan.height``, ``len(plan)``) are
    those of `frame`.

    Attributes:
        frame: one row per file and per entity that has or should have one, ordered by path: ``path``, ``entity_type``,
            ``id`` String, ``action`` Enum (create, update, delete, rename, export, conflict, invalid, unchanged),
            ``direction`` Enum (import, export; null if nothing is carried over), ``reason`` String.
        left_out: what of the folder is ignored, as in `SyncResult.left_out`.

    Examples:
        >>> from pathlib import Path
        >>> Path("notes").mkdir()
        >>> plan = ef.DirectorySync(store, "notes").plan()
        >>> plan.select("path", "action").row(0)
        ('note/a.md', 'export')
    """

    frame: pl.DataFrame
    left_out: pl.DataFrame
    _states: pl.DataFrame = field(compare=False)
    _apply: Callable[..., SyncResult] = field(compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by action, with an entry for each action.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> ef.DirectorySync(store, "notes").plan().counts["export"]
            3
        """
        found = dict(self.frame["action"].cast(pl.String).value_counts().iter_rows())
        return {action: found.get(action, 0) for action in ACTIONS}

    def summary(self) -> str:
        """A few lines of text: number of rows by action, the first conflicts and invalid rows, and what is left out.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> print(ef.DirectorySync(store, "notes").plan().summary())
            3 files and entities: 3 to export
        """
        counted = [f"{count:,} {views.TO_DO.get(action, action)}" for action, count in self.counts.items() if count]
        lines = [f"{self.frame.height:,} files and entities: {', '.join(counted) or 'nothing to do'}"]
        bad = self.frame.filter(pl.col("action").is_in(["conflict", "invalid"]))
        lines += [f"{row['path']}: {row['reason'] or row['action']}" for row in bad.head(3).iter_rows(named=True)]
        return "\n".join([*lines, *notes(self.left_out)])

    def apply(
        self,
        *,
        quarantine: bool = False,
        batch_size: int | None = None,
        embed: bool = True,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> SyncResult:
        """Carry out the plan, except for files and entities that have been changed since it was made.

        The bytes of each file and its entity are compared with those that the plan was made from. It may be called
        again: rows that are done are then unchanged.

        Args:
            quarantine, batch_size, embed, progress, cancel: as for `DirectorySync.sync`.

        Returns:
            SyncResult. A row has the status conflict, and neither side is written, if its file or entity is not as it
            was when the plan was made, or if the plan does not contain it.

        Raises:
            DirectoryError, DatabaseError, KeyboardInterrupt: as for `DirectorySync.sync`.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> plan = ef.DirectorySync(store, "notes").plan(direction="export")
            >>> plan.apply().counts["exported"]
            3
        """
        return self._apply(self._states, quarantine, batch_size, embed, progress, cancel)

    def __repr__(self) -> str:
        counted, *rest = self.summary().split("\n")
        return f"SyncPlan: {counted}\n{'; '.join([*rest, 'apply() carries it out'])}"

    def _repr_html_(self) -> str:
        _, *lines = self.summary().split("\n")
        open_rows = self.frame.filter(pl.col("action") != "unchanged")
        columns = ["path", "action", "direction", "entity_type", "id", "reason"]
        rows = [
            (path, views.status(action), *rest)
            for path, action, *rest in open_rows.select(columns).head(views.MOST).iter_rows()
        ]
        return views.plan("SyncPlan", self.counts, lines, columns, rows, open_rows.height - len(rows))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__arrow_c_stream__":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.frame, name)

    def __getitem__(self, key: Any) -> Any:
        return self.frame[key]

    def __iter__(self) -> Iterator[pl.Series]:
        return iter(self.frame)

    def __len__(self) -> int:
        return self.frame.height


def as_planned(rows: pl.DataFrame, planned: pl.DataFrame) -> pl.DataFrame:
    """Turn rows into conflicts if their action or their state differs from the plan.

    Args:
        rows: with an action and file_hash.
        planned: the `STATES` of the plan.
    """
    states = planned.select("path", *(pl.col(name).alias(f"planned_{name}") for name in _SEEN))
    joined = rows.join(states, on="path", how="left", maintain_order="left")
    same = pl.all_horizontal(
        pl.col(name).cast(planned.schema[name]).eq_missing(pl.col(f"planned_{name}")) for name in _SEEN
    )
    other = ~same & ~pl.col("action").is_in(["unchanged", "conflict", "invalid"])
    return joined.with_columns(
        action=pl.when(other).then(pl.lit("conflict")).otherwise("action"),
        direction=pl.when(other).then(None).otherwise("direction"),
        reason=pl.when(other).then(pl.lit(_SINCE)).otherwise("reason"),
        refused=pl.col("refused") & ~other,
    ).select(rows.columns)


def vanished(rows: pl.DataFrame, planned: pl.DataFrame) -> pl.DataFrame:
    """Rows of a plan whose file and entity are both gone: deletions are already done, other actions are conflicts.

    Returns:
        path, entity_type, id, file, entity, action, reason.
    """
    gone = planned.filter(~pl.col("action").is_in(["unchanged", "conflict", "invalid"]))
    gone = gone.join(rows.select("path"), on="path", how="anti")
    deleted = pl.col("action") == "delete"
    return gone.select(
        "path", "entity_type", "id",
        file=pl.lit("none"),
        entity=pl.lit("none"),
        action=pl.when(deleted).then(pl.lit("unchanged")).otherwise(pl.lit("conflict")),
        reason=pl.when(~deleted).then(pl.lit(_SINCE)),
    )  # fmt: skip
