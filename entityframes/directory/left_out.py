"""What a walk leaves out, and why: everything that is left out of a folder is reported."""

from __future__ import annotations

import os

import polars as pl

#: Reasons why a name is left out.
DOT = "its name begins with ."
UNDERSCORE = "its name begins with _"
RULE = "a rule ignores it"
SUFFIX = "it has another suffix"
LINK = "it is a link"
FOLDER_LINK = "it is a link to a folder"

#: Columns of `SyncResult.left_out`: ``path`` (a folder ends in a slash, and its whole content is left out), ``reason``,
#: and ``files``: the number of files with one of the suffixes, null if they were not counted.
LEFT_OUT = pl.Schema({"path": pl.String(), "reason": pl.String(), "files": pl.UInt32()})

#: Maximum number of names visited to count the files of one ignored folder.
_MAX_NAMES = 100_000
#: Maximum number of names in a note.
_SHOWN = 5


def count_files(path: str, endings: tuple[str, ...]) -> int | None:
    """Number of files in a folder with one of the endings, hidden ones excluded; None if there are too many names."""
    found = visited = 0
    for _, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "."]
        found += sum(name[0] != "." and name.lower().endswith(endings) for name in names)
        visited += len(folders) + len(names)
        if visited > _MAX_NAMES:
            return None
    return found


def notes(left_out: pl.DataFrame) -> list[str]:
    """One line per reason, with the first few names that were left out for it."""
    lines = []
    for (reason,), rows in left_out.sort("path").group_by("reason", maintain_order=True):
        paths = rows["path"].to_list()
        if reason == SUFFIX:
            counted = rows["path"].str.extract(r"[^/](\.[^./]*)$").fill_null("without one").value_counts(sort=True)
            kinds = [f"{count:,} {suffix}" for suffix, count in counted.sort("count", descending=True).iter_rows()]
            lines.append(f"files with other suffixes are left out ({_listed(kinds)})")
        elif reason in (LINK, FOLDER_LINK):
            what = "links" if reason == LINK else "links to folders"
            lines.append(f"{what} are not followed ({_listed(paths)})")
        elif reason == RULE:
            lines.append(f"names that a rule ignores are left out ({_listed(paths)})")
        else:
            within, files = "", int(rows["files"].sum())
            remedy = ""
            if reason == UNDERSCORE:
                within = f", {files:,} {'file' if files == 1 else 'files'} in all"
                remedy = ": ignore=['!_*'] takes them in"
            names = _listed([path.rstrip("/") for path in paths])
            lines.append(f"names that begin with {reason[-1]} are left out{within} ({names}){remedy}")
    return lines


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
