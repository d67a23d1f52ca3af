"""The database operations for syncing folders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import polars as pl

from entityframes.engines.batch import Batch

#: The state of a file when it was last in sync with its entity: its path, the key of the entity, its size in bytes, its
#: mark (a number derived from its timestamps and inode; -1 if unreliable), the SHA-256 of its bytes, of the content of
#: the entity and of its metadata, and the bytes before the content.
#: In the database the mark is in the column mtime_ns, which earlier versions filled with the modification time. Marks
#: are only compared for equality, so a version that finds the mark of another one treats the file as changed, and reads
#: it.
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
    """A database that stores the state of synced folders. Every method may raise DatabaseError."""

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        """Acquire or renew the lock on a folder for `lease` seconds; returns None, or the current holder on failure."""

    def unlock(self, folder: str, holder: str) -> None:
        """Release the lock, unless another process has acquired it since."""

    def filed(self, folder: str) -> pl.DataFrame:
        """The files of a folder (`FILED` without header), with stored_content and stored_metadata.

        These are the current hashes of the entity, null if it does not exist. The order is undefined.
        """

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        """entity_type, id, content_hash, metadata_hash of entities without a file in the folder; None for all types."""

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, path, metadata_hash, header of the latest file of each key that had one, in any folder."""

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        """Save the state of files (`FILED`) and delete paths, in one transaction; False if the lock is not held."""

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Change the keys of entities, in one transaction; their vectors keep belonging to them.

        Args:
            pairs: old_type, old_id, new_type, new_id, all different.
            batch: the batch.

        Returns:
            position of each pair that was renamed: the old key was stored and the new one was not.
        """

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """The result of `rename` for a batch whose response was lost, or None if the batch is not in the ledger.

        Raises:
            ConnectionLostError: the connection was lost again, or the server is a standby, which may be behind.
        """
