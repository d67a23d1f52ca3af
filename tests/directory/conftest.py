"""A folder of notes that has not been synced yet."""

from __future__ import annotations

from pathlib import Path

import pytest

import entityframes as ef


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    root.mkdir()
    return root


@pytest.fixture
def folder(store: ef.EntityStore, root: Path) -> ef.DirectorySync:
    return ef.DirectorySync(store, root)
