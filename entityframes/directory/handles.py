"""Folder operations by descriptor: paths are opened component by component, and links are never followed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from types import TracebackType
from typing import NamedTuple, Self

from entityframes.errors import DirectoryError

#: Whether names can be resolved relative to the descriptor of their folder. On Windows they are resolved by path.
BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
#: The name of a file that is being written; one is left behind if the process is killed.
TEMPORARY = re.compile(r"\.ef-[0-9a-f]{16}\.tmp")

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
#: Non-blocking: what was a regular file during the walk may have been replaced by a pipe.
_READ = os.O_RDONLY | _NO_FOLLOW | _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
#: Errors of link() on file systems without hard links, or with a kernel that restricts them.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
#: Errors of fsync() on file systems that cannot sync a folder.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}
#: Timestamp granularity in nanoseconds, within which further changes of a file may go unnoticed: of file systems with
#: nanosecond timestamps, and of those that store (even) seconds.
_TICK, _COARSE_TICK, _SECOND = 50_000_000, 2_000_000_000, 1_000_000_000
#: Errors of renameat2() if two names cannot be exchanged.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
#: On Windows st_ctime is the creation time, and scandir() returns no inodes.
HAS_IDENTITY = os.name == "posix"
#: Odd 64-bit factors: if one of the times or the inode differs, so does the sum of the products.
MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
MARK_BITS = (1 << 63) - 1


class Stat(NamedTuple):
    """The state of a file, by which changes are detected without reading it.

    Size and mtime alone are not enough: ``cp -p``, ``rsync --times`` and backups set the mtime, and a file that is
    moved over another of equal size keeps its own. A program cannot set the ctime, and a different file has a
    different inode.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The state from the result of `os.stat`."""
        if not HAS_IDENTITY:
            return cls(status.st_size, status.st_mtime_ns)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def mark(self) -> int:
        """The times and the inode combined into one non-negative number; `walk._marks` computes many at once."""
        return sum(value * factor for value, factor in zip(self[1:], MIX, strict=True)) & MARK_BITS

    def stable(self, now_ns: int) -> bool:
        """Whether every change after ``now_ns`` is certain to change the times."""
        return self.written_before(now_ns) and (not self.ctime_ns or _past(self.ctime_ns, now_ns))

    def written_before(self, now_ns: int) -> bool:
        """Whether a write after ``now_ns`` changes the mtime, unless a program sets it explicitly."""
        return _past(self.mtime_ns, now_ns)

    @property
    def coarse(self) -> bool:
        """Whether the file system seems to store whole seconds only."""
        return self.ctime_ns % _SECOND == 0 and self.ctime_ns != 0


def _past(at_ns: int, now_ns: int) -> bool:
    return now_ns - at_ns > (_TICK if at_ns % _SECOND else _COARSE_TICK)


def wait_for_tick(since_ns: int) -> None:
    """Wait until a new change gets a later timestamp than one made at ``since_ns`` (at most 50 ms)."""
    left = since_ns + _TICK - time.time_ns()
    if 0 < left <= _TICK:
        time.sleep(left / 1e9)


class RefusalError(Exception):
    """A file operation is refused; the message is the reason, phrased to follow the name of the file."""


def describe_error(error: OSError | RefusalError) -> str:
    """The message of an error, phrased to follow the name of the file."""
    if isinstance(error, RefusalError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "is gone"
    if error.errno == errno.ELOOP:
        return "is a link"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8 on disk."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: str) -> str:
    """A path in printable form: bytes that are not UTF-8 are escaped with a backslash."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def kind(mode: int) -> str:
    """A description of a file type that is not a regular file."""
    kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}"


class Folder:
    """An open folder. Names in it are resolved relative to its descriptor, even if the folder is moved meanwhile."""

    def __init__(self, path: str, fd: int | None) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: str, *, follow: bool = False) -> Self:
        """Open a folder by path; `follow` allows the path to be a link."""
        if BY_DESCRIPTOR:
            return cls(path, os.open(path, _FOLDER | (0 if follow else _NO_FOLLOW)))
        status = os.stat(path, follow_symlinks=follow)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return cls(path, None)

    def enter(self, name: str, *, create: bool = False) -> tuple[Self, bool]:
        """Open a folder in this one; returns it, and whether it was created."""
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
            # The error for a link depends on the system.
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
                raise RefusalError(f"{shown(name)!r} in its path is a link or a file, not a folder") from error
            raise

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd is not None:
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def scan(self) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """The entries of the folder; it must stay open while they are used."""
        return os.scandir(self.path if self.fd is None else self.fd)

    def stat(self, name: str) -> os.stat_result:
        """The status of a name; links are not followed."""
        return os.stat(self._at(name), dir_fd=self.fd, follow_symlinks=False)

    def check(self, name: str, expected: bytes) -> os.stat_result:
        """The status of a file; raises RefusalError unless its bytes have the expected sha256."""
        status = self.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise RefusalError(kind(status.st_mode))
        with open(os.open(self._at(name), _READ, dir_fd=self.fd), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RefusalError(kind(status.st_mode))
            if hashlib.file_digest(file, "sha256").digest() != expected:
                raise RefusalError("was changed by another process")
        return status

    def read(self, name: str, max_bytes: int) -> tuple[bytes, Stat, bool]:
        """The bytes of a regular file, the state in which they were read, and whether that state is stable."""
        for _ in range(2):
            now = time.time_ns()
            fd = os.open(self._at(name), _READ, dir_fd=self.fd)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise RefusalError(kind(before.st_mode))
                if before.st_size > max_bytes:
                    raise RefusalError(f"has {before.st_size:,} bytes, more than the limit of {max_bytes:,}")
                data = os.read(fd, before.st_size + 1)
                while len(data) <= before.st_size and (more := os.read(fd, before.st_size + 1 - len(data))):
                    data += more
                state = Stat.of(os.fstat(fd))
            finally:
                os.close(fd)
            if state[:2] == (before.st_size, before.st_mtime_ns) and len(data) == state.size:
                # A change of the ctime alone is usually a rename.
                return data, state, state == Stat.of(before) and state.stable(now)
        raise RefusalError("changes while it is read")

    def put(self, name: str, data: bytes, mtime_ns: int | None, expected: bytes | None) -> tuple[Stat, bool]:
        """Write a file atomically: on failure the existing file is left unchanged.

        Args:
            name: the name of the file in this folder.
            data: its bytes.
            mtime_ns: the modification time to set; None for the current time.
            expected: the sha256 of the bytes of the file to replace; None if there must not be a file of that name.

        Returns:
            The new state of the file, and whether it is stable after `wait_for_tick`.
        """
        replaced = None if expected is None else self.check(name, expected)
        temporary = _temporary()
        fd = os.open(self._at(temporary), _CREATE, 0o666, dir_fd=self.fd)
        own = os.fstat(fd).st_ino
        try:
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
                if replaced is not None:
                    _copy_mode(fd, replaced)
                if mtime_ns is not None:
                    target = fd if os.utime in os.supports_fd else self._at(temporary)
                    os.utime(target, ns=(mtime_ns, mtime_ns))
                os.fsync(fd)
                written = Stat.of(os.fstat(fd))
            finally:
                os.close(fd)
            if expected is None:
                self.move(temporary, self, name)
            else:
                self._replace(temporary, name, expected, own)
        except BaseException:
            self._discard(temporary, own)
            raise
        state = Stat.of(self.stat(name))
        # The rename changes the ctime; any other difference was caused by another process.
        same = (state.size, state.mtime_ns, state.inode) == (written.size, written.mtime_ns, written.inode)
        return state, same and state.written_before(time.time_ns()) and not state.coarse

    def _replace(self, temporary: str, name: str, expected: bytes, own: int) -> None:
        """Replace a file by the temporary one, if its bytes are still as expected.

        If the system can exchange two names, the replaced file is checked again after the exchange, when it can no
        longer be changed by its name, and the exchange is undone if its bytes are not as expected.
        """
        self.check(name, expected)
        if not self._exchange(temporary, name):
            os.replace(self._at(temporary), self._at(name), src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return
        try:
            self.check(temporary, expected)
        except (OSError, RefusalError):
            self._exchange(temporary, name)
            if self.stat(temporary).st_ino != own:
                # Another process has replaced the file once more: neither of its files is removed.
                self._keep(temporary, name)
            raise
        self.unlink(temporary)

    def _exchange(self, first: str, second: str) -> bool:
        """Exchange two names atomically; False if the system or the file system does not support it."""
        rename = _renameat2()
        if rename is None or self.fd is None:
            return False
        error = rename(self.fd, os.fsencode(first), self.fd, os.fsencode(second))
        if error and error not in _NO_EXCHANGE:
            raise OSError(error, os.strerror(error), second)
        return not error

    def _discard(self, temporary: str, own: int) -> None:
        """Remove a temporary file if it is still the one that was created."""
        with contextlib.suppress(OSError):
            if self.fd is None or self.stat(temporary).st_ino == own:
                self.unlink(temporary)

    def _keep(self, temporary: str, name: str) -> None:
        """Move a file of another process from its temporary name to a ``.conflict`` name next to its original one."""
        short = os.fsencode(name)[:200].decode("utf-8", "ignore")
        self.move(temporary, self, f"{short}.{secrets.token_hex(4)}.conflict")

    def remove(self, name: str, expected: bytes) -> None:
        """Remove a file whose bytes are as expected; they are checked again after it has been renamed."""
        self.check(name, expected)
        temporary = _temporary()
        os.rename(self._at(name), self._at(temporary), src_dir_fd=self.fd, dst_dir_fd=self.fd)
        try:
            self.check(temporary, expected)
        except (OSError, RefusalError):
            try:
                self.move(temporary, self, name)
            except (OSError, RefusalError):
                self._keep(temporary, name)
            raise
        self.unlink(temporary)

    def move(self, old: str, other: Folder, new: str) -> None:
        """Rename without overwriting: via a hard link, if the file system supports them."""
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
        """Whether two names are the same directory entry, because the file system ignores their difference."""
        first, second = self.stat(old), other.stat(new)
        return os.path.samestat(first, second) and first.st_nlink == 1

    def has(self, name: str) -> bool:
        """Whether the name exists."""
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a name that is not a folder."""
        os.unlink(self._at(name), dir_fd=self.fd)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder."""
        os.rmdir(self._at(name), dir_fd=self.fd)

    def sync(self) -> None:
        """Flush the names in this folder to disk, so that they survive a power failure."""
        try:
            if self.fd is not None:
                os.fsync(self.fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def _temporary() -> str:
    return f".ef-{secrets.token_hex(8)}.tmp"


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes], int] | None:
    """A function that exchanges two names on Linux and returns an errno or 0; None if it is not available."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    exchange = 2

    def rename(old_fd: int, old: bytes, new_fd: int, new: bytes) -> int:
        return ctypes.get_errno() if call(old_fd, old, new_fd, new, exchange) else 0

    return rename


def _copy_mode(fd: int, replaced: os.stat_result) -> None:
    """Give a new file the mode of the one that it replaces, and the owner if permitted."""
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
        root: the folder that all paths are below; it may itself be a link.

    Raises:
        DirectoryError: the root cannot be opened.
    """

    def __init__(self, root: str) -> None:
        self._root = open_root(root)
        self._last: tuple[str, Folder] = ("", self._root)
        #: The folders in which folders were created.
        self.created_in: set[str] = set()

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
        """The folder of a path, which stays open until the next call, and the name in it."""
        check_inside(path)
        folder, _, name = path.rpartition("/")
        return self.open(folder, create=create), name

    def open(self, folder: str, *, create: bool = False) -> Folder:
        """Open a folder by its path, empty for the root; `create` creates missing folders."""
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
                self.created_in.add(reached)
            at, reached = following, f"{reached}/{part}" if reached else part
        self._last = (folder, at)
        return at


def check_inside(path: str) -> None:
    """Raise RefusalError for a path that could lead out of the root."""
    foreign = "\0" if os.sep == "/" else "\0\\:"
    parts = path.split("/")
    if not is_text(path) or not {"", ".", ".."}.isdisjoint(parts) or any(sign in path for sign in foreign):
        raise RefusalError("is not a path inside the folder")


def open_root(root: str) -> Folder:
    """Open the folder to be synced; raises DirectoryError if it is missing, not a folder, or cannot be opened."""
    try:
        return Folder.open(root, follow=True)
    except FileNotFoundError as error:
        raise DirectoryError(
            f"the folder {shown(root)} does not exist", advice="check the path, and whether its file system is mounted"
        ) from error
    except NotADirectoryError as error:
        raise DirectoryError(f"{shown(root)} is not a folder", advice="give the folder that holds the files") from error
    except OSError as error:
        raise DirectoryError(f"the folder {shown(root)} cannot be opened: {describe_error(error)}") from error
