"""Synthetic entities and trees of markdown files, deterministic for a seed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

_WORDS = ["alpha", "arrow", "batch", "column", "copy", "duck", "entity", "frame", "index", "ingest", "join", "key",
          "ledger", "merge", "note", "polars", "query", "row", "schema", "staging", "table", "upsert"]  # fmt: skip


def entities(rows: int, *, version: int = 0, content_bytes: int = 480, seed: int = 7) -> pl.DataFrame:
    """An entity frame of notes and tasks in no particular order, with typed metadata; about 570 bytes per row.

    Args:
        rows: the height of the frame.
        version: a different version has different contents for the same keys.
        content_bytes: the approximate length of each content.
        seed: a different seed gives different keys.
    """
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(_WORDS, max(content_bytes // 6, 1)))[:content_bytes] for _ in range(64)]
    number = pl.int_range(rows)
    return pl.select(number.alias("n")).select(
        entity_type=pl.when(pl.col("n") % 2 == 0).then(pl.lit("note")).otherwise(pl.lit("task")),
        id=pl.format("{}-{}", pl.col("n").hash(seed), "n"),
        content=pl.format("v{} {} {}", pl.lit(version), "n", pl.lit(pl.Series(texts)).gather(pl.col("n") % 64)),
        metadata=pl.struct(
            title=pl.format("document {}", "n"),
            n="n",
            rating=pl.col("n") % 50 / 10,
            tags=pl.concat_list(pl.lit("a"), pl.lit("b")),
        ),
    )


def change(frame: pl.DataFrame, every: int, version: int) -> pl.DataFrame:
    """Return the frame with a different content in every n-th row."""
    changed = pl.format("v{}{}", pl.lit(version), pl.col("content").str.slice(2))
    return frame.with_columns(
        content=pl.when(pl.int_range(pl.len()) % every == 0).then(changed).otherwise(pl.col("content"))
    )


def notes(folder: Path, files: int, *, seed: int = 7) -> None:
    """Write a tree of markdown with front matter: three types, 50 files per sub-folder, 6.8 KB per file, days old."""
    rng = np.random.default_rng(seed)
    paragraphs = [" ".join(rng.choice(_WORDS, 80)) + ".\n\n" for _ in range(256)]
    changed = time.time_ns() - 864_000_000_000_000
    for number in range(files):
        path = folder / ("guide", "note", "post")[number % 3] / f"part-{number // 150}" / f"about-{number:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = rng.integers(len(paragraphs), size=rng.integers(2, 25))
        tags = rng.choice(_WORDS, 3, replace=False)
        front = (
            f"---\ntitle: All about {tags[0]}, part {number}\ndate: 2026-{number % 12 + 1:02}-{number % 28 + 1:02}\n"
            f"author: writer {number % 17}\ntags: [{', '.join(tags)}]\nrating: {number % 50 / 10}\n"
            f"draft: {'true' if number % 9 == 0 else 'false'}\n---\n"
        )
        path.write_text(front + "".join(paragraphs[index] for index in chosen), "utf-8", newline="")
        os.utime(path, ns=(changed + number, changed + number))


def edit_note(path: Path, version: int) -> None:
    """Append a line to a file and advance its modification time by one second."""
    before = path.stat().st_mtime_ns
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(f"Added in version {version}.\n")
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the metadata, as JSON represents it, and the content."""
    import yaml

    if not text.startswith("---\n"):
        return {}, text
    header, _, content = text[4:].partition("\n---\n")
    return json.loads(json.dumps(yaml.load(header, yaml.CSafeLoader), default=str)), content


class DigestEmbedder:
    """64 numbers from a hash of the text: almost free, so that everything else is measured."""

    name, dim, max_batch = "digest-64", 64, 1024

    def embed(self, texts: Sequence[str], /) -> Any:
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=64).digest() for text in texts)
        return np.frombuffer(digests, np.uint8).reshape(len(texts), 64).astype(np.float32) - 127.5
