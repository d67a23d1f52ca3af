"""A folder into PostgreSQL with CocoIndex 1.x: one row per file, with its vector; processed files are memoized."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import cocoindex as coco
import numpy as np
import yaml  # noqa: F401 - imported here so that its import time is not counted
from cocoindex.connectors import localfs, postgres
from cocoindex.resources.file import FileLike, PatternFilePathMatcher
from cocoindex.resources.schema import VectorSchema
from numpy.typing import NDArray

from benchmarks.data import DigestEmbedder, front_matter

DATABASE = coco.ContextKey[asyncpg.Pool]("bench_database")
VECTOR = VectorSchema(dtype=np.dtype(np.float32), size=DigestEmbedder.dim)

_target = ""


@coco.lifespan
async def _connected(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    async with asyncpg.create_pool(_target) as pool:
        builder.provide(DATABASE, pool)
        yield


@dataclass
class File:
    entity_type: str
    id: str
    content: str
    metadata: dict[str, Any]
    embedding: Annotated[NDArray[np.float32], VECTOR]


@coco.fn.as_async(batching=True, max_batch_size=DigestEmbedder.max_batch)
def embed(texts: list[str]) -> list[NDArray[np.float32]]:
    return list(DigestEmbedder().embed(texts))


@coco.fn(memo=True)
async def process(file: FileLike, tree: Path, table: postgres.TableTarget[File]) -> None:
    metadata, content = front_matter(await file.read_text())
    kind, _, key = file.file_path.path.relative_to(tree).with_suffix("").as_posix().partition("/")
    table.declare_row(
        row=File(entity_type=kind, id=key, content=content, metadata=metadata, embedding=await embed(content))
    )


@coco.fn
async def main(tree: Path) -> None:
    schema = await postgres.TableSchema.from_class(File, primary_key=["entity_type", "id"])
    table = await postgres.mount_table_target(DATABASE, "files", schema, pg_schema_name="coco")
    files = localfs.walk_dir(tree, recursive=True, path_matcher=PatternFilePathMatcher(included_patterns=["**/*.md"]))
    await coco.mount_each(process, files.items(), tree, table)


def update(tree: Path, target: str) -> float:
    """Bring the table up to date with the folder. Returns the seconds that took, including connecting."""
    global _target
    _target = target
    app = coco.App(coco.AppConfig(name="Bench"), main, tree=tree)
    started = time.perf_counter()
    app.update_blocking()
    return time.perf_counter() - started
