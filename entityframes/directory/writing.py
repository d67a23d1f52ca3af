"""Entities into files: fetched, rendered and written in threads, a chunk at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import polars as pl

from entityframes.directory import markdown
from entityframes.directory.tree import Tree, Write
from entityframes.engines.base import Engine
from entityframes.engines.directory import FILED
from entityframes.frames.schema import KEY

#: Entities fetched and written at once by one thread, and threads: waiting for the disk is most of it.
CHUNK = 128
THREADS = 8


class Rendered(NamedTuple):
    """An entity as the bytes of a file."""

    data: bytes
    #: What of it comes before the content.
    header: bytes
    content_hash: bytes
    metadata_hash: bytes
    #: Microseconds since 1970.
    updated_at: int


def rendered(engine: Engine, keys: pl.DataFrame) -> list[Rendered | str]:
    """Each entity as a file, or why it cannot be one.

    A front matter stays as it was, byte for byte, where the metadata is still what it says.
    """
    files: list[Rendered | str] = ["the entity was deleted just now"] * keys.height
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
    """Bytes and header of an entity's file."""
    known: bytes = b"" if origin is None else origin["header"]
    told = b"---" in known or entity["metadata"] == "{}"
    if origin is not None and origin["metadata_hash"] == metadata_hash and told:
        data = markdown.join(known, entity["content"])
    else:
        data = markdown.render(entity["metadata"], entity["content"], known)
    return data, data[: len(data) - len(entity["content"].encode())]


def write_in_chunks(
    engine: Engine, tree: Tree, rows: pl.DataFrame, stopping: Callable[[], bool]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Write entities to the paths of some rows.

    Args:
        engine, tree: where the entities are, and where they go.
        rows: path, entity_type, id; file_hash of the bytes of the file that is to be replaced, null for a new one.
        stopping: whether no more chunks are wanted.

    Yields:
        Rows with problem (null where the file was written), and what is to be remembered of those written (`FILED`);
        in the order in which they are done.
    """
    pieces = list(rows.sort("path").with_row_index("place").iter_slices(CHUNK))
    with ThreadPoolExecutor(min(THREADS, max(len(pieces), 1)), thread_name_prefix="entityframes-write") as threads:
        # A thread that has not begun looks before it does.
        work = [threads.submit(_write, engine, tree, piece, stopping) for piece in pieces]
        for done in as_completed(work):
            if (answer := done.result()) is not None:
                yield answer


def _write(
    engine: Engine, tree: Tree, rows: pl.DataFrame, stopping: Callable[[], bool]
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    if stopping():
        return None
    files = rendered(engine, rows.select(KEY))
    writes = []
    for row, file in zip(rows.iter_rows(named=True), files, strict=True):
        if isinstance(file, Rendered):
            # Entities of one batch have one time. Their files have several, a microsecond apart: others than we, too,
            # tell files by size and time.
            mtime_ns = (file.updated_at - row["place"]) * 1000
            writes.append(Write(row["path"], file.data, mtime_ns, row["file_hash"]))
    written = iter(tree.write(writes))
    problems: list[str | None] = []
    filed = []
    for row, file in zip(rows.iter_rows(named=True), files, strict=True):
        if isinstance(file, str):
            problems.append(file)
            continue
        told = next(written)
        problems.append(told.reason)
        if told.stat is not None:
            mark = told.stat.mark if told.settled else -1
            hashes = (hashlib.sha256(file.data).digest(), file.content_hash, file.metadata_hash)
            filed.append((row["path"], row["entity_type"], row["id"], told.stat.size, mark, *hashes, file.header))
    problem = pl.Series("problem", problems, dtype=pl.String)
    return rows.drop("place").with_columns(problem), pl.DataFrame(filed, FILED, orient="row")
