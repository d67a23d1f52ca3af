"""The survey: the current state of the folder and the store, joined with the state recorded at the last sync.

It reads only names, sizes and times, hashes from the store, and the bytes of files that may have moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import polars as pl

from entityframes.directory import paths
from entityframes.directory.plan import Direction
from entityframes.directory.tree import Tree
from entityframes.directory.walk import Walk
from entityframes.engines.base import Engine
from entityframes.frames.schema import KEY

#: Columns of a surveyed row; base_... is the state at the last sync, stored_... the current state of the store, null if
#: there is none.
ROWS = pl.Schema(
    {
        "path": pl.String(),
        "entity_type": pl.String(),
        "id": pl.String(),
        # The change of the file and of the entity; see plan.TABLE.
        "file": pl.String(),
        "entity": pl.String(),
        "size": pl.Int64(),
        "mtime_ns": pl.Int64(),
        # Identifies the file and its state (`Stat.mark`).
        "mark": pl.Int64(),
        "base_path": pl.String(),
        "base_hash": pl.Binary(),
        "base_content": pl.Binary(),
        "base_metadata": pl.Binary(),
        "stored_content": pl.Binary(),
        "stored_metadata": pl.Binary(),
        # Set if the action is already decided.
        "action": pl.String(),
        "direction": pl.String(),
        "reason": pl.String(),
        # The current key of an entity to be renamed.
        "old_type": pl.String(),
        "old_id": pl.String(),
    }
)
_BASE = ["base_path", "base_hash", "base_content", "base_metadata"]
_STORED = ["stored_content", "stored_metadata"]

#: The sha256 of the empty string: two empty contents are not taken for the same entity.
_EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
#: Files read, and keys looked up, at once.
_PIECE = 256
_KEYS = 50_000


@dataclass(frozen=True)
class Folder:
    """A folder as the store knows it, and the mapping between its files and entities."""

    name: str
    tree: Tree
    default_type: str
    suffixes: Sequence[str]
    #: The types that belong to the folder; None for all.
    types: frozenset[str] | None

    def key_of(self, path: str) -> tuple[str | None, str | None, str | None]:
        """(entity_type, id, None) of a path found by a walk, or (None, None, reason) if it cannot be an entity."""
        try:
            return (*paths.key_of(path, self.default_type, self.suffixes, skipped=""), None)
        except ValueError as error:
            return None, None, str(error)

    def path_of(self, entity_type: str, id: str, origin: str | None) -> str:
        """The path of an entity: `origin`, its last path in any folder, if that maps to the same key here."""
        if origin is not None:
            with suppress(ValueError):
                found = paths.key_of(origin, self.default_type, self.suffixes, self.tree.skipped)
                if found == (entity_type, id):
                    return origin
        return paths.path_of(entity_type, id, self.suffixes[0])

    def owned(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows whose type belongs to the folder, or is not known."""
        if self.types is None:
            return rows
        return rows.filter(pl.col("entity_type").is_in(list(self.types)) | pl.col("entity_type").is_null())


def survey(
    folder: Folder, walk: Walk, filed: pl.DataFrame, unfiled: pl.DataFrame | None, engine: Engine, direction: Direction
) -> pl.DataFrame:
    """Join the state of the folder, the store and the last sync.

    Args:
        folder, engine, direction: what is synced, and in which direction.
        walk: the files in the folder.
        filed, unfiled: the files and entities in the store, as returned by `DirectoryEngine`; None if entities without
            a file are not needed.

    Returns:
        One row (`ROWS`) for each file, each path recorded at the last sync, and each entity without a file.
    """
    rows = _join_by_path(walk.files, folder.owned(filed))
    new = rows.filter(pl.col("file") == "new")
    rows = rows.filter(pl.col("file") != "new")
    if new.height:
        new = _with_keys(folder, new)
        rows, new = _match_by_key(rows, _reject_duplicate_keys(rows, new))
        new = _with_stored_hashes(engine, new)
        if direction != "export":
            rows, new = _match_moved_files(folder.tree, rows, new)
    if unfiled is not None and unfiled.height:
        rows = _recheck_changed(folder.tree, rows)
        loose = _with_paths(folder, engine, unfiled.join(new, on=KEY, how="anti"))
        rows, loose = _match_moved_entities(rows, loose)
        new = pl.concat([new, loose])
    rows = _explain_missing(folder.tree, rows, walk)
    rows = pl.concat([rows, new, _rows_of_refused(folder, walk, rows)])
    return _check_letter_case(folder.tree, rows) if new.height else rows


def to_rows(frame: pl.DataFrame, **columns: pl.Expr) -> pl.DataFrame:
    """The frame with the columns of a surveyed row (`ROWS`), null where it has none.

    Args:
        frame: the frame.
        columns: expressions for some of the columns; they take precedence over those of `frame`.
    """
    return frame.select(
        (columns[name] if name in columns else pl.col(name) if name in frame.columns else pl.lit(None))
        .cast(dtype)
        .alias(name)
        for name, dtype in ROWS.items()
    )


def _join_by_path(files: pl.DataFrame, filed: pl.DataFrame) -> pl.DataFrame:
    """Join the files found now with those recorded at the last sync."""
    remembered = filed.rename(
        {
            "size": "base_size",
            "mark": "base_mark",
            "file_hash": "base_hash",
            "content_hash": "base_content",
            "metadata_hash": "base_metadata",
        }
    ).with_columns(base_path="path")
    rows = files.join(remembered, on="path", how="full", coalesce=True)
    there, known = pl.col("size").is_not_null(), pl.col("base_path").is_not_null()
    untouched = (pl.col("size") == pl.col("base_size")) & (pl.col("mark") == pl.col("base_mark"))
    in_step = (pl.col("stored_content") == pl.col("base_content")) & (
        pl.col("stored_metadata") == pl.col("base_metadata")
    )
    file = (
        pl.when(~there)
        .then(pl.lit("gone"))
        .when(~known)
        .then(pl.lit("new"))
        .when(untouched)
        .then(pl.lit("same"))
        .otherwise(pl.lit("changed"))
    )
    entity = (
        pl.when(~known)
        .then(pl.lit("none"))
        .when(pl.col("stored_content").is_null())
        .then(pl.lit("gone"))
        .when(in_step)
        .then(pl.lit("same"))
        .otherwise(pl.lit("changed"))
    )
    return to_rows(rows, file=file, entity=entity)


def _with_keys(folder: Folder, new: pl.DataFrame) -> pl.DataFrame:
    """New files with their keys, or with the reason why they have none."""
    keys = pl.DataFrame(
        [folder.key_of(path) for path in new["path"]],
        schema=dict.fromkeys([*KEY, "reason"], pl.String),
        orient="row",
    )
    new = new.with_columns(keys.get_columns())
    return folder.owned(new).with_columns(action=pl.when(pl.col("reason").is_not_null()).then(pl.lit("invalid")))


def _reject_duplicate_keys(rows: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Mark new files with the key of another file as invalid; files known from the last sync keep their entity."""
    there = pl.concat([rows.filter(pl.col("file") != "gone"), new.filter(pl.col("action").is_null())])
    twice = there.select(pl.struct(KEY).is_duplicated()).to_series()
    if not twice.any():
        return new
    others = there.filter(twice).sort("path").group_by(KEY).agg(pl.col("path").alias("others"))
    new = new.join(others, on=KEY, how="left", maintain_order="left")
    reason = pl.format(
        "collision: {} all map to {}/{}, so none of them is imported; rename all but one",
        pl.col("others").list.join(" and "), *KEY,
    )  # fmt: skip
    collides = pl.col("others").is_not_null()
    return new.with_columns(
        action=pl.when(collides).then(pl.lit("invalid")).otherwise("action"),
        reason=pl.when(collides).then(reason).otherwise("reason"),
    ).drop("others")


def _match_by_key(rows: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Match new files with deleted files of the same key (with another suffix, for example): these were renamed."""
    gone = rows.filter(pl.col("file") == "gone")
    appeared = new.filter(pl.col("action").is_null()).join(gone, on=KEY, how="semi")
    if appeared.is_empty():
        return rows, new
    carried = ["entity", *_BASE, *_STORED]
    moved = appeared.drop(carried).join(gone.select(*KEY, *carried), on=KEY, how="left")
    moved = moved.with_columns(file=pl.lit("changed"))
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), to_rows(moved)])
    return rows, new.join(appeared, on="path", how="anti")


def _with_stored_hashes(engine: Engine, new: pl.DataFrame) -> pl.DataFrame:
    """New files with the hashes of the entities that the store has under their keys."""
    if new.is_empty():
        return new
    new = new.sort(KEY)
    answers = [
        engine.hashes(piece.select(KEY)).with_columns(pl.col("position").cast(pl.Int64) + number * _KEYS)
        for number, piece in enumerate(new.iter_slices(_KEYS))
    ]
    found = pl.concat(answers).rename({"content_hash": "stored_content", "metadata_hash": "stored_metadata"})
    new = new.drop(_STORED).with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
    new = new.join(found, on="position", how="left", maintain_order="left")
    entity = pl.when(pl.col("stored_content").is_null()).then(pl.lit("none")).otherwise(pl.lit("new"))
    return to_rows(new, entity=entity)


def _match_moved_files(tree: Tree, rows: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Match new files with deleted files of the same bytes: these were moved, and their entities are renamed."""
    gone = rows.filter((pl.col("file") == "gone") & (pl.col("entity") != "gone"))
    appeared = new.filter((pl.col("entity") == "none") & pl.col("action").is_null() & (pl.col("size") > 0))
    if gone.is_empty() or appeared.is_empty():
        return rows, new
    hashes = [
        (read.path, read.digest, read.stat.size, read.stat.mark if read.stable else -1)
        for piece in appeared.sort("path").iter_slices(_PIECE)
        for read in tree.read(piece["path"].to_list())
        if read.stat is not None
    ]
    schema = {"path": pl.String, "base_hash": pl.Binary, "size": pl.Int64, "mark": pl.Int64}
    read = pl.DataFrame(hashes, schema=schema, orient="row")
    pairs = _pair_up(
        read.join(gone.select("base_hash", "base_path"), on="base_hash"), pl.col("path"), pl.col("base_path")
    )
    # The state in which the bytes were read.
    appeared = appeared.drop("size", "mark").join(read.drop("base_hash"), on="path")
    if pairs.is_empty():
        return rows, new
    carried = ["entity", *_BASE[1:], *_STORED]
    moved = appeared.drop([*carried, "base_path"]).join(pairs.select("path", "base_path"), on="path")
    moved = moved.join(
        gone.select("base_path", *carried, old_type="entity_type", old_id="id"), on="base_path", suffix="_gone"
    )
    moved = moved.with_columns(old_type="old_type_gone", old_id="old_id_gone")
    moved = to_rows(
        moved,
        file=pl.lit("same"),
        action=pl.lit("rename"),
        direction=pl.lit("import"),
        reason=pl.format("moved from {}", "base_path"),
    )
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), moved])
    return rows, new.join(moved, on="path", how="anti")


def _recheck_changed(tree: Tree, rows: pl.DataFrame) -> pl.DataFrame:
    """Hash changed files without an entity: if only their status has changed, the entity may have been renamed."""
    suspects = rows.filter((pl.col("file") == "changed") & (pl.col("entity") == "gone"))
    if suspects.is_empty():
        return rows
    hashes = dict(zip(suspects["path"], suspects["base_hash"], strict=True))
    same = [
        read.path
        for piece in suspects.sort("path").iter_slices(_PIECE)
        for read in tree.read(piece["path"].to_list())
        if read.digest is not None and read.digest == hashes[read.path]
    ]
    return rows.with_columns(file=pl.when(pl.col("path").is_in(same)).then(pl.lit("same")).otherwise("file"))


def _match_moved_entities(rows: pl.DataFrame, loose: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Match new entities with deleted ones of equal content and metadata: these were renamed, and their files move."""
    gone = rows.filter((pl.col("file") == "same") & (pl.col("entity") == "gone") & (pl.col("base_content") != _EMPTY))
    if gone.is_empty():
        return rows, loose
    pairs = loose.select("path", base_content="stored_content", base_metadata="stored_metadata").join(
        gone.select("base_path", "base_content", "base_metadata"), on=["base_content", "base_metadata"]
    )
    pairs = _pair_up(pairs, pl.col("path"), pl.col("base_path"))
    carried = ["size", "mtime_ns", "mark", *_BASE[1:]]
    moved = loose.drop([*carried, "base_path", "old_type", "old_id"]).join(pairs.select("path", "base_path"), on="path")
    moved = to_rows(
        moved.join(gone.select("base_path", *carried, old_type="entity_type", old_id="id"), on="base_path"),
        file=pl.lit("same"),
        entity=pl.lit("same"),
        action=pl.lit("rename"),
        direction=pl.lit("export"),
        reason=pl.format("moved from {}", "base_path"),
    )
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), moved])
    return rows, loose.join(moved, on="path", how="anti")


def _pair_up(pairs: pl.DataFrame, new: pl.Expr, old: pl.Expr) -> pl.DataFrame:
    """Choose pairs so that each path occurs at most once, preferring files that kept their name."""
    same_name = new.str.split("/").list.last() == old.str.split("/").list.last()
    pairs = pairs.with_columns(same_name=same_name).sort(
        "same_name", "path", "base_path", descending=[True, False, False]
    )
    taken: list[pl.DataFrame] = []
    while pairs.height:
        # Take the pairs that come first for both of their paths, then repeat with the remaining paths.
        chosen = pairs.filter(new.is_first_distinct() & old.is_first_distinct())
        taken.append(chosen)
        pairs = pairs.join(chosen, on="path", how="anti", maintain_order="left")
        pairs = pairs.join(chosen, on="base_path", how="anti", maintain_order="left")
    return pl.concat(taken) if taken else pairs


def _with_paths(folder: Folder, engine: Engine, unfiled: pl.DataFrame) -> pl.DataFrame:
    """Entities without a file, each with its path."""
    unfiled = unfiled.sort(KEY).rename({"content_hash": "stored_content", "metadata_hash": "stored_metadata"})
    origins: list[str | None] = [None] * unfiled.height
    for number, piece in enumerate(unfiled.iter_slices(_KEYS)):
        found = engine.directory.origins(piece.select(KEY))
        for position, path in zip(found["position"], found["path"], strict=True):
            origins[number * _KEYS + position] = path
    keys = zip(unfiled["entity_type"], unfiled["id"], origins, strict=True)
    loose = unfiled.with_columns(path=pl.Series([folder.path_of(*key) for key in keys], dtype=pl.String))
    return to_rows(loose, file=pl.lit("none"), entity=pl.lit("new"))


def _explain_missing(tree: Tree, rows: pl.DataFrame, walk: Walk) -> pl.DataFrame:
    """Decide rows whose file was not found but may still exist: unreadable, quarantined, or ignored."""
    gone = rows.filter(pl.col("file") == "gone")
    if gone.is_empty():
        return rows
    refused = dict(walk.refused.iter_rows())
    aside = set(walk.quarantined["path"])
    below = tuple(f"{folder}/" for folder in walk.unreadable)
    below_links = tuple(f"{folder}/" for folder in walk.links)
    left_out = dict(walk.left_out.select("path", "reason").iter_rows())
    found = []
    for path in gone["path"]:
        if path.startswith(below) or "" in walk.unreadable:
            found.append((path, "invalid", "its folder cannot be read"))
        elif path in refused:
            found.append((path, "invalid", refused[path]))
        elif path in aside:
            found.append((path, "invalid", f"set aside as {path}.invalid"))
        elif path.startswith(below_links):
            found.append((path, "unchanged", "its folder is now a link, which is not followed"))
        elif path in left_out:
            found.append((path, "unchanged", f"the file is now left out: {left_out[path]}"))
        elif tree.exists(path):
            found.append((path, "unchanged", "the file or its folder is now left out"))
    if not found:
        return rows
    answers = pl.DataFrame(found, schema=dict.fromkeys(("path", "action_", "reason_"), pl.String), orient="row")
    rows = rows.join(answers, on="path", how="left", maintain_order="left")
    return to_rows(rows, action=pl.coalesce("action", "action_"), reason=pl.coalesce("reason", "reason_"))


def _rows_of_refused(folder: Folder, walk: Walk, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows for paths that could be entities but are not readable regular files."""
    fresh = walk.refused.join(rows, on="path", how="anti")
    return to_rows(fresh, file=pl.lit("none"), entity=pl.lit("none"), action=pl.lit("invalid"))


def _check_letter_case(tree: Tree, rows: pl.DataFrame) -> pl.DataFrame:
    """Report new paths that differ from others only in letter case; invalid if this file system ignores case."""
    folded = pl.Series("folded", [paths.folded(path) for path in rows["path"]], dtype=pl.String)
    there = (rows["file"] != "gone") & (rows["action"].fill_null("") != "invalid")
    collides = folded.is_duplicated() & there
    if not collides.any():
        return rows
    others = rows.with_columns(folded).filter(collides).group_by("folded").agg(pl.col("path").sort().alias("others"))
    others = others.filter(pl.col("others").list.len() > 1)
    rows = rows.with_columns(folded).join(others, on="folded", how="left", maintain_order="left")
    fresh = pl.col("others").is_not_null() & pl.col("file").is_in(["new", "none"])
    reason = pl.format("collision: {} differ only in letter case", pl.col("others").list.join(" and "))
    refuse = pl.lit(tree.ignores_case())
    return to_rows(
        rows,
        action=pl.when(fresh & refuse).then(pl.lit("invalid")).otherwise("action"),
        reason=pl.when(fresh).then(reason).otherwise("reason"),
    )
