"""Folders below a root by descriptor: opened component by component, never through a link, and what is done in them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from entityframes.errors import DirectoryError

#: Names are looked up from the descriptor of their folder. Windows has no such thing: there it is by path.
BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
#: A file that is being written; one is left over where a process was killed.
TEMPORARY = re.compile(r"\.ef-[0-9a-f]{16}\.tmp")

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
#: Not blocking: what was a file when it was found may be a pipe by now.
_READ = os.O_RDONLY | _NO_FOLLOW | _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
#: What a file system without hard links answers to a request for one, or a kernel that protects them.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
#: What a file system that cannot sync a folder answers.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}
#: How long the time of a change may stay the same while a file changes on: the tick of a file system that keeps
#: nanoseconds, and of one that keeps (even) seconds.
_TICK, _COARSE_TICK, _SECOND = 50_000_000, 2_000_000_000, 1_000_000_000


class Stat(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The part of a file's status that is compared."""
        return cls(status.st_size, status.st_mtime_ns)

    def settled(self, now_ns: int) -> bool:
        """Whether a change from ``now_ns`` on cannot go unnoticed by leaving the time of change as it is."""
        return now_ns - self.mtime_ns > (_TICK if self.mtime_ns % _SECOND else _COARSE_TICK)


class RefusalError(Exception):
    """Why something is not done with a file, in plain words."""


def words(error: OSError | RefusalError) -> str:
    """What an error says, to stand behind the name of a file."""
    if isinstance(error, RefusalError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "is gone"
    if error.errno == errno.ELOOP:
        return "is a link"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def is_text(name: str) -> bool:
    """Whether a name is UTF-8 on the disk."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: str) -> str:
    """A path for people to read: bytes of a name that are no UTF-8 are escaped with a backslash."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def kind(mode: int) -> str:
    """What is not a regular file, in a word."""
    kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}"


class Folder:
    """An open folder. Every name in it is looked up from its descriptor, wherever its path leads by then."""

    def __init__(self, path: str, fd: int | None) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: str, *, follow: bool = False) -> Self:
        """Open by path; ``follow`` allows that it is a link."""
        if BY_DESCRIPTOR:
            return cls(path, os.open(path, _FOLDER | (0 if follow else _NO_FOLLOW)))
        status = os.stat(path, follow_symlinks=follow)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return cls(path, None)

    def enter(self, name: str, *, create: bool = False) -> tuple[Self, bool]:
        """Open a folder in this one, and say whether it was made for that."""
        made = False
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._at(name), dir_fd=self.fd)
                made = True
        path = os.path.join(self.path, name)
        try:
            if self.fd is None:
                return type(self).open(path), made
            return type(self)(path, os.open(name, _FOLDER | _NO_FOLLOW, dir_fd=self.fd)), made
        except OSError as error:
            # What a link gives depends on the system.
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
                raise RefusalError(f"{shown(name)!r} in its path is a link or a file, not a folder") from error
            raise

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd is not None:
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def scan(self) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """The entries of the folder; its descriptor has to stay open for them."""
        return os.scandir(self.path if self.fd is None else self.fd)

    def stat(self, name: str) -> os.stat_result:
        """The status of a name, of a link itself."""
        return os.stat(self._at(name), dir_fd=self.fd, follow_symlinks=False)

    def check(self, name: str, expected: Stat) -> os.stat_result:
        """The status of a file that has to be as expected."""
        status = self.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise RefusalError(kind(status.st_mode))
        if Stat.of(status) != expected:
            raise RefusalError("was changed by somebody else")
        return status

    def read(self, name: str, max_bytes: int) -> tuple[bytes, Stat, bool]:
        """The bytes of a regular file, the state that they are of, and whether that is settled."""
        for _ in range(2):
            now = time.time_ns()
            fd = os.open(self._at(name), _READ, dir_fd=self.fd)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise RefusalError(kind(before.st_mode))
                if before.st_size > max_bytes:
                    raise RefusalError(f"has {before.st_size:,} bytes; at most {max_bytes:,} are read")
                data = os.read(fd, before.st_size + 1)
                while len(data) <= before.st_size and (more := os.read(fd, before.st_size + 1 - len(data))):
                    data += more
                state = Stat.of(os.fstat(fd))
            finally:
                os.close(fd)
            if state == Stat.of(before) and len(data) == state.size:
                return data, state, state.settled(now)
        raise RefusalError("changes while it is read")

    def put(self, name: str, data: bytes, mtime_ns: int | None, expected: Stat | None) -> tuple[Stat, bool]:
        """Write a whole file, or leave what is there as it is.

        Args:
            name: the file in this folder.
            data: its bytes.
            mtime_ns: the time of change that it gets; None is now.
            expected: the state of the file that it replaces; None: there must not be one.

        Returns:
            The file's new state and whether it is settled.
        """
        replaced = None if expected is None else self.check(name, expected)
        temporary = f".ef-{secrets.token_hex(8)}.tmp"
        fd = os.open(self._at(temporary), _CREATE, 0o666, dir_fd=self.fd)
        try:
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
                if replaced is not None:
                    _like(fd, replaced)
                if mtime_ns is not None:
                    target = fd if os.utime in os.supports_fd else self._at(temporary)
                    os.utime(target, ns=(mtime_ns, mtime_ns))
                os.fsync(fd)
                state = Stat.of(os.fstat(fd))
            finally:
                os.close(fd)
            if expected is None:
                self.move(temporary, self, name)
            else:
                self.check(name, expected)
                os.replace(self._at(temporary), self._at(name), src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        return state, state.settled(time.time_ns())

    def move(self, old: str, other: Folder, new: str) -> None:
        """Rename and never overwrite: the new name is a second one at first, where the file system has links."""
        source, target = self._at(old), other._at(new)
        rename = {"src_dir_fd": self.fd, "dst_dir_fd": other.fd}
        if self.fd is None:
            os.rename(source, target)  # Windows refuses by itself.
            return
        try:
            os.link(source, target, follow_symlinks=False, **rename)
        except FileExistsError:
            if not self._same(old, other, new):
                raise RefusalError("there is a file of that name already") from None
            os.rename(source, target, **rename)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if other.has(new):
                raise RefusalError("there is a file of that name already") from None
            os.rename(source, target, **rename)
        else:
            self.unlink(old)

    def _same(self, old: str, other: Folder, new: str) -> bool:
        """Whether two names are one file under one name: they differ in what the file system does not tell apart."""
        first, second = self.stat(old), other.stat(new)
        return os.path.samestat(first, second) and first.st_nlink == 1

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a name that is no folder's."""
        os.unlink(self._at(name), dir_fd=self.fd)

    def remove_folder(self, name: str) -> None:
        """Remove a folder that holds nothing."""
        os.rmdir(self._at(name), dir_fd=self.fd)

    def sync(self) -> None:
        """Have the names of this folder outlast a loss of power."""
        try:
            if self.fd is not None:
                os.fsync(self.fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def _like(fd: int, replaced: os.stat_result) -> None:
    """Give a new file the mode of the one that it replaces, and the owner where that is allowed."""
    if not hasattr(os, "fchmod"):
        return
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) != (replaced.st_uid, replaced.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, replaced.st_uid, replaced.st_gid)
    os.fchmod(fd, replaced.st_mode & 0o777)


class Folders:
    """The folders of a root, one of them open at a time.

    Args:
        root: the folder that everything stays in; it may be a link itself.

    Raises:
        DirectoryError: the root cannot be opened.
    """

    def __init__(self, root: str) -> None:
        self._root = open_root(root)
        self._last: tuple[str, Folder] = ("", self._root)
        #: The folders in which others were made.
        self.made_in: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()
        self._root.close()

    def _leave(self) -> None:
        if self._last[1] is not self._root:
            self._last[1].close()
        self._last = ("", self._root)

    def find(self, path: str, *, create: bool = False) -> tuple[Folder, str]:
        """The folder of a path, which stays open until the next one is asked for, and the name in it."""
        inside(path)
        folder, _, name = path.rpartition("/")
        return self.open(folder, create=create), name

    def open(self, folder: str, *, create: bool = False) -> Folder:
        """A folder by its path, the empty one being the root; ``create`` makes what is missing of it."""
        if folder == self._last[0]:
            return self._last[1]
        self._leave()
        at, reached = self._root, ""
        for part in folder.split("/") if folder else ():
            try:
                following, made = at.enter(part, create=create)
            finally:
                if at is not self._root:
                    at.close()
            if made:
                self.made_in.add(reached)
            at, reached = following, f"{reached}/{part}" if reached else part
        self._last = (folder, at)
        return at


def inside(path: str) -> None:
    """Refuse a path that could lead anywhere but down."""
    foreign = "\0" if os.sep == "/" else "\0\\:"
    parts = path.split("/")
    if not is_text(path) or not {"", ".", ".."}.isdisjoint(parts) or any(sign in path for sign in foreign):
        raise RefusalError("is not a path inside the folder")


def open_root(root: str) -> Folder:
    """Open the folder that is to be synced, or say what is wrong with it."""
    try:
        return Folder.open(root, follow=True)
    except FileNotFoundError as error:
        raise DirectoryError(
            f"the folder {shown(root)} does not exist: check the path, and whether its file system is mounted"
        ) from error
    except NotADirectoryError as error:
        raise DirectoryError(f"{shown(root)} is not a folder: give the folder that holds the files") from error
    except OSError as error:
        raise DirectoryError(f"the folder {shown(root)} cannot be opened: {words(error)}") from error
