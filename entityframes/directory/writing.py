"""Writing entities to files: fetched, rendered and written in threads, in chunks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import polars as pl

from entityframes.directory import markdown
from entityframes.directory.tree import Tree, Write
from entityframes.engines.base import Engine
from entityframes.engines.directory import FILED
from entityframes.frames.schema import KEY

#: Entities per chunk, which is written by one thread, and number of threads: most of the time is spent on disk I/O.
CHUNK = 128
THREADS = 8


class Rendered(NamedTuple):
    """An entity rendered as a file."""

    data: bytes
    #: The bytes before the content.
    header: bytes
    content_hash: bytes
    metadata_hash: bytes
    #: Microseconds since 1970.
    updated_at: int


def render(engine: Engine, keys: pl.DataFrame) -> list[Rendered | str]:
    """Each entity as a file, or the reason why it cannot be one, in the order of `keys`.

    Front matter that still matches the metadata is preserved byte for byte.
    """
    files: list[Rendered | str] = ["the entity was deleted during the sync"] * keys.height
    origins = {row["position"]: row for row in engine.directory.origins(keys).iter_rows(named=True)}
    entities = engine.lookup(keys).with_columns(pl.col("updated_at").dt.epoch("us"))
    for entity in entities.iter_rows(named=True):
        metadata_hash = hashlib.sha256(entity["metadata"].encode()).digest()
        origin = origins.get(entity["position"])
        try:
            data, header = _file(entity, origin, metadata_hash)
        except markdown.MarkdownError as error:
            files[entity["position"]] = f"cannot be written as markdown: {error}"
            continue
        content_hash = bytes.fromhex(entity["content_hash"])
        files[entity["position"]] = Rendered(data, header, content_hash, metadata_hash, entity["updated_at"])
    return files


def _file(entity: dict[str, Any], origin: dict[str, Any] | None, metadata_hash: bytes) -> tuple[bytes, bytes]:
    """The bytes and the header of an entity's file."""
    known: bytes = b"" if origin is None else origin["header"]
    explicit = b"---" in known or entity["metadata"] == "{}"
    if origin is not None and origin["metadata_hash"] == metadata_hash and explicit:
        data = markdown.join(known, entity["content"])
    else:
        data = markdown.render(entity["metadata"], entity["content"], known)
    return data, data[: len(data) - len(entity["content"].encode())]


def write_in_chunks(
    engine: Engine, tree: Tree, rows: pl.DataFrame, stopping: Callable[[], bool]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Write entities to the paths of some rows.

    Args:
        engine: the source of the entities.
        tree: the folder to write to.
        rows: path, entity_type, id; file_hash of the bytes of the file to replace, null for a new file.
        stopping: returns whether to stop before the next file.

    Yields:
        Chunks in order of completion: the rows with problem (null if the file was written), and the state to record
        for the files that were written (`FILED`). Rows that were not reached are in none.
    """
    pieces = list(rows.sort("path").with_row_index("place").iter_slices(CHUNK))
    ended = threading.Event()
    threads = ThreadPoolExecutor(min(THREADS, max(len(pieces), 1)), thread_name_prefix="entityframes-write")
    try:
        work = [threads.submit(_write, engine, tree, piece, lambda: ended.is_set() or stopping()) for piece in pieces]
        for done in as_completed(work):
            if (answer := done.result()) is not None:
                yield answer
    finally:
        # After Ctrl-C, the threads write no further files.
        ended.set()
        threads.shutdown(cancel_futures=True)


def _write(
    engine: Engine, tree: Tree, rows: pl.DataFrame, stopping: Callable[[], bool]
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    if stopping():
        return None
    files = render(engine, rows.select(KEY))
    writes = []
    for row, file in zip(rows.iter_rows(named=True), files, strict=True):
        if isinstance(file, Rendered):
            # The entities of one batch share a timestamp. Their files get timestamps a microsecond apart, because other
            # programs, too, detect changes by size and time.
            mtime_ns = (file.updated_at - row["place"]) * 1000
            writes.append(Write(row["path"], file.data, mtime_ns, row["file_hash"]))
    written = iter(tree.write(writes, stopping))
    problems: list[str | None] = []
    reached = []
    filed = []
    for row, file in zip(rows.iter_rows(named=True), files, strict=True):
        if isinstance(file, str):
            problems.append(file)
            reached.append(True)
            continue
        outcome = next(written)
        problems.append(outcome.reason)
        reached.append(outcome.stat is not None or outcome.reason is not None)
        if outcome.stat is not None:
            mark = outcome.stat.mark if outcome.stable else -1
            hashes = (hashlib.sha256(file.data).digest(), file.content_hash, file.metadata_hash)
            filed.append((row["path"], row["entity_type"], row["id"], outcome.stat.size, mark, *hashes, file.header))
    problem = pl.Series("problem", problems, dtype=pl.String)
    rows = rows.drop("place").with_columns(problem).filter(pl.Series(reached, dtype=pl.Boolean))
    return rows, pl.DataFrame(filed, FILED, orient="row")
