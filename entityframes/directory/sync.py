"""DirectorySync: keeps a folder of markdown files and a store in sync."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import polars as pl

from entityframes import forks
from entityframes.directory.plan import PLAN_SCHEMA, Direction, OnConflict, SyncPlan
from entityframes.directory.run import SyncOptions, SyncRun
from entityframes.directory.survey import Folder
from entityframes.directory.tree import Tree
from entityframes.directory.watch import Synced, Watcher
from entityframes.engines.base import check_writable
from entityframes.errors import DatabaseError, DirectoryError, EntityFramesError
from entityframes.frames.utf8 import printable
from entityframes.progress import Progress, Reporter
from entityframes.results import SyncResult

if TYPE_CHECKING:
    from entityframes.store import EntityStore

SUFFIXES = (".md", ".mdx", ".markdown", ".txt")
MAX_BYTES = 5 << 20
#: Seconds after which the lock on a folder expires; a running sync renews it three times in that time.
LEASE = 60.0


@forks.guarded
class DirectorySync:
    """Synchronizes a folder of markdown files with the entities of a store.

    A file ``<type>/<id>.md`` is the entity ``(type, id)``; subfolders are part of the id, and a file in the root has
    the default type. The YAML front matter is the metadata, and the rest is the content, byte for byte. The store
    records the state of each file and entity at the last sync, so that a change on one side is applied to the other,
    and a change on both sides is a conflict.
    """

    def __init__(
        self,
        store: EntityStore,
        root: str | os.PathLike[str],
        *,
        default_type: str = "note",
        suffixes: Sequence[str] = SUFFIXES,
        ignore: Sequence[str] | None = None,
        max_bytes: int = MAX_BYTES,
        types: Iterable[str] | None = None,
        name: str | None = None,
    ) -> None:
        """Create a sync; nothing is read or written yet.

        Args:
            store: the store with the entities.
            root: the folder. It must exist.
            default_type: the type of files in the root itself.
            suffixes: the suffixes of files that are entities; new files get the first one. Files with other suffixes
                are left out.
            ignore: patterns in gitignore syntax of names to leave out, in addition to names that begin with a dot or an
                underscore; ``!_*`` re-includes the latter, and an empty sequence includes every name. ``.efignore``
                files are respected as well. What is left out is listed in ``left_out`` of a result and of a plan.
            max_bytes: maximum size of a file; larger files are invalid.
            types: the entity types that belong to the folder; None for all, but then a sync does not export more than
                1,000 entities of a type without any file in the folder. Files and entities of other types are ignored.
            name: the name under which the store records the folder; None for the host name and the path. Give one to a
                folder that is synced from a container or may move.

        Raises:
            ValueError: `suffixes` is not a non-empty sequence of suffixes with a dot, or one ends in another.
            DirectoryError: a pattern in `ignore` is not valid.
        """
        forks.check()
        _check_suffixes(suffixes)
        self._store = store
        self._root = Path(root)
        self._tree = Tree(root, suffixes, ignore, max_bytes)
        known_as = name or printable(f"{socket.gethostname()}:{os.path.realpath(root)}")
        owned = None if types is None else frozenset(types)
        self._folder = Folder(known_as, self._tree, default_type, tuple(suffixes), owned)
        #: The last sync, if it started.
        self._last: SyncRun | None = None

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def plan(
        self,
        *,
        direction: Direction = "both",
        on_conflict: OnConflict = "report",
        delete: bool = False,
        max_delete: int | None = None,
    ) -> SyncPlan:
        """Show what a sync would do, without writing to the store or the folder.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete: as for these methods.

        Returns:
            SyncPlan, with ``frame`` (a row for each file, and for each entity that has or should have a file),
            ``counts``, ``left_out``, ``summary()``, and ``apply()``, which applies exactly this plan.

        Raises:
            ValueError: `direction` is not one of these.
            DirectoryError: the folder is missing or cannot be read.
        """
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(map(repr, get_args(Direction)))}, got {direction!r}")
        options = _options(direction, on_conflict, delete, max_delete)
        run = SyncRun(self._store, self._folder, options)
        states = run.plan()

        def apply(
            planned: pl.DataFrame, quarantine: bool, batch_size: int | None, embed: bool, progress: Progress,
            cancel: threading.Event | None,
        ) -> SyncResult:  # fmt: skip
            wanted = replace(options, quarantine=quarantine, batch_size=batch_size, embed=embed)
            return self._run(wanted, progress, cancel, planned)

        return SyncPlan(states.select(*PLAN_SCHEMA), run.result().left_out, states, apply)

    def import_files(
        self,
        *,
        delete: bool = False,
        max_delete: int | None = None,
        quarantine: bool = False,
        batch_size: int | None = None,
        embed: bool = True,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> SyncResult:
        """Import the files into the store; an entity that differs from its file is overwritten.

        Files whose size, times and inode are unchanged are not read. If a file was moved, its entity is renamed.

        Args:
            delete: whether to delete an entity whose file is gone.
            max_delete: maximum number of deletions; None for a fifth of the files, at least 1 and at most 100. If there
                are more, all deletions are refused. If the folder contains no files at all, every deletion is refused.
            quarantine: rename files that cannot be entities to ``<name>.invalid``, and back once they are repaired.
            batch_size, embed: as for `EntityStore.upsert`.
            progress: None shows a bar in a notebook or terminal; True, False, or a callable(done, total).
            cancel: an event that stops the sync when set; the current batch is rolled back.

        Returns:
            SyncResult, whose ``outcomes`` have one row for each file and each path recorded at the last sync.

        Raises:
            DirectoryError: the folder is missing or cannot be read, or is being synced by another process.
            DatabaseError: the database cannot be reached, or no batch could succeed.
            KeyboardInterrupt: on Ctrl-C; `EntityStore.last_result` has the outcomes up to then.
        """
        options = SyncOptions("import", "report", delete, max_delete, quarantine, batch_size, embed)
        return self._run(options, progress, cancel)

    def export_files(
        self,
        *,
        on_conflict: OnConflict = "report",
        delete: bool = False,
        max_delete: int | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> SyncResult:
        """Export the entities to the folder. A file whose entity has not changed is not touched.

        A file is replaced atomically, and only if its bytes have not changed since the last sync. Front matter that
        still matches the metadata keeps its bytes.

        Args:
            on_conflict: what to do if a file was edited and its entity was changed: "report" leaves both unchanged,
                "store" overwrites the file and saves the old one next to it as ``<name>.conflict``.
            delete: whether to delete a file whose entity is gone.
            max_delete, progress, cancel: as for `import_files`.

        Returns, Raises: as `import_files`; ValueError: `on_conflict` is not one of these.
        """
        if on_conflict not in ("report", "store"):
            raise ValueError(f"on_conflict must be 'report' or 'store' for an export, got {on_conflict!r}")
        return self._run(_options("export", on_conflict, delete, max_delete), progress, cancel)

    def sync(
        self,
        *,
        on_conflict: OnConflict = "report",
        delete: bool = False,
        max_delete: int | None = None,
        quarantine: bool = False,
        batch_size: int | None = None,
        embed: bool = True,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> SyncResult:
        """Apply the changes of each side to the other.

        Args:
            on_conflict: what to do if a file and its entity both changed: "report" leaves both unchanged, "files" and
                "store" let that side win, "newer" lets the last change win, and an edit win over a deletion. The losing
                version is saved next to the file as ``<name>.conflict``.
            delete: whether deletions are applied, in both directions.
            max_delete, quarantine, batch_size, embed, progress, cancel: as for `import_files`.

        Returns, Raises: as `import_files`; ValueError: `on_conflict` is not one of these.
        """
        if on_conflict not in get_args(OnConflict):
            allowed = ", ".join(map(repr, get_args(OnConflict)))
            raise ValueError(f"on_conflict must be one of {allowed}, got {on_conflict!r}")
        options = SyncOptions("both", on_conflict, delete, max_delete, quarantine, batch_size, embed)
        return self._run(options, progress, cancel)

    def watch(
        self,
        *,
        direction: Direction = "both",
        on_conflict: OnConflict = "report",
        delete: bool = False,
        max_delete: int | None = None,
        quarantine: bool = False,
        embed: bool = True,
        settle: float = 0.5,
        poll: float = 10.0,
        stop: threading.Event | None = None,
        on_result: Callable[[SyncResult], None] | None = None,
        on_error: Callable[[EntityFramesError], None] | None = None,
    ) -> None:
        """Sync now, and then whenever the folder or the store has changed, until `stop` is set or Ctrl-C is pressed.

        A burst of changes triggers one sync, after the last change; the writes of the sync itself trigger none.
        Requires the extra ``[watch]``.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete, quarantine, embed: as for `sync`.
            settle: seconds without a change after which files are assumed to be completely written.
            poll: seconds after which the store is checked for changes if no file has changed.
            stop: ends the watch when set, after the current sync.
            on_result: called with the result of each sync that changed something, or that failed to sync some rows.
                Failures that persist (an invalid file, a conflict) are reported only once. If a sync ends with an
                error, it is called with the result up to then.
            on_error: called with the DirectoryError or DatabaseError of a sync, and with every EntityFramesError raised
                by `on_result`, such as an error of an embedder; the watch then continues. If it is None, the error ends
                the watch. Any other exception raised by `on_result` ends it, too.

        Raises:
            DirectoryError: watchfiles is not installed, the folder is missing, or is being synced by another process.
            KeyboardInterrupt: on Ctrl-C.
        """
        options = SyncOptions(direction, on_conflict, delete, max_delete, quarantine, None, embed)
        watcher = Watcher(self._root, self._folder.suffixes, lambda: self._sync_once(options), settle, poll)
        watcher.run(stop or threading.Event(), on_result, on_error)

    def _sync_once(self, options: SyncOptions) -> Synced:
        """One sync of a watch."""
        self._last = None
        error = None
        try:
            self._run(options, False, None)
        except (DirectoryError, DatabaseError) as raised:
            error = raised
        if self._last is None:
            return Synced(None, {}, error)
        return Synced(self._last.result(), self._last.files(), error)

    def _run(
        self,
        options: SyncOptions,
        progress: Progress,
        cancel: threading.Event | None,
        planned: pl.DataFrame | None = None,
    ) -> SyncResult:
        check_writable(self._store._engine)
        self._last = None
        run = SyncRun(self._store, self._folder, options, cancel, planned)

        def reporting(rows: int) -> Reporter:
            return Reporter(progress, rows, unit="files", delay=0.5)

        with self._locked() as holder:
            self._last = run
            try:
                return run.execute(holder, reporting)
            finally:
                self._store.last_result = run.result()

    @contextmanager
    def _locked(self) -> Iterator[str]:
        """Hold the lock on the folder, and renew it in the background; yields the name of the holder."""
        folders, name = self._store._engine.directory, self._folder.name
        holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        other = folders.lock(name, holder, LEASE)
        if other is not None:
            raise DirectoryError(
                f"{self._root} is being synced by {other}: wait until it has finished; if it was killed, its lock "
                f"expires within {LEASE:.0f} s"
            )
        done = threading.Event()
        heartbeat = threading.Thread(
            target=_renew_lock, args=(lambda: folders.lock(name, holder, LEASE), done), daemon=True
        )
        heartbeat.start()
        try:
            yield holder
        finally:
            done.set()
            heartbeat.join()
            folders.unlock(name, holder)

    def __repr__(self) -> str:
        return f"DirectorySync({self._store.address!r}, {str(self._root)!r})"


def _check_suffixes(suffixes: Sequence[str]) -> None:
    """Check that a path has exactly one suffix, whatever its id ends in.

    Raises:
        ValueError: there are no suffixes, one does not begin with a dot, or one ends in another.
    """
    lower = [suffix.lower() for suffix in suffixes]
    if isinstance(suffixes, str) or not lower or not all(suffix.startswith(".") and suffix[1:] for suffix in lower):
        raise ValueError(f"suffixes must be a non-empty sequence such as ('.md', '.txt'), got {suffixes!r}")
    for suffix in lower:
        for other in lower:
            if other != suffix and other.endswith(suffix):
                raise ValueError(f"the suffix {other!r} ends in {suffix!r}: ids would be ambiguous")


def _options(direction: Direction, on_conflict: OnConflict, delete: bool, max_delete: int | None) -> SyncOptions:
    return SyncOptions(direction, on_conflict, delete, max_delete)


def _renew_lock(renew: Callable[[], str | None], done: threading.Event) -> None:
    while not done.wait(LEASE / 3):
        try:
            if renew() is not None:
                return
        except DatabaseError:
            # Try again at the next interval; if that fails, too, the lock expires and the state is not recorded.
            continue
