"""What the folder and the store say now, brought together with what was remembered of the last sync.

Nothing is read here but names, sizes and times, hashes out of the store, and the bytes of files that may have moved.
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

#: Columns of a surveyed row; base_... is what was remembered, stored_... what the store has now, null where nothing.
ROWS = pl.Schema(
    {
        "path": pl.String(),
        "entity_type": pl.String(),
        "id": pl.String(),
        # What became of the file and of the entity; see plan.TABLE.
        "file": pl.String(),
        "entity": pl.String(),
        "size": pl.Int64(),
        "mtime_ns": pl.Int64(),
        # What tells the file from another and from itself before a change (`Stat.mark`).
        "mark": pl.Int64(),
        "base_path": pl.String(),
        "base_hash": pl.Binary(),
        "base_content": pl.Binary(),
        "base_metadata": pl.Binary(),
        "stored_content": pl.Binary(),
        "stored_metadata": pl.Binary(),
        # Set where it is known already what is to be done.
        "action": pl.String(),
        "direction": pl.String(),
        "reason": pl.String(),
        # The key that an entity to be renamed has.
        "old_type": pl.String(),
        "old_id": pl.String(),
    }
)
_BASE = ["base_path", "base_hash", "base_content", "base_metadata"]
_STORED = ["stored_content", "stored_metadata"]

#: The sha256 of nothing: two texts without a word are not taken for the same one.
_EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
#: Files read, or keys asked about, at once.
_PIECE = 256
_KEYS = 50_000


@dataclass(frozen=True)
class Folder:
    """A folder as a store knows it, and which of its files are which entities."""

    name: str
    tree: Tree
    default_type: str
    suffixes: Sequence[str]
    #: The types that belong to the folder; None for all.
    types: frozenset[str] | None

    def key_of(self, path: str) -> tuple[str | None, str | None, str | None]:
        """entity_type and id of a path that a walk has found, or why it can be no entity."""
        try:
            return (*paths.key_of(path, self.default_type, self.suffixes, skipped=""), None)
        except ValueError as error:
            return None, None, str(error)

    def path_of(self, entity_type: str, id: str, origin: str | None) -> str:
        """Where an entity belongs: where it last was, in whatever folder, if that means the same here."""
        if origin is not None:
            with suppress(ValueError):
                found = paths.key_of(origin, self.default_type, self.suffixes, self.tree.skipped)
                if found == (entity_type, id):
                    return origin
        return paths.path_of(entity_type, id, self.suffixes[0])

    def owned(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows whose type belongs to the folder, or is not known."""
        if self.types is None:
            return rows
        return rows.filter(pl.col("entity_type").is_in(list(self.types)) | pl.col("entity_type").is_null())


def survey(
    folder: Folder, walk: Walk, filed: pl.DataFrame, unfiled: pl.DataFrame | None, engine: Engine, direction: Direction
) -> pl.DataFrame:
    """Bring the sides together.

    Args:
        folder, engine, direction: what is synced, and which way.
        walk: the files that are there.
        filed, unfiled: what the store says of files and entities, as `DirectoryEngine` gives it; no unfiled entities
            where they are of no concern.

    Returns:
        One row (`ROWS`) for each file, each path that was remembered, and each entity without a file.
    """
    rows = _together(walk.files, folder.owned(filed))
    new = rows.filter(pl.col("file") == "new")
    rows = rows.filter(pl.col("file") != "new")
    if new.height:
        new = _keyed(folder, new)
        rows, new = _same_key(rows, _unambiguous(rows, new))
        new = _looked_up(engine, new)
        if direction != "export":
            rows, new = _moved_files(folder.tree, rows, new)
    if unfiled is not None and unfiled.height:
        rows = _seen_again(folder.tree, rows)
        loose = _placed(folder, engine, unfiled.join(new, on=KEY, how="anti"))
        rows, loose = _moved_entities(rows, loose)
        new = pl.concat([new, loose])
    rows = _explained(folder.tree, rows, walk)
    return _told_apart(folder.tree, pl.concat([rows, new, _refused(folder, walk, rows)]), new.height > 0)


def shaped(frame: pl.DataFrame, **columns: pl.Expr) -> pl.DataFrame:
    """The frame with the columns of a row, null where it has none."""
    return frame.select(
        (columns[name] if name in columns else pl.col(name) if name in frame.columns else pl.lit(None))
        .cast(dtype)
        .alias(name)
        for name, dtype in ROWS.items()
    )


def _together(files: pl.DataFrame, filed: pl.DataFrame) -> pl.DataFrame:
    """Files and what is remembered, by path."""
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
    return shaped(rows, file=file, entity=entity)


def _keyed(folder: Folder, new: pl.DataFrame) -> pl.DataFrame:
    """New files with their keys, or the reason why they have none."""
    keys = pl.DataFrame(
        [folder.key_of(path) for path in new["path"]],
        schema=dict.fromkeys([*KEY, "reason"], pl.String),
        orient="row",
    )
    new = new.with_columns(keys.get_columns())
    return folder.owned(new).with_columns(action=pl.when(pl.col("reason").is_not_null()).then(pl.lit("invalid")))


def _unambiguous(rows: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """New files that are the same entity as another file are told; the one that was there first stays what it is."""
    there = pl.concat([rows.filter(pl.col("file") != "gone"), new.filter(pl.col("action").is_null())])
    twice = there.select(pl.struct(KEY).is_duplicated()).to_series()
    if not twice.any():
        return new
    others = there.filter(twice).sort("path").group_by(KEY).agg(pl.col("path").alias("others"))
    new = new.join(others, on=KEY, how="left", maintain_order="left")
    said = pl.format(
        "collision: {} are all {}/{}, so none of them is taken; rename all but one",
        pl.col("others").list.join(" and "), *KEY,
    )  # fmt: skip
    meets = pl.col("others").is_not_null()
    return new.with_columns(
        action=pl.when(meets).then(pl.lit("invalid")).otherwise("action"),
        reason=pl.when(meets).then(said).otherwise("reason"),
    ).drop("others")


def _same_key(rows: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A file that went and one that came for the same entity (another suffix, say) are one file that moved."""
    gone = rows.filter(pl.col("file") == "gone")
    came = new.filter(pl.col("action").is_null()).join(gone, on=KEY, how="semi")
    if came.is_empty():
        return rows, new
    carried = ["entity", *_BASE, *_STORED]
    moved = (
        came.drop(carried).join(gone.select(*KEY, *carried), on=KEY, how="left").with_columns(file=pl.lit("changed"))
    )
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), shaped(moved)])
    return rows, new.join(came, on="path", how="anti")


def _looked_up(engine: Engine, new: pl.DataFrame) -> pl.DataFrame:
    """What the store has under the keys of new files."""
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
    return shaped(new, entity=entity)


def _moved_files(tree: Tree, rows: pl.DataFrame, new: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A new file with the bytes of one that is gone is that file, moved: its entity gets the key of the new path."""
    gone = rows.filter((pl.col("file") == "gone") & (pl.col("entity") != "gone"))
    came = new.filter((pl.col("entity") == "none") & pl.col("action").is_null() & (pl.col("size") > 0))
    if gone.is_empty() or came.is_empty():
        return rows, new
    hashes = [
        (read.path, read.digest, read.stat.size, read.stat.mark if read.settled else -1)
        for piece in came.sort("path").iter_slices(_PIECE)
        for read in tree.read(piece["path"].to_list())
        if read.stat is not None
    ]
    schema = {"path": pl.String, "base_hash": pl.Binary, "size": pl.Int64, "mark": pl.Int64}
    read = pl.DataFrame(hashes, schema=schema, orient="row")
    pairs = _paired(
        read.join(gone.select("base_hash", "base_path"), on="base_hash"), pl.col("path"), pl.col("base_path")
    )
    # The state that the bytes are of.
    came = came.drop("size", "mark").join(read.drop("base_hash"), on="path")
    if pairs.is_empty():
        return rows, new
    carried = ["entity", *_BASE[1:], *_STORED]
    moved = came.drop([*carried, "base_path"]).join(pairs.select("path", "base_path"), on="path")
    moved = moved.join(
        gone.select("base_path", *carried, old_type="entity_type", old_id="id"), on="base_path", suffix="_gone"
    )
    moved = moved.with_columns(old_type="old_type_gone", old_id="old_id_gone")
    moved = shaped(
        moved,
        file=pl.lit("same"),
        action=pl.lit("rename"),
        direction=pl.lit("import"),
        reason=pl.format("moved from {}", "base_path"),
    )
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), moved])
    return rows, new.join(moved, on="path", how="anti")


def _seen_again(tree: Tree, rows: pl.DataFrame) -> pl.DataFrame:
    """A file without its entity may have changed in nothing but its status: then the entity may have moved."""
    asked = rows.filter((pl.col("file") == "changed") & (pl.col("entity") == "gone"))
    if asked.is_empty():
        return rows
    hashes = dict(zip(asked["path"], asked["base_hash"], strict=True))
    same = [
        read.path
        for piece in asked.sort("path").iter_slices(_PIECE)
        for read in tree.read(piece["path"].to_list())
        if read.digest is not None and read.digest == hashes[read.path]
    ]
    return rows.with_columns(file=pl.when(pl.col("path").is_in(same)).then(pl.lit("same")).otherwise("file"))


def _moved_entities(rows: pl.DataFrame, loose: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A new entity that is what a deleted one was is that entity under another key: its file moves."""
    gone = rows.filter((pl.col("file") == "same") & (pl.col("entity") == "gone") & (pl.col("base_content") != _EMPTY))
    if gone.is_empty():
        return rows, loose
    pairs = loose.select("path", base_content="stored_content", base_metadata="stored_metadata").join(
        gone.select("base_path", "base_content", "base_metadata"), on=["base_content", "base_metadata"]
    )
    pairs = _paired(pairs, pl.col("path"), pl.col("base_path"))
    carried = ["size", "mtime_ns", "mark", *_BASE[1:]]
    moved = loose.drop([*carried, "base_path", "old_type", "old_id"]).join(pairs.select("path", "base_path"), on="path")
    moved = shaped(
        moved.join(gone.select("base_path", *carried, old_type="entity_type", old_id="id"), on="base_path"),
        file=pl.lit("same"),
        entity=pl.lit("same"),
        action=pl.lit("rename"),
        direction=pl.lit("export"),
        reason=pl.format("moved from {}", "base_path"),
    )
    rows = pl.concat([rows.join(moved, left_on="path", right_on="base_path", how="anti"), moved])
    return rows, loose.join(moved, on="path", how="anti")


def _paired(pairs: pl.DataFrame, new: pl.Expr, old: pl.Expr) -> pl.DataFrame:
    """Of several candidates each is taken once; first those whose file kept its name."""
    same_name = new.str.split("/").list.last() == old.str.split("/").list.last()
    pairs = pairs.with_columns(same_name=same_name).sort(
        "same_name", "path", "base_path", descending=[True, False, False]
    )
    taken: list[pl.DataFrame] = []
    while pairs.height:
        # What is first for both sides is settled; the others look again without it.
        settled = pairs.filter(new.is_first_distinct() & old.is_first_distinct())
        taken.append(settled)
        pairs = pairs.join(settled, on="path", how="anti", maintain_order="left")
        pairs = pairs.join(settled, on="base_path", how="anti", maintain_order="left")
    return pl.concat(taken) if taken else pairs


def _placed(folder: Folder, engine: Engine, unfiled: pl.DataFrame) -> pl.DataFrame:
    """Entities without a file, each with the path where it belongs."""
    unfiled = unfiled.sort(KEY).rename({"content_hash": "stored_content", "metadata_hash": "stored_metadata"})
    origins: list[str | None] = [None] * unfiled.height
    for number, piece in enumerate(unfiled.iter_slices(_KEYS)):
        found = engine.directory.origins(piece.select(KEY))
        for position, path in zip(found["position"], found["path"], strict=True):
            origins[number * _KEYS + position] = path
    keys = zip(unfiled["entity_type"], unfiled["id"], origins, strict=True)
    placed = unfiled.with_columns(path=pl.Series([folder.path_of(*key) for key in keys], dtype=pl.String))
    return shaped(placed, file=pl.lit("none"), entity=pl.lit("new"))


def _explained(tree: Tree, rows: pl.DataFrame, walk: Walk) -> pl.DataFrame:
    """A file that was not found is not always gone: it may be unreadable, set aside, or left out by a rule."""
    gone = rows.filter(pl.col("file") == "gone")
    if gone.is_empty():
        return rows
    refused = dict(walk.refused.iter_rows())
    aside = set(walk.quarantined["path"])
    below = tuple(f"{folder}/" for folder in walk.unreadable)
    below_links = tuple(f"{folder}/" for folder in walk.links)
    left_out = dict(walk.left_out.select("path", "reason").iter_rows())
    told = []
    for path in gone["path"]:
        if path.startswith(below) or "" in walk.unreadable:
            told.append((path, "invalid", "its folder cannot be read"))
        elif path in refused:
            told.append((path, "invalid", refused[path]))
        elif path in aside:
            told.append((path, "invalid", f"set aside as {path}.invalid"))
        elif path.startswith(below_links):
            told.append((path, "unchanged", "its folder is a link now, which is not followed"))
        elif path in left_out:
            told.append((path, "unchanged", f"the file is left out now: {left_out[path]}"))
        elif tree.exists(path):
            told.append((path, "unchanged", "the file is left out now, or its folder"))
    if not told:
        return rows
    answers = pl.DataFrame(told, schema=dict.fromkeys(("path", "action_", "reason_"), pl.String), orient="row")
    rows = rows.join(answers, on="path", how="left", maintain_order="left")
    return shaped(rows, action=pl.coalesce("action", "action_"), reason=pl.coalesce("reason", "reason_"))


def _refused(folder: Folder, walk: Walk, rows: pl.DataFrame) -> pl.DataFrame:
    """Names that could be entities and are no regular files."""
    fresh = walk.refused.join(rows, on="path", how="anti")
    return shaped(fresh, file=pl.lit("none"), entity=pl.lit("none"), action=pl.lit("invalid"))


def _told_apart(tree: Tree, rows: pl.DataFrame, looked: bool) -> pl.DataFrame:
    """Paths that are one to a file system that ignores letter case: told, and not taken where this one does."""
    if not looked:
        return rows
    folded = pl.Series("folded", [paths.folded(path) for path in rows["path"]], dtype=pl.String)
    there = (rows["file"] != "gone") & (rows["action"].fill_null("") != "invalid")
    meets = folded.is_duplicated() & there
    if not meets.any():
        return rows
    others = rows.with_columns(folded).filter(meets).group_by("folded").agg(pl.col("path").sort().alias("others"))
    others = others.filter(pl.col("others").list.len() > 1)
    rows = rows.with_columns(folded).join(others, on="folded", how="left", maintain_order="left")
    fresh = pl.col("others").is_not_null() & pl.col("file").is_in(["new", "none"])
    said = pl.format("collision: {} differ only in letter case", pl.col("others").list.join(" and "))
    refuse = pl.lit(tree.ignores_case())
    return shaped(
        rows,
        action=pl.when(fresh & refuse).then(pl.lit("invalid")).otherwise("action"),
        reason=pl.when(fresh).then(said).otherwise("reason"),
    )
