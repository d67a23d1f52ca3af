"""The number of examples of the property tests."""

from __future__ import annotations

import os

#: In percent: ordinary runs try a third of the examples.
SHARE = int(os.environ.get("ENTITYFRAMES_EXAMPLES", "33"))


def examples(count: int) -> int:
    """Scale the full number of examples by `SHARE`."""
    return max(1, count * SHARE // 100)
