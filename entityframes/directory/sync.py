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
from entityframes.directory.planning import Planner, SyncOptions, reporting_to
from entityframes.directory.run import SyncRun
from entityframes.directory.survey import Folder
from entityframes.directory.tree import Tree
from entityframes.directory.watch import Synced, Watcher
from entityframes.engines.database import check_writable
from entityframes.errors import DatabaseError, DirectoryError, EntityFramesError
from entityframes.frames.utf8 import printable
from entityframes.progress import Progress
from entityframes.results import SyncResult, kept

if TYPE_CHECKING:
    from entityframes.store import EntityStore

SUFFIXES = (".md", ".mdx", ".markdown", ".txt")
MAX_BYTES = 5 << 20
#: Seconds after which the lock on a folder expires; a running sync renews it three times in that time.
LEASE = 60.0


@forks.guarded
class DirectorySync:
    """Keeps a folder of markdown files and the entities of a store in sync.

    The file ``<type>/<id>.md`` is the entity ``(type, id)``; sub-folders are part of the id, and a file in the root has
    the default type. The YAML front matter is the metadata, and the rest is the content, byte for byte. The store
    records the state of each file and entity at the last sync, so that a change on one side is carried over and a
    change on both sides is a conflict.

    Examples:
        >>> from pathlib import Path
        >>> Path("notes").mkdir()
        >>> notes = ef.DirectorySync(store, "notes")
        >>> notes.export_files().counts["exported"]
        3
        >>> written = Path("notes/d.md").write_text("a new note")
        >>> notes.import_files().counts["created"]
        1
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
            root: the folder, which must exist.
            default_type: the type of files in the root itself.
            suffixes: suffixes of the files that are entities, each with its dot. New files get the first one; files
                with other suffixes are ignored.
            ignore: patterns in gitignore syntax, in addition to those in ``.efignore`` files and to names that begin
                with a dot or an underscore, which ``!_*`` includes again. An empty sequence ignores no name. What is
                ignored is listed in ``left_out`` of results and plans.
            max_bytes: the maximum size of a file; larger ones are invalid.
            types: the entity types that belong to the folder; files and entities of other types are ignored. None for
                all types, but then a sync does not create files for a type that has more than 1,000 entities and no
                file in the folder.
            name: the name under which the store knows the folder; None for the name of this machine and the path.
                Give one to a folder that is synced from a container or may be moved.

        Raises:
            DirectoryError: the folder does not exist.
            ValueError: `suffixes` is empty, one has no dot, or one ends in another.
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
        """The folder.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> ef.DirectorySync(store, "notes").root.name
            'notes'
        """
        return self._root

    def plan(
        self,
        *,
        direction: Direction = "both",
        on_conflict: OnConflict = "report",
        delete: bool = False,
        max_delete: int | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> SyncPlan:
        """Compare the folder with the store and report what a sync would do, without writing anything to either.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete: as for these methods.
            progress: as for `import_files`, while files are read.
            cancel: an event that stops it when set.

        Returns:
            SyncPlan: ``frame`` has one row per file and per entity that has or should have one, ordered by path;
            ``apply()`` carries it out.

        Raises:
            DirectoryError: the folder is missing or cannot be read.
            DatabaseError: the database cannot be reached.
            StatementCancelledError: `cancel` was set.
            ValueError: `direction` is unknown.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> ef.DirectorySync(store, "notes").plan().select("path", "action").rows()
            [('note/a.md', 'export'), ('note/b.md', 'export'), ('note/c.md', 'export')]
        """
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(map(repr, get_args(Direction)))}, got {direction!r}")
        options = _options(direction, on_conflict, delete, max_delete)
        stopping = cancel.is_set if cancel is not None else lambda: False
        planner = Planner(self._store._engine, self._folder, options, None, stopping)
        states = planner.plan(reporting_to(progress))

        def apply(
            planned: pl.DataFrame, quarantine: bool, batch_size: int | None, embed: bool, progress: Progress,
            cancel: threading.Event | None,
        ) -> SyncResult:  # fmt: skip
            wanted = replace(options, quarantine=quarantine, batch_size=batch_size, embed=embed)
            return self._run(wanted, progress, cancel, planned)

        return SyncPlan(states.select(*PLAN_SCHEMA), planner.left_out, states, apply)

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
        """Bring files into the store; an entity that differs from its file is updated from the file.

        Files whose size, times and inode have not changed are not read. An entity follows a file that was moved.

        Args:
            delete: whether to delete entities whose file is gone.
            max_delete: the maximum number of deletions; None for a fifth of the files, but at least 1 and at most 100.
                If there are more, all of them are refused, and so they are if the folder holds no files at all.
            quarantine: rename files that cannot be entities to ``<name>.invalid``, and back once they are repaired.
            batch_size, embed: as for `EntityStore.upsert`.
            progress: as for `EntityStore.upsert`, counted in files. Bars and lines also show how many files are found
                before; a callable is not called then.
            cancel: an event that stops the sync when set; the batches in flight are rolled back.

        Returns:
            SyncResult, whose ``outcomes`` have one row per file and per path of the last sync, ordered by path.

        Raises:
            DirectoryError: the folder is missing or cannot be read, or another sync of it is running.
            DatabaseError: the database cannot be reached, or no batch can succeed; PermanentError if the store was
                opened with ``read_only=True``.
            KeyboardInterrupt: on Ctrl-C. `EntityStore.last_result` has the outcomes.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> written = Path("notes/d.md").write_text("a new note")
            >>> ef.DirectorySync(store, "notes").import_files().counts["created"]
            1
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
        """Write entities to files. A file whose entity has not changed is not touched.

        A file is replaced as a whole or not at all, and only if its bytes are still those of the last sync. Front
        matter keeps its bytes as long as it describes the same metadata.

        Args:
            on_conflict: what happens if both the file and its entity were changed: "report" leaves both unchanged,
                "store" overwrites the file and keeps the old one as ``<name>.conflict``.
            delete: whether to delete files whose entity is gone.
            max_delete, progress, cancel: as for `import_files`.

        Returns:
            SyncResult, whose ``outcomes`` have one row per file, per entity that should have one, and per path of the
            last sync, ordered by path.

        Raises:
            DirectoryError: the folder is missing or cannot be read, or another sync of it is running.
            DatabaseError: the database cannot be reached, or no batch can succeed; PermanentError if the store was
                opened with ``read_only=True``.
            ValueError: `on_conflict` is neither "report" nor "store".
            KeyboardInterrupt: on Ctrl-C. `EntityStore.last_result` has the outcomes.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> result = ef.DirectorySync(store, "notes").export_files()
            >>> print(Path("notes/note/a.md").read_text())
            ---
            year: 1843
            ---
            Ada wrote the first program
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
        """Carry changes of either side over to the other.

        Args:
            on_conflict: what happens if both the file and its entity were changed: "report" leaves both unchanged,
                "files" and "store" name the side that wins, "newer" takes the one that was changed last, and an edit
                over a deletion. The losing version is kept as ``<name>.conflict``.
            delete: whether to carry over deletions, in either direction.
            max_delete: as for `import_files`, for each direction.
            quarantine, batch_size, embed, progress, cancel: as for `import_files`.

        Returns:
            SyncResult, whose ``outcomes`` have one row per file, per entity that should have one, and per path of the
            last sync, ordered by path.

        Raises:
            DirectoryError: the folder is missing or cannot be read, or another sync of it is running.
            DatabaseError: the database cannot be reached, or no batch can succeed; PermanentError if the store was
                opened with ``read_only=True``.
            ValueError: `on_conflict` is unknown.
            KeyboardInterrupt: on Ctrl-C. `EntityStore.last_result` has the outcomes.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> written = Path("notes/d.md").write_text("a new note")
            >>> result = ef.DirectorySync(store, "notes").sync()
            >>> result.counts["created"], result.counts["exported"]
            (1, 3)
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
        """Sync now, and again whenever the folder or the store has changed, until `stop` is set or Ctrl-C is pressed.

        A burst of changes leads to one sync, after the last of them. Files that the sync itself writes do not start
        another one. Needs the extra ``[watch]``.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete, quarantine, embed: as for `sync`.
            settle: seconds without a change after which files are considered complete.
            poll: seconds after which the store is checked for changes if no file has changed.
            stop: ends the watch when set, after the sync that is running.
            on_result: called with the SyncResult of each sync that changed something, or that has new failures or
                conflicts; those that persist are not reported again. If a sync ended with an error, the result has
                what was done before.
            on_error: called with the DirectoryError or DatabaseError of a sync, and with any EntityFramesError that
                `on_result` raises; the watch continues. None ends the watch with the error. Other exceptions from
                `on_result` always end it.

        Raises:
            DirectoryError: watchfiles is not installed, the folder is missing, or another sync of it is running.
            DatabaseError: a sync failed and `on_error` is None; PermanentError if the store was opened with
                ``read_only=True``.
            KeyboardInterrupt: on Ctrl-C.

        Examples:
            >>> import threading
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> stop = threading.Event()
            >>> def report(result):
            ...     print(result.counts["exported"])
            ...     stop.set()
            >>> ef.DirectorySync(store, "notes").watch(stop=stop, settle=0.1, on_result=report)
            3
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
        check_writable(self._store._engine.database)
        self._last = None
        run = SyncRun(self._store, self._folder, options, cancel, planned)
        with self._locked() as holder:
            self._last = run
            return kept(self._store, "store", lambda: run.execute(holder, reporting_to(progress)), run.result)

    @contextmanager
    def _locked(self) -> Iterator[str]:
        """Hold the lock on the folder, and renew it in the background; yields the name of the holder."""
        folders, name = self._store._engine.directory, self._folder.name
        holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        other = folders.lock(name, holder, LEASE)
        if other is not None:
            raise DirectoryError(
                f"{self._root} is being synced by {other}",
                advice=f"wait until it has finished; if it was killed, its lock expires within {LEASE:.0f} s",
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
