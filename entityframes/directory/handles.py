"""Folders below a root by descriptor: opened component by component, never through a link, and what is done in them."""

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
#: What a file system answers that cannot exchange two names.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
#: On Windows the time of a change of the status is that of creation, and folders list no inodes.
HAS_IDENTITY = os.name == "posix"
#: Odd numbers of 64 bits: where one of the times or the inode differs, the sum of the products does.
MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
MARK_BITS = (1 << 63) - 1


class Stat(NamedTuple):
    """What tells one state of a file from another without reading it.

    Size and mtime alone do not: ``cp -p``, ``rsync --times`` and a backup set the mtime, and a file that is moved over
    another of equal size brings its own. No program can set the time of the last change of the status, and another
    file has another inode.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The part of a file's status that is compared."""
        if not HAS_IDENTITY:
            return cls(status.st_size, status.st_mtime_ns)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def mark(self) -> int:
        """One number for the times and the inode, as it is remembered; `marks` does many. It is never negative."""
        return sum(value * factor for value, factor in zip(self[1:], MIX, strict=True)) & MARK_BITS

    def settled(self, now_ns: int) -> bool:
        """Whether a change from ``now_ns`` on cannot go unnoticed by leaving the times as they are."""
        return self.written_before(now_ns) and (not self.ctime_ns or _past(self.ctime_ns, now_ns))

    def written_before(self, now_ns: int) -> bool:
        """Whether a file that is written from ``now_ns`` on gets another mtime, unless somebody sets that."""
        return _past(self.mtime_ns, now_ns)

    @property
    def coarse(self) -> bool:
        """Whether the file system seems to keep whole seconds."""
        return self.ctime_ns % _SECOND == 0 and self.ctime_ns != 0


def _past(at_ns: int, now_ns: int) -> bool:
    return now_ns - at_ns > (_TICK if at_ns % _SECOND else _COARSE_TICK)


def outlast_tick(since_ns: int) -> None:
    """Wait until a change cannot have the time of one that was made at ``since_ns`` (50 ms at most)."""
    left = since_ns + _TICK - time.time_ns()
    if 0 < left <= _TICK:
        time.sleep(left / 1e9)


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

    def check(self, name: str, expected: bytes) -> os.stat_result:
        """The status of a file whose bytes have the sha256 that is expected."""
        status = self.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise RefusalError(kind(status.st_mode))
        with open(os.open(self._at(name), _READ, dir_fd=self.fd), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RefusalError(kind(status.st_mode))
            if hashlib.file_digest(file, "sha256").digest() != expected:
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
            if state[:2] == (before.st_size, before.st_mtime_ns) and len(data) == state.size:
                # A change of the status alone is most often another name.
                return data, state, state == Stat.of(before) and state.settled(now)
        raise RefusalError("changes while it is read")

    def put(self, name: str, data: bytes, mtime_ns: int | None, expected: bytes | None) -> tuple[Stat, bool]:
        """Write a whole file, or leave what is there as it is.

        Args:
            name: the file in this folder.
            data: its bytes.
            mtime_ns: the time of change that it gets; None is now.
            expected: the sha256 of the bytes of the file that it replaces; None: there must not be one.

        Returns:
            The file's new state, and whether it is settled once `outlast_tick` has waited.
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
                    _like(fd, replaced)
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
        # Its new name is a change of its status; anything else was done by somebody else.
        same = (state.size, state.mtime_ns, state.inode) == (written.size, written.mtime_ns, written.inode)
        return state, same and state.written_before(time.time_ns()) and not state.coarse

    def _replace(self, temporary: str, name: str, expected: bytes, own: int) -> None:
        """Give a file's name to the one that takes its place, if its bytes still are as expected.

        Where the system can exchange two names, what had the name is looked at when nobody can change it by that name
        any more, and gets it back if it is not what was expected.
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
                # Somebody was faster once more: neither of their files is removed.
                self._keep(temporary, name)
            raise
        self.unlink(temporary)

    def _exchange(self, first: str, second: str) -> bool:
        """Let two names change places; False where the system or the file system cannot."""
        rename = _renameat2()
        if rename is None or self.fd is None:
            return False
        error = rename(self.fd, os.fsencode(first), self.fd, os.fsencode(second))
        if error and error not in _NO_EXCHANGE:
            raise OSError(error, os.strerror(error), second)
        return not error

    def _discard(self, temporary: str, own: int) -> None:
        """Remove a temporary file if it is the one that was made."""
        with contextlib.suppress(OSError):
            if self.fd is None or self.stat(temporary).st_ino == own:
                self.unlink(temporary)

    def _keep(self, temporary: str, name: str) -> None:
        """Give a file of somebody else, which has a temporary name, one beside that it had."""
        short = os.fsencode(name)[:200].decode("utf-8", "ignore")
        self.move(temporary, self, f"{short}.{secrets.token_hex(4)}.conflict")

    def take(self, name: str, expected: bytes) -> None:
        """Remove a file whose bytes are as expected; they are looked at again when it has no name any more."""
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


def _temporary() -> str:
    return f".ef-{secrets.token_hex(8)}.tmp"


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes], int] | None:
    """Linux's call that exchanges two names, which gives an errno or 0; None where there is none."""
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
