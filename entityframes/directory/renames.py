"""Renames: an entity gets the key of its file's new path, or a file gets the path of its entity's new key."""

from __future__ import annotations

import time

import polars as pl

from entityframes.directory.account import Account
from entityframes.directory.tree import Tree
from entityframes.engines.base import Engine
from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError
from entityframes.frames.schema import KEY, numbered
from entityframes.metadata.fields import Fields
from entityframes.retry import CommitUnknownError, Transaction
from entityframes.writing.entities.validation import validate
from entityframes.writing.options import Options

_OLD_KEY = {"entity_type": pl.col("old_type"), "id": pl.col("old_id")}


def rename(engine: Engine, tree: Tree, rows: pl.DataFrame, batch: Batch, account: Account) -> None:
    """Rename the entities or the files of rows with that action, and log the outcomes.

    Entities are renamed in one transaction; they keep their vectors, created_at and jobs.

    Raises:
        DatabaseError: the database rejected the renames, or cannot be reached.
    """
    if rows.is_empty():
        return
    origins = engine.directory.origins(rows.select(**_OLD_KEY))
    # Another folder may have synced the entity last, with other metadata: then its front matter is rewritten at the
    # next export.
    origins = origins.filter(origins["metadata_hash"] == rows["base_metadata"].gather(origins["position"]))
    header = pl.Series("header", [b""] * rows.height, dtype=pl.Binary).scatter(origins["position"], origins["header"])
    rows = rows.with_columns(
        header,
        stable=pl.lit(True),
        now_hash="base_hash",
        now_content="base_content",
        now_metadata="base_metadata",
    )
    _rename_entities(engine, rows.filter(pl.col("direction") == "import"), batch, account)
    for piece in rows.filter(pl.col("direction") == "export").iter_slices(1):
        row = piece.row(0, named=True)
        error = tree.rename(row["base_path"], row["path"], row["base_hash"])
        account.log(piece, "failed" if error else "renamed", error_kind="file" if error else None, error=error)
        if error is None:
            account.remember(_current_state(tree, piece))


def _current_state(tree: Tree, renamed: pl.DataFrame) -> pl.DataFrame:
    """A renamed file with its current state; the state is not stable if its bytes have changed meanwhile."""
    (read,) = tree.read(renamed["path"].to_list())
    if read.stat is None or read.digest != renamed["base_hash"].item():
        return renamed.with_columns(stable=pl.lit(False))
    stable = read.stat.written_before(time.time_ns()) and not read.stat.coarse
    return renamed.with_columns(mark=pl.lit(read.stat.mark), stable=pl.lit(stable))


def _rename_entities(engine: Engine, rows: pl.DataFrame, batch: Batch, account: Account) -> None:
    rows = _validate_type_changes(engine, rows, account)
    if rows.is_empty():
        return
    pairs = rows.select("old_type", "old_id", new_type="entity_type", new_id="id")

    def recovered(lost: ConnectionLostError, answer: pl.DataFrame | None) -> pl.DataFrame | None:
        if answer is not None and answer.height == pairs.height:
            return None
        return engine.directory.renamed_by(pairs, batch)

    what = f"run {batch.run_id}, renames in batch {batch.batch_id}"
    transaction: Transaction[pl.DataFrame] = Transaction(what, recovered, batch.interrupt)
    try:
        found = transaction.run(lambda: engine.directory.rename(pairs, batch))
    except CommitUnknownError as error:
        account.log(rows, "unknown", error_kind=error.kind, error=str(error))
        raise
    account.batches += 1
    renamed = found["position"].cast(pl.Int64)
    moved = pl.int_range(rows.height).is_in(renamed.implode())
    account.log(rows.filter(moved), "renamed", batch_id=batch.batch_id)
    account.remember(rows.filter(moved))
    account.log(rows.filter(~moved), "conflict", error="changed during the sync: sync again")


def _validate_type_changes(engine: Engine, rows: pl.DataFrame, account: Account) -> pl.DataFrame:
    """The rows whose entities fit the metadata fields of their new type; the others are logged as failed."""
    across = rows.filter(pl.col("old_type") != pl.col("entity_type"))
    if across.is_empty():
        return rows
    found = engine.lookup(across.select(**_OLD_KEY))
    across = across[found["position"]]
    chunk = numbered(across.select(*KEY, content=pl.lit(""))).with_columns(found["metadata"])
    fields = Fields(engine)
    valid = validate(chunk, fields, Options(absent="clear"))
    bad = across[valid.invalid["row"]].with_columns(valid.invalid["error"].alias("reason"))
    account.log(bad, "failed", error_kind="validation", error=pl.col("reason"))
    fields.infer(valid.inferred)
    return rows.join(bad, on="row", how="anti", maintain_order="left")
