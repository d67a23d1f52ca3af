"""Reading files into frames: in threads, in chunks, hashed and parsed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from entityframes.directory import markdown
from entityframes.directory.tree import Read, Tree
from entityframes.metadata.canonical_json import canonical_json
from entityframes.writing.entities.validation import sha256

#: Maximum size of a chunk, which is read by one thread, in files and in bytes.
CHUNK_FILES = 128
CHUNK_BYTES = 8 << 20
#: Number of reader threads, and of chunks that are read ahead.
THREADS = 4

#: Columns added by reading a file: its current state, its content, or why it cannot be an entity.
READ = pl.Schema(
    {
        "path": pl.String(),
        "size": pl.Int64(),
        "mtime_ns": pl.Int64(),
        "mark": pl.Int64(),
        # Whether any later change gets a different timestamp.
        "stable": pl.Boolean(),
        "now_hash": pl.Binary(),
        "header": pl.Binary(),
        "content": pl.String(),
        "metadata": pl.String(),
        "now_content": pl.Binary(),
        "now_metadata": pl.Binary(),
        "problem": pl.String(),
        # Whether the file system failed to read it, as opposed to a problem with its content.
        "unread": pl.Boolean(),
    }
)


def read_in_chunks(tree: Tree, rows: pl.DataFrame, stopping: Callable[[], bool]) -> Iterator[pl.DataFrame]:
    """Read the files of some rows, and yield the rows with the columns `READ`, in chunks, ordered by path.

    Args:
        tree: the folder.
        rows: with path, size, mtime_ns and mark.
        stopping: returns whether to stop before the next chunk.
    """
    rows = rows.sort("path")
    pieces = _cut(rows)
    waiting: deque[tuple[pl.DataFrame, Future[pl.DataFrame]]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="entityframes-read") as threads:
        try:
            while True:
                while len(waiting) <= THREADS and (piece := next(pieces, None)) is not None:
                    waiting.append((piece, threads.submit(_read, tree, piece["path"].to_list())))
                if not waiting or stopping():
                    return
                piece, read = waiting.popleft()
                yield piece.drop("size", "mtime_ns", "mark").hstack(read.result().drop("path").get_columns())
        finally:
            for _, read in waiting:
                read.cancel()


def _cut(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    start = held = 0
    for stop, size in enumerate(rows["size"]):
        if stop - start == CHUNK_FILES or (held + size > CHUNK_BYTES and stop > start):
            yield rows[start:stop]
            start, held = stop, 0
        held += size
    if start < rows.height:
        yield rows[start:]


@dataclass
class _Parts:
    """The parts of a file, or the reason why it cannot be read or parsed."""

    header: bytes | None = None
    content: str | None = None
    metadata: str | None = None
    problem: str | None = None
    unread: bool = False


def _read(tree: Tree, paths: list[str]) -> pl.DataFrame:
    reads = tree.read(paths)
    parts = [_parse(read) for read in reads]
    canonical, errors, _ = canonical_json([part.metadata for part in parts])
    for part, error in zip(parts, errors, strict=True):
        part.problem = part.problem or error
    frame = pl.DataFrame(
        {
            "path": paths,
            "size": [read.stat and read.stat.size for read in reads],
            "mtime_ns": [read.stat and read.stat.mtime_ns for read in reads],
            "mark": [read.stat and read.stat.mark for read in reads],
            "stable": [read.stable for read in reads],
            "now_hash": [read.digest for read in reads],
            "header": [part.header for part in parts],
            "content": [part.content for part in parts],
            "metadata": canonical,
            "problem": [part.problem for part in parts],
            "unread": [part.unread for part in parts],
        },
        schema={name: dtype for name, dtype in READ.items() if name not in ("now_content", "now_metadata")},
    )
    hashes = sha256(frame["content"].fill_null("")), sha256(frame["metadata"].fill_null(""))
    return frame.with_columns(hashes[0].alias("now_content"), hashes[1].alias("now_metadata")).select(*READ)


def _parse(read: Read) -> _Parts:
    if read.data is None:
        return _Parts(problem=read.reason, unread=True)
    try:
        return _Parts(*markdown.parse(read.data))
    except markdown.MarkdownError as error:
        return _Parts(problem=str(error))
