"""Watching a folder: wait until changes have settled, sync, and take no notice of what the sync itself wrote."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from entityframes.errors import DatabaseError, DirectoryError, EntityFramesError
from entityframes.results import SyncResult

#: Seconds within which changes that do not stop coming are synced all the same.
LONGEST = 30.0


class Watcher:
    """Syncs a folder whenever it, or the store, has changed.

    Args:
        root: the folder.
        suffixes: of the files that matter.
        sync: does it once.
        settle: seconds without a change after which a burst of them is over.
        poll: seconds between two looks at the store, which tells nobody that it changed.
    """

    def __init__(
        self, root: Path, suffixes: Iterable[str], sync: Callable[[], SyncResult], settle: float, poll: float
    ) -> None:
        self._root = root
        self._endings = (*(suffix.lower() for suffix in suffixes), ".efignore", ".invalid")
        self._sync = sync
        self._settle = settle
        self._poll = poll
        #: Size and time of change of files as the last sync left them.
        self._own: dict[str, tuple[int, int]] = {}
        self._reported = pl.DataFrame()

    def run(
        self,
        stop: threading.Event,
        on_result: Callable[[SyncResult], None] | None,
        on_error: Callable[[EntityFramesError], None] | None,
    ) -> None:
        """Sync once, and then whenever something changed, until `stop` is set.

        Raises:
            DirectoryError: watchfiles is not installed, or the folder is missing when it begins.
            EntityFramesError: what a sync raised, if there is no `on_error`.
        """
        try:
            import watchfiles
        except ImportError as error:
            raise DirectoryError("watch() needs watchfiles: pip install watchfiles") from error

        changes = watchfiles.watch(
            self._root,
            watch_filter=lambda _, path: path.lower().endswith(self._endings),
            step=int(self._settle * 1000),
            debounce=int(LONGEST * 1000),
            rust_timeout=int(self._poll * 1000),
            yield_on_timeout=True,
            stop_event=stop,
            raise_interrupt=True,
            ignore_permission_denied=True,
        )
        self._once(on_result, on_error)
        for batch in changes:
            if stop.is_set():
                return
            if not batch or any(self._foreign(path) for _, path in batch):
                self._once(on_result, on_error)

    def _once(
        self,
        on_result: Callable[[SyncResult], None] | None,
        on_error: Callable[[EntityFramesError], None] | None,
    ) -> None:
        try:
            result = self._sync()
        except (DirectoryError, DatabaseError) as error:
            if on_error is None:
                raise
            on_error(error)
            return
        done = result.outcomes.filter(pl.col("status") != "unchanged")
        self._own = {path: stat for path in done["path"] if (stat := self._stat(self._root / path)) is not None}
        # A file that stays bad is told once, not at every look.
        shown = done.select("path", "status", "error")
        if on_result is not None and shown.height and not shown.equals(self._reported):
            on_result(result)
        self._reported = shown

    def _foreign(self, path: str) -> bool:
        """Whether a change is not the echo of the last sync."""
        relative = Path(os.path.relpath(path, self._root)).as_posix()
        return relative not in self._own or self._own[relative] != self._stat(Path(path))

    @staticmethod
    def _stat(path: Path) -> tuple[int, int] | None:
        try:
            found = path.lstat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns
