"""How many examples the tests of properties try."""

from __future__ import annotations

import os

#: In percent; a run for every day makes do with a third.
SHARE = int(os.environ.get("ENTITYFRAMES_EXAMPLES", "33"))


def examples(count: int) -> int:
    """What is tried of so many."""
    return max(1, count * SHARE // 100)
