"""The colors of statuses in notebooks: readable on white and on black, and to people who are color-blind.

Most are from the palette of Okabe and Ito (2008). All are written so that the sanitizer of JupyterLab, which cleans the
outputs of a notebook that is not trusted, keeps them: it knows no ``currentColor``.
"""

from __future__ import annotations

STATUS_COLORS = {
    "created": "#009E73",
    "updated": "#0072B2",
    "unchanged": "#999999",
    "renamed": "#56B4E9",
    "exported": "#0072B2",
    "deleted": "#009E73",
    "embedded": "#009E73",
    "skipped": "#999999",
    "missing": "#999999",
    "duplicate": "#CC79A7",
    "conflict": "#F0E442",
    "failed": "#D55E00",
    "cancelled": "#E69F00",
    "unknown": "#785EF0",
}

#: Of work without statuses, and of a track that is not filled yet.
PLAIN = "#0072B2"
TRACK = "rgba(128,128,128,0.25)"
