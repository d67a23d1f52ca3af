"""Random edits of files and entities: no edit is lost, on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

import entityframes as ef
from tests.directory.edits import Script, make_tree


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_nothing_written_is_lost(store: ef.EntityStore, tmp_path: Path, seed: int) -> None:
    """For any edits, moves, invalid files and deletions on either side, whichever side wins."""
    root = tmp_path / "root"
    root.mkdir()
    make_tree(root, seed)
    Script(store, root, seed).run(rounds=6)
