"""Watching a folder: wait until a burst of changes is over, sync, and ignore the writes of the sync itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from entityframes.directory.handles import Stat, open_root
from entityframes.errors import DirectoryError, EntityFramesError
from entityframes.results import SyncResult

#: Maximum seconds until a sync while changes keep arriving.
LONGEST = 30.0

#: Statuses that leave a file unchanged, and may be the same after every sync.
_STANDING = ("conflict", "failed", "cancelled", "unknown")


class Synced(NamedTuple):
    """The result of one sync of a watched folder, and how it ended."""

    #: None if the sync did not start.
    result: SyncResult | None
    #: Size and mark (`Stat.mark`) of the files that are in sync, by path.
    files: dict[str, tuple[int, int]]
    #: The error that ended the sync early, or None.
    error: EntityFramesError | None


class Watcher:
    """Syncs a folder whenever the folder or the store has changed.

    Args:
        root: the folder.
        suffixes: the suffixes of the files to watch.
        sync: runs one sync; returns DirectoryError and DatabaseError in its result.
        settle: seconds without a change after which a burst of changes is over.
        poll: seconds between two syncs without a change in the folder; the store does not notify of changes.
    """

    def __init__(
        self, root: Path, suffixes: Iterable[str], sync: Callable[[], Synced], settle: float, poll: float
    ) -> None:
        self._root = root
        self._endings = (*(suffix.lower() for suffix in suffixes), ".efignore", ".invalid")
        self._sync = sync
        self._quiet = settle
        self._poll = poll
        #: The files as the last sync left them.
        self._own: dict[str, tuple[int, int]] = {}
        #: The rows that could not be synced, as last reported.
        self._standing = pl.DataFrame()

    def run(
        self,
        stop: threading.Event,
        on_result: Callable[[SyncResult], None] | None,
        on_error: Callable[[EntityFramesError], None] | None,
    ) -> None:
        """Sync once, and then after every change, until `stop` is set.

        Raises:
            DirectoryError: watchfiles is not installed, or the folder is missing at the start.
            EntityFramesError: raised by a sync or by `on_result`, if `on_error` is None.
        """
        try:
            import watchfiles
        except ImportError as error:
            raise DirectoryError("watch() needs watchfiles", advice="pip install watchfiles") from error

        changes = watchfiles.watch(
            self._root,
            watch_filter=lambda _, path: path.lower().endswith(self._endings),
            step=int(self._quiet * 1000),
            debounce=int(LONGEST * 1000),
            rust_timeout=int(min(self._quiet, self._poll) * 1000),
            yield_on_timeout=True,
            stop_event=stop,
            raise_interrupt=True,
            ignore_permission_denied=True,
        )
        open_root(str(self._root)).close()
        # The generator starts watching at the first call of next(). The first sync runs after that, so that changes
        # made during the sync are not missed.
        due = 0.0
        for batch in changes:
            if stop.is_set():
                return
            if time.monotonic() >= due or any(self._foreign(path) for _, path in batch):
                self._once(on_result, on_error)
                due = time.monotonic() + self._poll

    def _once(
        self,
        on_result: Callable[[SyncResult], None] | None,
        on_error: Callable[[EntityFramesError], None] | None,
    ) -> None:
        synced = self._sync()
        self._own = synced.files
        try:
            if synced.result is not None:
                self._report(synced.result, on_result)
        except EntityFramesError as error:
            if on_error is None:
                raise
            on_error(error)
        if synced.error is not None:
            if on_error is None:
                raise synced.error
            on_error(synced.error)

    def _report(self, result: SyncResult, on_result: Callable[[SyncResult], None] | None) -> None:
        """Pass a result to `on_result`, unless nothing was done and the rows that could not be synced are the same."""
        status = pl.col("status")
        rows = result.outcomes.filter(status != "unchanged").select("path", "status", "error")
        standing = rows.filter(status.is_in(_STANDING))
        report = rows.height > standing.height or (standing.height and not standing.equals(self._standing))
        self._standing = standing
        if report and on_result is not None:
            on_result(result)

    def _foreign(self, path: str) -> bool:
        """Whether a change was not made by the last sync."""
        relative = Path(os.path.relpath(path, self._root)).as_posix()
        return relative not in self._own or self._own[relative] != self._state(Path(path))

    @staticmethod
    def _state(path: Path) -> tuple[int, int] | None:
        try:
            found = Stat.of(path.lstat())
        except OSError:
            return None
        return found.size, found.mark
