"""What syncing a folder asks of a database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import polars as pl

from entityframes.engines.base import Batch

#: What is known of a file since it was last in step with its entity: where it is, which entity it is, its size in
#: bytes, its mark (a number made of its times and its inode; -1 where it is not to be relied on), the sha256 of its
#: bytes, of the entity's content and of its metadata, and the bytes before the content.
#: The column of the mark is called mtime_ns, which it once was: either is compared and nothing else, so that a
#: version that finds what another one wrote takes the file for changed, and reads it.
FILED = pl.Schema(
    {
        "path": pl.String(),
        "entity_type": pl.String(),
        "id": pl.String(),
        "size": pl.Int64(),
        "mark": pl.Int64(),
        "file_hash": pl.Binary(),
        "content_hash": pl.Binary(),
        "metadata_hash": pl.Binary(),
        "header": pl.Binary(),
    }
)


class DirectoryEngine(Protocol):
    """A database that remembers folders. Every method may raise DatabaseError."""

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        """Take the lock on a folder, or renew it, for `lease` seconds; who else has it, or None if it was taken."""

    def unlock(self, folder: str, holder: str) -> None:
        """Give the lock back, unless somebody else has it by now."""

    def filed(self, folder: str) -> pl.DataFrame:
        """The files of a folder (`FILED` without header), with stored_content and stored_metadata.

        These are the hashes of the entity as it is now, null where there is none; in no particular order.
        """

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        """entity_type, id, content_hash, metadata_hash of entities, of all or some types, that no file is."""

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, path, metadata_hash, header of the file that each key last was, in any folder; none if never."""

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        """Remember files (`FILED`) and forget paths, in one transaction; False, and nothing, without the lock."""

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Give entities another key, in one transaction; what was embedded of them goes with them.

        Args:
            pairs: old_type, old_id, new_type, new_id, all different.

        Returns:
            position of each pair that was renamed: the old key was stored and the new one was not.
        """

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """What `rename` would have returned where its answer was lost, or None if the ledger does not have the batch.

        Raises:
            ConnectionLostError: also where the server that answers is a standby, which may be behind.
        """
