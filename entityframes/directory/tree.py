"""The files under a root: walking, reading, and atomic writes. All access to the synced folder goes through here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from entityframes.directory.handles import TEMPORARY, Folders, RefusalError, Stat, describe_error, shown
from entityframes.directory.ignore import HIDDEN, Rules
from entityframes.directory.walk import Walk, walk
from entityframes.errors import DirectoryError

#: Maximum length of a file name on common file systems, in bytes.
NAME_BYTES = 255


class Read(NamedTuple):
    """The result of reading a file: its bytes, or the reason why it could not be read."""

    path: str
    data: bytes | None = None
    reason: str | None = None
    #: Whether the file no longer exists. Only the next walk shows whether it was deleted or replaced.
    gone: bool = False
    #: sha256 of the bytes.
    digest: bytes | None = None
    #: The state in which the bytes were read.
    stat: Stat | None = None
    #: Whether an equal state implies equal bytes from now on; False if the file changed too recently.
    stable: bool = False


class Write(NamedTuple):
    """A file to write."""

    path: str
    data: bytes
    #: The modification time to set; None for the current time.
    mtime_ns: int | None = None
    #: The sha256 of the bytes of the file to replace; None if there must not be a file at that path.
    expected: bytes | None = None


class Written(NamedTuple):
    """The outcome of a write: the new state of the file, or the reason why it was not written."""

    path: str
    stat: Stat | None = None
    reason: str | None = None
    #: Whether an equal state implies equal bytes after `wait_for_tick`.
    stable: bool = False


class Tree:
    """The files under a root whose names end in one of the suffixes. The methods are thread-safe.

    Links are not followed, except for the root itself.

    Args:
        root: the folder.
        suffixes: the suffixes of the files, with the dot.
        ignore: patterns in gitignore syntax of names to leave out, in addition to names that begin with a dot or an
            underscore; a pattern such as ``!_*`` re-includes those. None for no patterns. An empty sequence leaves out
            nothing, not even names that begin with a dot or an underscore. Files named ``.efignore`` add rules for
            their folder.
        max_bytes: larger files are not read.

    Raises:
        DirectoryError: a pattern is not valid.
    """

    def __init__(
        self, root: str | os.PathLike[str], suffixes: Sequence[str], ignore: Sequence[str] | None, max_bytes: int
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.max_bytes = max_bytes
        self._suffixes = tuple(suffixes)
        self._patterns = tuple(ignore or ())
        self._hidden = HIDDEN if ignore is None or self._patterns else ""
        #: The time when a file was last written or renamed, in nanoseconds since 1970.
        self.wrote_ns = 0
        if self._patterns:
            Rules(self._patterns, hidden=self._hidden)

    def walk(self, advance: Callable[[int], None] = lambda files: None) -> Walk:
        """Find the files, with their sizes and times.

        Args:
            advance: called with the number of further files that were found.

        Returns:
            The files, the paths that are not regular files or could not be read, and temporary files left behind by
            earlier processes.

        Raises:
            DirectoryError: the root is missing, not a folder, or cannot be read; a pattern is not valid.
        """
        return walk(
            self.root, self._suffixes, self._patterns, hidden=self._hidden, rules_bytes=self.max_bytes, advance=advance
        )  # fmt: skip

    def read(self, paths: Sequence[str], cancel: threading.Event | None = None) -> list[Read]:
        """Read and hash files; fastest if the paths are grouped by folder.

        Args:
            paths: paths found by a walk.
            cancel: when set, no more files are read.

        Returns:
            One result per path, in order; fewer if `cancel` was set.

        Raises:
            DirectoryError: the root can no longer be opened.
        """
        found: list[Read] = []
        with Folders(self.root) as folders:
            for path in paths:
                if cancel is not None and cancel.is_set():
                    break
                try:
                    folder, name = folders.find(path)
                    data, state, stable = folder.read(name, self.max_bytes)
                except (OSError, RefusalError) as error:
                    found.append(Read(path, reason=describe_error(error), gone=isinstance(error, FileNotFoundError)))
                else:
                    digest = hashlib.sha256(data).digest()
                    found.append(Read(path, data, digest=digest, stat=state, stable=stable))
        return found

    def write(self, files: Sequence[Write], stopping: Callable[[], bool] = lambda: False) -> list[Written]:
        """Write files, each of them atomically; they are flushed to disk when this returns.

        An existing file is replaced only if its bytes are as expected, and keeps its mode; a new file never overwrites
        another one. Folders are created as needed.

        Args:
            files: the files.
            stopping: returns whether no further file is to be written.

        Returns:
            One result per file, in order, with neither a state nor a reason if the file was not reached.

        Raises:
            DirectoryError: the root cannot be opened.
        """
        done: list[Written] = [Written(file.path) for file in files]
        with Folders(self.root) as folders:
            for number in sorted(range(len(files)), key=lambda number: _folder_of(files[number].path)):
                file = files[number]
                if stopping():
                    break
                try:
                    folder, name = folders.find(file.path, create=file.expected is None)
                    state, stable = folder.put(name, file.data, file.mtime_ns, file.expected)
                    self.wrote_ns = time.time_ns()
                    done[number] = Written(file.path, state, stable=stable)
                except (OSError, RefusalError) as error:
                    done[number] = Written(file.path, reason=describe_error(error))
            touched = {_folder_of(one.path) for one in done if one.stat} | folders.created_in
            unsafe = _sync(folders, touched)
        return [_unsafe(one, unsafe) if one.stat else one for one in done]

    def remove(self, path: str, expected: bytes) -> str | None:
        """Remove a file if its bytes have the expected sha256, and folders that are empty afterwards.

        Returns:
            None, or the reason why the file was not removed.
        """
        with Folders(self.root) as folders:
            try:
                folder, name = folders.find(path)
                folder.remove(name, expected)
            except (OSError, RefusalError) as error:
                return describe_error(error)
            _sync(folders, {_clear(folders, _folder_of(path))})
        return None

    def rename(self, old: str, new: str, expected: bytes) -> str | None:
        """Rename a file if its bytes have the expected sha256 and the new name does not exist.

        Folders are created as needed, and removed if they are empty afterwards.

        Returns:
            None, or the reason why the file was not renamed.
        """
        with Folders(self.root) as source, Folders(self.root) as target:
            try:
                before, name = source.find(old)
                before.check(name, expected)
                after, new_name = target.find(new, create=True)
                before.move(name, after, new_name)
                self.wrote_ns = time.time_ns()
            except (OSError, RefusalError) as error:
                if target.created_in:
                    _clear(target, _folder_of(new))
                return describe_error(error)
            _sync(target, {_folder_of(new), _clear(source, _folder_of(old))} | target.created_in)
        return None

    def set_aside(self, path: str, data: bytes, ending: str = ".conflict") -> str:
        """Save bytes next to a file, under its name with an ending, and a number if that name has other bytes.

        Returns:
            The path of the saved bytes, which may have existed before.

        Raises:
            DirectoryError: they could not be written. The caller must not overwrite the only other copy of them.
        """
        folder, slash, name = path.rpartition("/")
        stem = name.encode()[: NAME_BYTES - len(ending) - 8].decode("utf-8", "ignore")
        for number in range(10_000):
            target = f"{folder}{slash}{stem}{f'.{number}' if number else ''}{ending}"
            written = self.write([Write(target, data)])[0]
            if written.stat is not None or self._holds(target, data):
                return target
            if not self._taken(target):
                break
        raise DirectoryError(f"{shown(path)}{ending} could not be written: {written.reason}; nothing was overwritten")

    def _holds(self, path: str, data: bytes) -> bool:
        with Folders(self.root) as folders:
            try:
                folder, name = folders.find(path)
                return folder.read(name, len(data))[0] == data
            except (OSError, RefusalError):
                return False

    def _taken(self, path: str) -> bool:
        with Folders(self.root) as folders:
            try:
                folder, name = folders.find(path)
                return folder.has(name)
            except (OSError, RefusalError):
                return False

    def exists(self, path: str) -> bool:
        """Whether a path exists, even if a walk leaves it out."""
        return self._taken(path)

    def ignores_case(self) -> bool:
        """Whether the file system treats names that differ only in letter case as the same."""
        probe = f".ef-{secrets.token_hex(8)}.tmp"
        with Folders(self.root) as folders:
            root = folders.open("")
            try:
                root.put(probe, b"", None, None)
            except (OSError, RefusalError):
                return False
            try:
                return root.has(probe.upper())
            finally:
                root.unlink(probe)

    @property
    def skipped(self) -> str:
        """First characters of names that are left out unless a pattern re-includes them."""
        return self._hidden

    def clean(self, temporary: Sequence[str], older_than: float = 3600.0) -> int:
        """Remove temporary files left behind by killed processes.

        Args:
            temporary: the temporary files found by a walk.
            older_than: minimum age in seconds; newer files may still be being written.

        Returns:
            The number of files removed.
        """
        removed = 0
        with Folders(self.root) as folders:
            for path in temporary:
                with contextlib.suppress(OSError, RefusalError):
                    folder, name = folders.find(path)
                    # The mtime may already have been set.
                    if TEMPORARY.fullmatch(name) and time.time() - folder.stat(name).st_ctime >= older_than:
                        folder.unlink(name)
                        removed += 1
        return removed


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _clear(folders: Folders, folder: str) -> str:
    """Remove a folder and its parents as long as they are empty; returns the first folder that is kept."""
    while folder:
        above, _, name = folder.rpartition("/")
        try:
            folders.open(above).remove_folder(name)
        except (OSError, RefusalError):
            return folder
        folder = above
    return ""


def _sync(folders: Folders, touched: set[str]) -> dict[str, str]:
    """Flush the names in folders to disk, so that they survive a power failure; returns the failures by folder."""
    unsafe = {}
    for folder in sorted(touched):
        try:
            folders.open(folder).sync()
        except (OSError, RefusalError) as error:
            unsafe[folder] = describe_error(error)
    return unsafe


def _unsafe(one: Written, unsafe: dict[str, str]) -> Written:
    reason = unsafe.get(_folder_of(one.path))
    return one if reason is None else Written(one.path, reason=f"may be lost in a power failure: {reason}")
