"""Streams of frames into a table."""

from __future__ import annotations

import polars as pl

import entityframes as ef


def test_frames_whose_keys_have_other_dtypes(store: ef.EntityStore) -> None:
    """Equal keys are found whatever their dtypes, so that the later row wins; odd ones fail alone."""
    table = ef.create_table(store, "things", {"id": pl.Int32, "name": pl.String}, key="id")
    frames = [
        pl.DataFrame({"id": [1, 2], "name": ["a", "b"]}),
        pl.DataFrame({"id": ["02", "x"], "name": ["c", "d"]}),
        pl.DataFrame({"id": [2.0, 3.5], "name": ["e", "f"]}),
    ]
    result = table.upsert(iter(frames))
    assert result.outcomes["status"].to_list() == ["created", "created", "updated", "failed", "updated", "failed"]
    assert table.read().rows() == [(1, "a"), (2, "e")]
