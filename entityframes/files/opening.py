"""Files as bytes and as lines of text: unpacked, decoded and cut in pieces of bounded size, whatever they hold."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import select
import shutil
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from entityframes.errors import SchemaError
from entityframes.files.formats import FORMATS
from entityframes.frames.utf8 import printable

#: Bytes that are read, unpacked and decoded at once.
BLOCK = 1 << 20

#: Characters of one record; content and metadata may have 64 MiB each.
MAX_RECORD = 136 << 20

#: Bytes that the temporary folder keeps free.
ROOM = 256 << 20

#: Seconds to wait for a program that writes into a named pipe.
PIPE_WAIT = 5.0
#: Seconds of waiting for a pipe after which Ctrl-C is looked for.
LOOK_AFTER = 0.1

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CutLine(str):
    """The beginning of a line that is longer than a record may be; the rest was skipped."""

    __slots__ = ()


def expanded(sources: Sequence[str], file_format: str | None = None, spool: Path | None = None) -> list[str]:
    """The paths that sources name: a path, a pattern, or ``-``; what can be read only once is put into `spool`.

    Raises:
        SchemaError: a pattern matches nothing; it is a folder or a device; standard input comes twice, or without its
            format.
    """
    if "-" in sources and file_format is None:
        raise SchemaError(
            f"standard input has no name that tells its format: give one of {', '.join(FORMATS)} with --format"
        )
    if sources.count("-") > 1:
        raise SchemaError("standard input can be read once")
    paths: list[str] = []
    for source in sources:
        if source == "-":
            paths.append(_spooled(_Begun(b"", sys.stdin.buffer), spool, "standard input"))
        elif os.path.exists(source):
            paths.append(_usable(source, spool))
        elif found := sorted(path for path in glob.glob(source, recursive=True) if not os.path.isdir(path)):
            paths += [_usable(path, spool) for path in found]
        else:
            raise SchemaError(f"no such file: {printable(source)}")
    for name in paths:
        check_name(name)
    return paths


def check_name(path: str | Path) -> None:
    """Refuse a name that Polars cannot open.

    Raises:
        SchemaError: it holds bytes that are not UTF-8.
    """
    if printable(str(path)) != str(path):
        raise SchemaError(f"{printable(str(path))}: the name of the file is not UTF-8: rename it")


def _usable(path: str, spool: Path | None) -> str:
    """The path of a file that can be read more than once."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise SchemaError(f"{path} is a folder: name its files, for example with a pattern such as '{path}/*.csv'")
    if stat.S_ISFIFO(mode):
        with _opened_pipe(path) as pipe:
            return _spooled(pipe, spool, Path(path).name)
    if stat.S_ISCHR(mode) and os.path.realpath(path) == os.devnull:
        return path
    if not stat.S_ISREG(mode):
        raise SchemaError(f"{path} is no file but a device or a socket: name a file, or pipe the rows into -")
    return path


@contextmanager
def _opened_pipe(path: str) -> Iterator[Any]:
    """A named pipe once a program writes into it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        deadline = time.monotonic() + PIPE_WAIT
        first: bytes | None = b""
        while first == b"" and time.monotonic() < deadline:
            # None: a program has it open and has written nothing yet.
            first = pipe.read(BLOCK)
            if first == b"":
                time.sleep(0.02)
        if first == b"":
            raise SchemaError(f"{path} is a pipe into which no program writes")
        os.set_blocking(descriptor, True)
        yield _Begun(first or b"", pipe)


class _Begun:
    """A pipe, or standard input, of which a piece may have been read already; Ctrl-C ends the wait for the next one.

    Polars has a read that a signal interrupts go on, so that Python would not hear of it.
    """

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest
        # What stands for standard input in Python need not be a file.
        self._descriptor: int | None = None
        with suppress(AttributeError, OSError):
            self._descriptor = rest.fileno()

    def read(self, size: int) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        if self._descriptor is None or os.name == "nt":
            return bytes(self._rest.read(size))
        while not select.select([self._descriptor], [], [], LOOK_AFTER)[0]:
            pass
        return os.read(self._descriptor, size)


def _spooled(stream: Any, spool: Path | None, name: str) -> str:
    folder = spool or Path(tempfile.mkdtemp(prefix="entityframes-"))
    path = folder / name
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{number} {name}"
    with path.open("wb") as file:
        copy(stream, file, name)
    return str(path)


def copy(stream: Any, file: BinaryIO, name: str) -> None:
    """Copy a stream into a file in the temporary folder, as long as there is room.

    Raises:
        SchemaError: the folder is nearly full.
    """
    copied = 0
    while block := stream.read(BLOCK):
        file.write(block)
        copied += len(block)
        if copied % (32 * BLOCK) < BLOCK:
            check_room(file.name, name)


def check_room(folder: str | Path, name: str) -> None:
    """Make sure that the disk of a temporary folder is not nearly full.

    Raises:
        SchemaError: it is.
    """
    place = os.path.dirname(os.path.abspath(folder))
    if shutil.disk_usage(place).free < ROOM:
        raise SchemaError(
            f"{name} is larger than the temporary folder has room for ({place} has less than {ROOM >> 20} MiB left): "
            "set TMPDIR to a folder with more room, or split the file"
        )


def display_name(path: str | Path) -> str:
    """What a file is called in messages."""
    return Path(path).name


def is_packed(path: str) -> bool:
    """Whether a file is an archive that `unpacked` unpacks."""
    with open(path, "rb") as file:
        return _packing(file.read(8)) is not None


def _packing(head: bytes) -> str | None:
    magic = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip"}
    return next((name for start, name in magic.items() if head.startswith(start)), None)


@contextmanager
def unpacked(path: str) -> Iterator[Any]:
    """The bytes of a file as a stream, unpacked if its first bytes say that it is packed.

    Raises:
        SchemaError: it is damaged, ends too early, or holds several files.
    """
    name = display_name(path)
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        packing = _packing(raw.read(8))
        raw.seek(0)
        try:
            yield _Checked(_stream(raw, packing, name, path, stack), name) if packing else raw
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> SchemaError:
    early = isinstance(error, EOFError) or "truncated" in str(error).lower() or "end" in str(error).lower()
    what = "ends too early: it is truncated" if early else "is damaged"
    return SchemaError(f"{name} {what}, and cannot be unpacked; nothing of it was stored: get the file again")


class _Checked:
    """A stream that says what is wrong with its archive."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError) as error:
            raise _damaged(self._name, error) from error


def _stream(raw: BinaryIO, packing: str, name: str, path: str, stack: ExitStack) -> Any:
    if packing == "gzip":
        return stack.enter_context(gzip.GzipFile(fileobj=raw))
    if packing == "bz2":
        return stack.enter_context(bz2.BZ2File(raw))
    if packing == "xz":
        return stack.enter_context(lzma.LZMAFile(raw))
    if packing == "zip":
        archive = stack.enter_context(zipfile.ZipFile(raw))
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            names = ", ".join(repr(member.filename) for member in members[:5])
            raise SchemaError(f"{name} holds {len(members)} files ({names}): unpack it, and import them one by one")
        if members[0].flag_bits & 1:
            raise SchemaError(f"{name} is encrypted: unpack it first")
        return stack.enter_context(archive.open(members[0]))
    import pyarrow as pa

    return stack.enter_context(pa.input_stream(path, compression="zstd"))


def text_blocks(path: str, encoding: str | None) -> Iterator[str]:
    """The text of a file in pieces; a byte that cannot be decoded is a lone surrogate (``surrogateescape``).

    Args:
        path: a file, packed or not.
        encoding: None for UTF-8, or what a byte order mark says.

    Raises:
        SchemaError: the encoding is not known, or the bytes are plainly of another one.
    """
    with unpacked(path) as stream:
        first = stream.read(BLOCK)
        if first[257:262] == b"ustar":
            raise SchemaError(f"{display_name(path)} is a tar archive: unpack it first")
        decoder = codecs.getincrementaldecoder(_encoding(path, first, encoding))("surrogateescape")
        block, begun = first, False
        while block:
            text = decoder.decode(block)
            if text and not begun:
                text, begun = text.removeprefix("\ufeff"), True
            if text:
                yield text
            block = stream.read(BLOCK)
        if rest := decoder.decode(b"", final=True):
            yield rest


def _encoding(path: str, first: bytes, encoding: str | None) -> str:
    if encoding is not None:
        try:
            known = codecs.lookup(encoding)
        except (LookupError, ValueError):
            known = None
        if known is None or not known._is_text_encoding:
            raise SchemaError(f"no encoding {encoding!r}: --encoding takes names such as cp1252, latin-1, utf-16")
        return known.name
    for mark, found in _BYTE_ORDER_MARKS:
        if first.startswith(mark):
            return found
    head = first[:4096]
    if len(head) > 3 and b"\0" in head:
        for number, guess in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[number::2].count(0) > len(head) // 2 * 0.7 and head[1 - number :: 2].count(0) < len(head) // 20 + 1:
                raise SchemaError(
                    f"{display_name(path)} looks like UTF-16 without a byte order mark: say --encoding {guess}"
                )
    return "utf-8"


def line_chunks(blocks: Iterator[str]) -> Iterator[list[str]]:
    """Lines with their ends (LF, CR LF or CR), some at a time; one that is too long is a `CutLine`."""
    carry: list[str] = []
    carried = 0
    cutting = False
    held = ""
    for block in blocks:
        # Whether an LF follows a CR is known with the next block only.
        block, held = held + block, ""
        if block.endswith("\r"):
            block, held = block[:-1], "\r"
        lines = list(io.StringIO(block, newline=""))
        rest = lines.pop() if lines and not lines[-1].endswith(("\n", "\r")) else ""
        if lines and cutting:
            cutting = False
            lines.pop(0)
        elif lines and carry:
            lines[0] = "".join(carry) + lines[0]
            carry, carried = [], 0
        if not cutting:
            carry.append(rest)
            carried += len(rest)
        if carried > MAX_RECORD:
            lines.append(CutLine("".join(carry)[:200]))
            carry, carried, cutting = [], 0, True
        if lines:
            yield lines
    last = "".join(carry) + held
    if last and not cutting:
        yield [last]
