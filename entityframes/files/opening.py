"""Opening files as bytes or lines of text: decompressed, decoded, and split into blocks of bounded size."""

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

#: Bytes that are read, decompressed and decoded at once.
BLOCK = 1 << 20

#: Maximum characters of one record; content and metadata may have 64 MiB each.
MAX_RECORD = 136 << 20

#: Bytes to keep free in the temporary folder.
ROOM = 256 << 20

#: Seconds to wait for a program to write to a named pipe.
PIPE_WAIT = 5.0
#: Seconds between two checks for Ctrl-C while waiting for a pipe.
CHECK_INTERVAL = 0.1

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CutLine(str):
    """The beginning of a line that exceeds the maximum length of a record; the rest was skipped."""

    __slots__ = ()


def expanded(sources: Sequence[str], file_format: str | None = None, spool: Path | None = None) -> list[str]:
    """The paths of sources: paths, patterns, or ``-``. Pipes and standard input are copied to `spool`.

    Raises:
        SchemaError: a pattern matches nothing; a source is a folder or a device; standard input is given twice, or
            without its format.
    """
    if "-" in sources and file_format is None:
        raise SchemaError(
            "the format of standard input cannot be inferred", advice=f"give one of {', '.join(FORMATS)} with --format"
        )
    if sources.count("-") > 1:
        raise SchemaError("standard input can be given only once")
    paths: list[str] = []
    for source in sources:
        if source == "-":
            paths.append(_spooled(_InterruptibleStream(b"", sys.stdin.buffer), spool, "standard input"))
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
    """Reject a name that Polars cannot open.

    Raises:
        SchemaError: it contains bytes that are not UTF-8.
    """
    if printable(str(path)) != str(path):
        raise SchemaError(f"{printable(str(path))}: the file name is not UTF-8", advice="rename the file")


def _usable(path: str, spool: Path | None) -> str:
    """The path of a file that can be read more than once: the path itself, or that of a copy."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise SchemaError(
            f"{path} is a folder", advice=f"give its files, for example with a pattern such as '{path}/*.csv'"
        )
    if stat.S_ISFIFO(mode):
        with _opened_pipe(path) as pipe:
            return _spooled(pipe, spool, Path(path).name)
    if stat.S_ISCHR(mode) and os.path.realpath(path) == os.devnull:
        return path
    if not stat.S_ISREG(mode):
        raise SchemaError(f"{path} is a device or a socket, not a file", advice="give a file, or pipe the rows to -")
    return path


@contextmanager
def _opened_pipe(path: str) -> Iterator[Any]:
    """A named pipe, opened once a program writes to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        deadline = time.monotonic() + PIPE_WAIT
        first: bytes | None = b""
        while first == b"" and time.monotonic() < deadline:
            # None: a program has opened it and has not written anything yet.
            first = pipe.read(BLOCK)
            if first == b"":
                time.sleep(0.02)
        if first == b"":
            raise SchemaError(f"no program writes to the pipe {path}")
        os.set_blocking(descriptor, True)
        yield _InterruptibleStream(first or b"", pipe)


class _InterruptibleStream:
    """A pipe or standard input, with a first block that was already read. Ctrl-C interrupts the wait for data.

    Polars installs its signal handler so that interrupted reads are restarted, and Python would not see the signal.
    """

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest
        # sys.stdin may be replaced by an object without a file descriptor.
        self._descriptor: int | None = None
        with suppress(AttributeError, OSError):
            self._descriptor = rest.fileno()

    def read(self, size: int) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        if self._descriptor is None or os.name == "nt":
            return bytes(self._rest.read(size))
        while not select.select([self._descriptor], [], [], CHECK_INTERVAL)[0]:
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
    """Copy a stream to a file in the temporary folder.

    Raises:
        SchemaError: the disk is nearly full.
    """
    copied = 0
    while block := stream.read(BLOCK):
        file.write(block)
        copied += len(block)
        if copied % (32 * BLOCK) < BLOCK:
            check_room(file.name, name)


def check_room(folder: str | Path, name: str) -> None:
    """Check that the disk of a temporary folder has enough free space.

    Raises:
        SchemaError: the disk is nearly full.
    """
    place = os.path.dirname(os.path.abspath(folder))
    if shutil.disk_usage(place).free < ROOM:
        raise SchemaError(
            f"not enough space for {name} in the temporary folder ({place} has less than {ROOM >> 20} MiB left)",
            advice="set TMPDIR to a folder with more space, or split the file",
        )


def display_name(path: str | Path) -> str:
    """The name of a file in messages."""
    return Path(path).name


def is_compressed(path: str) -> bool:
    """Whether a file is compressed in a format that `decompressed` supports."""
    with open(path, "rb") as file:
        return _compression(file.read(8)) is not None


def _compression(head: bytes) -> str | None:
    magic = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip"}
    return next((name for start, name in magic.items() if head.startswith(start)), None)


@contextmanager
def decompressed(path: str) -> Iterator[Any]:
    """The bytes of a file as a stream, decompressed if its first bytes identify a compressed format.

    Raises:
        SchemaError: it is damaged, truncated, encrypted, or an archive with several files.
    """
    name = display_name(path)
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        compression = _compression(raw.read(8))
        raw.seek(0)
        try:
            yield _Checked(_stream(raw, compression, name, path, stack), name) if compression else raw
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> SchemaError:
    early = isinstance(error, EOFError) or "truncated" in str(error).lower() or "end" in str(error).lower()
    what = "is truncated" if early else "is damaged"
    return SchemaError(f"{name} {what} and cannot be decompressed; nothing was stored", advice="get the file again")


class _Checked:
    """A decompressed stream that raises SchemaError if the compressed data is invalid."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError) as error:
            raise _damaged(self._name, error) from error


def _stream(raw: BinaryIO, compression: str, name: str, path: str, stack: ExitStack) -> Any:
    if compression == "gzip":
        return stack.enter_context(gzip.GzipFile(fileobj=raw))
    if compression == "bz2":
        return stack.enter_context(bz2.BZ2File(raw))
    if compression == "xz":
        return stack.enter_context(lzma.LZMAFile(raw))
    if compression == "zip":
        archive = stack.enter_context(zipfile.ZipFile(raw))
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            names = ", ".join(repr(member.filename) for member in members[:5])
            raise SchemaError(
                f"{name} contains {len(members)} files ({names})", advice="unpack it, and import them one by one"
            )
        if members[0].flag_bits & 1:
            raise SchemaError(f"{name} is encrypted", advice="unpack it first")
        return stack.enter_context(archive.open(members[0]))
    import pyarrow as pa

    return stack.enter_context(pa.input_stream(path, compression="zstd"))


def text_blocks(path: str, encoding: str | None) -> Iterator[str]:
    """The text of a file in blocks; bytes that cannot be decoded become lone surrogates (``surrogateescape``).

    Args:
        path: a file, compressed or not.
        encoding: None for UTF-8, or the encoding given by a byte order mark.

    Raises:
        SchemaError: the encoding is not known, or the file is clearly in another one.
    """
    with decompressed(path) as stream:
        first = stream.read(BLOCK)
        if first[257:262] == b"ustar":
            raise SchemaError(f"{display_name(path)} is a tar archive", advice="unpack it first")
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
            raise SchemaError(f"unknown encoding {encoding!r}: --encoding takes names such as cp1252, latin-1, utf-16")
        return known.name
    for mark, found in _BYTE_ORDER_MARKS:
        if first.startswith(mark):
            return found
    head = first[:4096]
    if len(head) > 3 and b"\0" in head:
        for number, guess in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[number::2].count(0) > len(head) // 2 * 0.7 and head[1 - number :: 2].count(0) < len(head) // 20 + 1:
                raise SchemaError(
                    f"{display_name(path)} looks like UTF-16 without a byte order mark",
                    advice=f"use --encoding {guess}",
                )
    return "utf-8"


def line_chunks(blocks: Iterator[str]) -> Iterator[list[str]]:
    """Lines with their line endings (LF, CR LF or CR), in chunks; a line that is too long is a `CutLine`."""
    carry: list[str] = []
    carried = 0
    cutting = False
    held = ""
    for block in blocks:
        # Only the next block shows whether an LF follows the CR.
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
