"""DirectorySync: a folder of markdown and a store, kept in step."""

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
#: Seconds for which a sync holds its folder without being heard of; it renews the lease three times as often.
LEASE = 60.0


@forks.guarded
class DirectorySync:
    """A folder whose files are entities, and the other way round.

    A file ``<type>/<id>.md`` is the entity ``(type, id)``; sub-folders are part of the id, and a file in the root is of
    the default type. The YAML front matter is the metadata, the rest the content, byte for byte. What each file and
    entity were when they were last in step is kept in the store, so that a change on one side travels and a change on
    both is a conflict.
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
        """Nothing is read or written yet.

        Args:
            store: where the entities are.
            root: the folder. It has to exist.
            default_type: the type of files in the root itself.
            suffixes: of the files that are entities; the first one is that of new files, others are left alone.
            ignore: patterns in the syntax of gitignore, in addition to names that begin with a dot or an underscore,
                which ``!_*`` takes back in; an empty sequence takes in every name. ``.efignore`` files count too. What
                is left out is in ``left_out`` of a result and of a plan.
            max_bytes: of a file; larger ones are invalid.
            types: the entity types that belong to the folder; None for all, but then a sync does not make files of
                more than 1,000 entities of a type that the folder has nothing of. Files and entities of other types
                are not looked at.
            name: what the store knows the folder by; None for the name of this machine and the path. Give one to a
                folder that is synced from a container or may move.
        """
        forks.check()
        _check_suffixes(suffixes)
        self._store = store
        self._root = Path(root)
        self._tree = Tree(root, suffixes, ignore, max_bytes)
        known_as = name or printable(f"{socket.gethostname()}:{os.path.realpath(root)}")
        owned = None if types is None else frozenset(types)
        self._folder = Folder(known_as, self._tree, default_type, tuple(suffixes), owned)
        #: The sync that was run last, if it came to begin.
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
        """What a sync would do; nothing is written, in the store or in the folder.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete: as for these.

        Returns:
            SyncPlan, with ``frame`` (a row for each file and each entity that is or should be one), ``counts``,
            ``left_out``, ``summary()`` and ``apply()``, which does just that.

        Raises:
            DirectoryError: the folder is missing or cannot be read.
        """
        if direction not in get_args(Direction):
            raise ValueError(f"direction is {direction!r}: it is {', '.join(map(repr, get_args(Direction)))}")
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
        """Bring the files into the store; an entity that differs from its file becomes what the file is.

        Files whose size, times and inode are as they were are not read. A file that moved takes its entity along.

        Args:
            delete: whether an entity whose file is gone is deleted.
            max_delete: how many deletions may travel; None for a fifth of the files, at most 100, at least one. More
                are refused, and so is every one while the folder holds no file at all.
            quarantine: rename files that can be no entities to ``<name>.invalid``, and back when they are repaired.
            batch_size, embed: as for `EntityStore.upsert`.
            progress: None shows a bar in a notebook or terminal, True, False, or a callable(done, total).
            cancel: an event that stops the sync when set; what is in flight is rolled back.

        Returns:
            SyncResult, whose ``outcomes`` have one row for each file and each path that was remembered.

        Raises:
            DirectoryError: the folder is missing or cannot be read, or another sync is at work on it.
            DatabaseError: the database cannot be reached, or no batch could succeed.
            KeyboardInterrupt: on Ctrl-C; `EntityStore.last_result` holds what was done.
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
        """Bring the entities into the folder. A file whose entity did not change is not touched.

        A file is replaced as a whole or not at all, and only if its bytes still are what they were when last in step.
        A front matter keeps its bytes while the metadata is what it says.

        Args:
            on_conflict: what becomes of a file that was edited and whose entity was changed: "report" leaves both
                alone, "store" overwrites the file and keeps the old one beside it as ``<name>.conflict``.
            delete: whether a file whose entity is gone is deleted.
            max_delete, progress, cancel: as for `import_files`.

        Returns, Raises: as `import_files`.
        """
        if on_conflict not in ("report", "store"):
            raise ValueError(f"on_conflict is {on_conflict!r}: an export can 'report' or let the 'store' win")
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
        """Bring changes of either side to the other.

        Args:
            on_conflict: what becomes of a file and an entity that both changed: "report" leaves both alone, "files"
                and "store" say who wins, "newer" takes the one that was changed last, and of a deletion and an edit the
                edit. The other one is kept beside the file as ``<name>.conflict``.
            delete: whether deletions travel, in either direction.
            max_delete, quarantine, batch_size, embed, progress, cancel: as for `import_files`.

        Returns, Raises: as `import_files`.
        """
        if on_conflict not in get_args(OnConflict):
            raise ValueError(f"on_conflict is {on_conflict!r}: it is {', '.join(map(repr, get_args(OnConflict)))}")
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
        """Sync now, and then whenever the folder or the store changed, until `stop` is set or Ctrl-C.

        A burst of changes is one sync, after the last of them; what the sync itself writes starts none. Needs the
        extra ``[watch]``.

        Args:
            direction: "both" for `sync`, "import" for `import_files`, "export" for `export_files`.
            on_conflict, delete, max_delete, quarantine, embed: as for `sync`.
            settle: seconds without a change after which files are taken to be written.
            poll: seconds after which the store is looked at where no file has changed.
            stop: ends the watch when set, after the sync that is at work.
            on_result: gets the result of each sync that did something, once, and of one that could not do something for
                the first time: what stays as it is (a bad file, a conflict) is not reported at every look. A sync that
                was ended by an error gives what it had done by then.
            on_error: gets the DirectoryError or DatabaseError of a sync, and every EntityFramesError that `on_result`
                raises, such as that of an embedder; the watch goes on. None ends the watch with the error. Anything
                else that `on_result` raises ends it.

        Raises:
            DirectoryError: watchfiles is not installed, the folder is missing, or it is synced by another.
            KeyboardInterrupt: on Ctrl-C.
        """
        options = SyncOptions(direction, on_conflict, delete, max_delete, quarantine, None, embed)
        watcher = Watcher(self._root, self._folder.suffixes, lambda: self._watched(options), settle, poll)
        watcher.run(stop or threading.Event(), on_result, on_error)

    def _watched(self, options: SyncOptions) -> Synced:
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
        """Keep other syncs off the folder; the lease is renewed while this one lives."""
        folders, name = self._store._engine.directory, self._folder.name
        holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        other = folders.lock(name, holder, LEASE)
        if other is not None:
            raise DirectoryError(
                f"{self._root} is being synced by {other}: wait for it; if it died, its hold ends within {LEASE:.0f} s"
            )
        done = threading.Event()
        heart = threading.Thread(target=_beat, args=(lambda: folders.lock(name, holder, LEASE), done), daemon=True)
        heart.start()
        try:
            yield holder
        finally:
            done.set()
            heart.join()
            folders.unlock(name, holder)

    def __repr__(self) -> str:
        return f"DirectorySync({self._store.address!r}, {str(self._root)!r})"


def _check_suffixes(suffixes: Sequence[str]) -> None:
    """A file has one suffix, whatever its id ends in.

    Raises:
        ValueError: there is none, one has no dot, or one ends in another.
    """
    lower = [suffix.lower() for suffix in suffixes]
    if isinstance(suffixes, str) or not lower or not all(suffix.startswith(".") and suffix[1:] for suffix in lower):
        raise ValueError(f"suffixes is {suffixes!r}: it is a sequence such as ('.md', '.txt')")
    for suffix in lower:
        for other in lower:
            if other != suffix and other.endswith(suffix):
                raise ValueError(f"the suffix {other!r} ends in {suffix!r}: ids could not be told from suffixes")


def _options(direction: Direction, on_conflict: OnConflict, delete: bool, max_delete: int | None) -> SyncOptions:
    return SyncOptions(direction, on_conflict, delete, max_delete)


def _beat(renew: Callable[[], str | None], done: threading.Event) -> None:
    while not done.wait(LEASE / 3):
        try:
            if renew() is not None:
                return
        except DatabaseError:
            # Perhaps the next time; if not, the lease ends, and what was done is not recorded.
            continue
