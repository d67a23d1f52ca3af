"""The files under a root: walking, reading, and writing them whole. Nothing else touches the file system there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from entityframes.directory.handles import TEMPORARY, Folders, RefusalError, Stat, shown, words
from entityframes.directory.ignore import HIDDEN, Rules
from entityframes.directory.walk import Walk, walk
from entityframes.errors import DirectoryError

#: The longest name of a file on common file systems, in bytes.
NAME_BYTES = 255


class Read(NamedTuple):
    """What reading a file gave: its bytes, or the reason why not."""

    path: str
    data: bytes | None = None
    reason: str | None = None
    #: Whether the file is not there any more. Another walk tells whether it was deleted.
    gone: bool = False
    #: sha256 of the bytes.
    digest: bytes | None = None
    #: The state that the bytes are of.
    stat: Stat | None = None
    #: Whether the same state means the same bytes from now on. If not, it changed too recently to tell.
    settled: bool = False


class Write(NamedTuple):
    """A file to be written."""

    path: str
    data: bytes
    #: The time of change that it gets; None is now.
    mtime_ns: int | None = None
    #: The sha256 of the bytes of the file that it replaces; None: there must not be one.
    expected: bytes | None = None


class Written(NamedTuple):
    """What became of a file that was to be written: its new state, or the reason why it is as it was."""

    path: str
    stat: Stat | None = None
    reason: str | None = None
    #: Whether the same state means the same bytes once `outlast_tick` has waited.
    settled: bool = False


class Tree:
    """The files under a root whose names end in one of the suffixes.

    Links are not followed, the root itself apart. The calls may be made from several threads.

    Args:
        root: the folder.
        suffixes: what names end in, with the dot.
        ignore: patterns in gitignore's syntax of what is left out besides names that begin with a dot or an
            underscore; a pattern such as ``!_*`` takes those back in. None: no patterns; an empty sequence: nothing is
            left out, names with a dot or an underscore neither. Files named ``.efignore`` add rules for their folder.
        max_bytes: larger files are not read.

    Raises:
        DirectoryError: a pattern is not understood.
    """

    def __init__(
        self, root: str | os.PathLike[str], suffixes: Sequence[str], ignore: Sequence[str] | None, max_bytes: int
    ) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.max_bytes = max_bytes
        self._suffixes = tuple(suffixes)
        self._patterns = tuple(ignore or ())
        self._hidden = HIDDEN if ignore is None or self._patterns else ""
        #: When a file was last written or renamed.
        self.wrote_ns = 0
        if self._patterns:
            Rules(self._patterns, hidden=self._hidden)

    def walk(self) -> Walk:
        """Find the files, with size and time of change.

        Returns:
            Files, what is no file or could not be looked at, and what was left by an earlier process.

        Raises:
            DirectoryError: the root is missing, no folder, or cannot be read; a rule is not understood.
        """
        return walk(self.root, self._suffixes, self._patterns, hidden=self._hidden, rules_bytes=self.max_bytes)

    def read(self, paths: Sequence[str], cancel: threading.Event | None = None) -> list[Read]:
        """Read and hash files, fastest if the files of a folder stand together.

        Args:
            paths: paths of a walk.
            cancel: when it is set, the rest is not read.

        Returns:
            One answer for each path, in order; for the first ones only after ``cancel``.

        Raises:
            DirectoryError: the root cannot be opened any more.
        """
        found: list[Read] = []
        with Folders(self.root) as folders:
            for path in paths:
                if cancel is not None and cancel.is_set():
                    break
                try:
                    folder, name = folders.find(path)
                    data, state, settled = folder.read(name, self.max_bytes)
                except (OSError, RefusalError) as error:
                    found.append(Read(path, reason=words(error), gone=isinstance(error, FileNotFoundError)))
                else:
                    digest = hashlib.sha256(data).digest()
                    found.append(Read(path, data, digest=digest, stat=state, settled=settled))
        return found

    def write(self, files: Sequence[Write]) -> list[Written]:
        """Write files, each whole or not at all, and on the disk when this returns.

        A file is replaced only if its bytes are those that are expected, and keeps its mode; a new one replaces
        nothing. Folders are made as they are needed.

        Returns:
            What became of each, in order.

        Raises:
            DirectoryError: the root cannot be opened.
        """
        done: list[Written] = [Written(file.path) for file in files]
        with Folders(self.root) as folders:
            for number in sorted(range(len(files)), key=lambda number: _folder_of(files[number].path)):
                file = files[number]
                try:
                    folder, name = folders.find(file.path, create=file.expected is None)
                    state, settled = folder.put(name, file.data, file.mtime_ns, file.expected)
                    self.wrote_ns = time.time_ns()
                    done[number] = Written(file.path, state, settled=settled)
                except (OSError, RefusalError) as error:
                    done[number] = Written(file.path, reason=words(error))
            touched = {_folder_of(one.path) for one in done if one.stat} | folders.made_in
            unsafe = _sync(folders, touched)
        return [_unsafe(one, unsafe) if one.stat else one for one in done]

    def remove(self, path: str, expected: bytes) -> str | None:
        """Remove a file whose bytes have the sha256 that is expected, and the folders that hold nothing any more.

        Returns:
            None, or the reason why the file is still there.
        """
        with Folders(self.root) as folders:
            try:
                folder, name = folders.find(path)
                folder.take(name, expected)
            except (OSError, RefusalError) as error:
                return words(error)
            _sync(folders, {_clear(folders, _folder_of(path))})
        return None

    def rename(self, old: str, new: str, expected: bytes) -> str | None:
        """Rename a file whose bytes have the sha256 that is expected to a name that is not taken.

        Folders are made as they are needed, and removed if they hold nothing any more.

        Returns:
            None, or the reason why the file is where it was.
        """
        with Folders(self.root) as source, Folders(self.root) as target:
            try:
                before, name = source.find(old)
                before.check(name, expected)
                after, new_name = target.find(new, create=True)
                before.move(name, after, new_name)
                self.wrote_ns = time.time_ns()
            except (OSError, RefusalError) as error:
                if target.made_in:
                    _clear(target, _folder_of(new))
                return words(error)
            _sync(target, {_folder_of(new), _clear(source, _folder_of(old))} | target.made_in)
        return None

    def set_aside(self, path: str, data: bytes, ending: str = ".conflict") -> str:
        """Keep bytes beside a file, under its name with an ending, and a number where that is taken by other bytes.

        Returns:
            The path where they are, which may have been there before.

        Raises:
            DirectoryError: they could not be written. Do not overwrite what they are the only copy of.
        """
        folder, slash, name = path.rpartition("/")
        stem = name.encode()[: NAME_BYTES - len(ending) - 8].decode("utf-8", "ignore")
        for number in range(10_000):
            beside = f"{folder}{slash}{stem}{f'.{number}' if number else ''}{ending}"
            written = self.write([Write(beside, data)])[0]
            if written.stat is not None or self._holds(beside, data):
                return beside
            if not self._taken(beside):
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
        """Whether there is anything at a path, whatever a walk leaves out."""
        return self._taken(path)

    def ignores_case(self) -> bool:
        """Whether the file system takes names for the same that differ only in letter case."""
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
        """What the names begin with that are left out where no pattern says otherwise."""
        return self._hidden

    def clean(self, temporary: Sequence[str], older_than: float = 3600.0) -> int:
        """Remove what killed processes left behind.

        Args:
            temporary: what a walk found.
            older_than: seconds since the last change; a younger one may still be written.

        Returns:
            How many were removed.
        """
        removed = 0
        with Folders(self.root) as folders:
            for path in temporary:
                with contextlib.suppress(OSError, RefusalError):
                    folder, name = folders.find(path)
                    # Its time of change may be set already.
                    if TEMPORARY.fullmatch(name) and time.time() - folder.stat(name).st_ctime >= older_than:
                        folder.unlink(name)
                        removed += 1
        return removed


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _clear(folders: Folders, folder: str) -> str:
    """Remove a folder and those above it as far as they hold nothing; the first that stays is returned."""
    while folder:
        above, _, name = folder.rpartition("/")
        try:
            folders.open(above).remove_folder(name)
        except (OSError, RefusalError):
            return folder
        folder = above
    return ""


def _sync(folders: Folders, touched: set[str]) -> dict[str, str]:
    """Have the names in folders outlast a loss of power; returns why not, by folder."""
    unsafe = {}
    for folder in sorted(touched):
        try:
            folders.open(folder).sync()
        except (OSError, RefusalError) as error:
            unsafe[folder] = words(error)
    return unsafe


def _unsafe(one: Written, unsafe: dict[str, str]) -> Written:
    reason = unsafe.get(_folder_of(one.path))
    return one if reason is None else Written(one.path, reason=f"may not outlast a loss of power: {reason}")
