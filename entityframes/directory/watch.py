"""Watching a folder: wait until changes have settled, sync, and take no notice of what the sync itself wrote."""

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

#: Seconds within which changes that do not stop coming are synced all the same.
LONGEST = 30.0

#: What leaves a file as it is, and may be the same at every look.
_STANDING = ("conflict", "failed", "cancelled", "unknown")


class Synced(NamedTuple):
    """What a sync of a watched folder did, and how it ended."""

    #: None if it did not begin.
    result: SyncResult | None
    #: Size and mark (`Stat.mark`) of the files as it knows them, by path.
    files: dict[str, tuple[int, int]]
    #: What ended it before its end.
    error: EntityFramesError | None


class Watcher:
    """Syncs a folder whenever it, or the store, has changed.

    Args:
        root: the folder.
        suffixes: of the files that matter.
        sync: does it once; DirectoryError and DatabaseError are in what it gives.
        settle: seconds without a change after which a burst of them is over.
        poll: seconds between two looks at the store, which tells nobody that it changed.
    """

    def __init__(
        self, root: Path, suffixes: Iterable[str], sync: Callable[[], Synced], settle: float, poll: float
    ) -> None:
        self._root = root
        self._endings = (*(suffix.lower() for suffix in suffixes), ".efignore", ".invalid")
        self._sync = sync
        self._settle = settle
        self._poll = poll
        #: Files as the last sync left them.
        self._own: dict[str, tuple[int, int]] = {}
        #: What could not be done, as it was reported last.
        self._standing = pl.DataFrame()

    def run(
        self,
        stop: threading.Event,
        on_result: Callable[[SyncResult], None] | None,
        on_error: Callable[[EntityFramesError], None] | None,
    ) -> None:
        """Sync once, and then whenever something changed, until `stop` is set.

        Raises:
            DirectoryError: watchfiles is not installed, or the folder is missing when it begins.
            EntityFramesError: what a sync or `on_result` raised, if there is no `on_error`.
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
            rust_timeout=int(min(self._settle, self._poll) * 1000),
            yield_on_timeout=True,
            stop_event=stop,
            raise_interrupt=True,
            ignore_permission_denied=True,
        )
        open_root(str(self._root)).close()
        # The generator begins to watch when it is first asked. Its first answer comes after that, so that the first
        # sync misses nothing that is saved while it runs.
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
        """Give a result to `on_result`, unless nothing was done and nothing new could not be done."""
        status = pl.col("status")
        rows = result.outcomes.filter(status != "unchanged").select("path", "status", "error")
        standing = rows.filter(status.is_in(_STANDING))
        news = rows.height > standing.height or (standing.height and not standing.equals(self._standing))
        self._standing = standing
        if news and on_result is not None:
            on_result(result)

    def _foreign(self, path: str) -> bool:
        """Whether a change is not the echo of the last sync."""
        relative = Path(os.path.relpath(path, self._root)).as_posix()
        return relative not in self._own or self._own[relative] != self._state(Path(path))

    @staticmethod
    def _state(path: Path) -> tuple[int, int] | None:
        try:
            found = Stat.of(path.lstat())
        except OSError:
            return None
        return found.size, found.mark
