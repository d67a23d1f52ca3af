"""The colors of statuses, actions and states, in results, plans and progress bars alike."""

from __future__ import annotations

_GREEN, _BLUE, _SKY, _PURPLE, _PINK = "#009E73", "#0072B2", "#3D93C9", "#8257B8", "#C7669B"
_GRAY, _OLIVE, _AMBER, _RED, _BROWN = "#8A8A8A", "#9A8500", "#D17F00", "#D8402A", "#9C6033"

#: One color for each status of a row, action of a plan and state of a job. They follow the palette of Okabe and Ito
#: (2008), for color-blind readers; each has a contrast of at least 3 on white and on a dark background (#111111).
COLORS = {
    "created": _GREEN,
    "updated": _BLUE,
    "unchanged": _GRAY,
    "renamed": _SKY,
    "exported": _BLUE,
    "deleted": _PURPLE,
    "embedded": _GREEN,
    "skipped": _GRAY,
    "missing": _GRAY,
    "duplicate": _PINK,
    "conflict": _OLIVE,
    "failed": _RED,
    "cancelled": _AMBER,
    "unknown": _BROWN,
    # The actions of plans that are not called like a status.
    "create": _GREEN,
    "update": _BLUE,
    "delete": _PURPLE,
    "rename": _SKY,
    "export": _BLUE,
    "invalid": _RED,
    # The states of jobs that are not called like a status.
    "pending": _GRAY,
    "running": _BLUE,
    "done": _GREEN,
}

#: Of work without statuses, and of a track that is not filled yet.
PLAIN = _BLUE
TRACK = "rgba(128,128,128,0.25)"
