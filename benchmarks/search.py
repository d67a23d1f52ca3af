"""Search over passages: by vector, by words and both, with filters; exact, and with an index and its recall.

Every entity has ten passages. Their vectors have 256 dimensions and are in clusters, as those of real texts are.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import entityframes as ef
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server

DEFAULT_ROWS = (10_000,)
PASSAGES_OF_ONE, DIM, CLUSTERS, SEARCHES, K = 10, 256, 500, 50, 10
#: A filter that one entity in a hundred passes.
FEW = pl.col("section") == 7

_WORDS = np.array(
    [f"{first}{second}on" for first in "bcdfghklmnpqrstvwz" for second in ("a", "e", "i", "o", "u", "ai")]
)
_CENTERS = np.random.default_rng(0).normal(size=(CLUSTERS, DIM)).astype(np.float32)


class Clustered:
    """Vectors that are near one of a few hundred centers; which one depends on the text."""

    name, dim, max_batch = "clustered", DIM, 4_096

    def embed(self, texts: Sequence[str], /) -> Any:
        vectors = np.empty((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            vectors[row] = _CENTERS[seed % CLUSTERS] + 0.8 * np.random.default_rng(seed).normal(size=DIM)
        return vectors


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """`rows` is the number of entities."""
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder:
        for size in rows or DEFAULT_ROWS:
            for database, target in (("duckdb", str(Path(folder) / f"{size}.duckdb")), ("postgresql", url)):
                if chosen(f"{OURS} {database}", only):
                    _search(measurements, database, target, size)


def _pages(count: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    texts = [
        "\n\n".join(f"## {n} {part}\n\n{' '.join(rng.choice(_WORDS, 55))}" for part in range(PASSAGES_OF_ONE))
        for n in range(count)
    ]
    frame = pl.DataFrame({"id": [f"p{n:07}" for n in range(count)], "text": texts, "section": np.arange(count) % 100})
    return ef.entities(frame, "page", id="id", content="text")


def _search(measurements: Measurements, database: str, target: str, size: int) -> None:
    with ef.connect(target, namespace="search") as store:
        store._engine.drop()
    with ef.connect(target, namespace="search") as store:
        store.upsert(_pages(size, measurements.seed), progress=False)
        where = {"database": database, "rows": size * PASSAGES_OF_ONE}
        with measurements.timed(OURS, phase="embed", **where):
            store.embed(Clustered(), passages=ef.Passages(size=400), progress=False)
        rng = np.random.default_rng(1)
        vectors = [center + 0.8 * rng.normal(size=DIM) for center in rng.choice(_CENTERS, SEARCHES)]
        words = [" ".join(rng.choice(_WORDS, 3)) for _ in range(SEARCHES)]
        searches: dict[str, Callable[[int], pl.DataFrame]] = {
            "vector": lambda n: store.search(vectors[n], k=K),
            "vector, a type": lambda n: store.search(vectors[n], k=K, entity_type="page"),
            "vector, filter 1 %": lambda n: store.search(vectors[n], k=K, entity_type="page", where=FEW),
            "words": lambda n: store.search(words[n], k=K, mode="text"),
            "hybrid": lambda n: store.search(words[n], k=K, mode="hybrid", embedder=Clustered()),
        }
        searches["words"](0)  # Builds the index of words.
        exact = {name: _timed(measurements, f"{name}", search, where) for name, search in searches.items()}
        if store.index_space():
            for name in list(searches)[:3]:
                found = _timed(measurements, f"{name}, HNSW", searches[name], where)
                pairs = zip(found, exact[name], strict=True)
                recall = np.mean([len(set(one["id"]) & set(other["id"])) / other.height for one, other in pairs])
                print(f"  recall of {name} with HNSW: {recall:.3f}")


def _timed(
    measurements: Measurements, phase: str, search: Callable[[int], pl.DataFrame], where: dict[str, Any]
) -> list[pl.DataFrame]:
    """Run all searches, and record the duration of each."""
    results = []
    for number in range(SEARCHES):
        started = time.perf_counter()
        results.append(search(number))
        measurements.add(OURS, phase=phase, seconds=time.perf_counter() - started, **where)
    return results
