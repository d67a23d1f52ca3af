"""Walking the files under a root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from entityframes.directory.handles import (
    HAS_IDENTITY,
    MARK_BITS,
    MIX,
    TEMPORARY,
    Folder,
    RefusalError,
    describe_error,
    is_text,
    kind,
    open_root,
    shown,
)
from entityframes.directory.ignore import RULES_FILE, Rules, by_name
from entityframes.directory.left_out import FOLDER_LINK, LEFT_OUT, LINK, SUFFIX, UNDERSCORE, count_files
from entityframes.errors import DirectoryError

#: The ending of the name of a quarantined file.
INVALID = ".invalid"

_FILES = {"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "mark": pl.Int64}


@dataclass(frozen=True)
class Walk:
    """The content of a root. The content at and below a refused path is unknown, and therefore not deleted."""

    #: path (relative, with slashes), size, mtime_ns, mark (`Stat.mark`), in no particular order.
    files: pl.DataFrame
    #: The same for files named ``<path>.invalid``; path is without that ending.
    quarantined: pl.DataFrame
    #: path, reason: files with a matching name and folders that cannot be read.
    refused: pl.DataFrame
    #: The refused paths that are folders: their content is unknown.
    unreadable: list[str]
    #: Files and folders that are left out (`LEFT_OUT`).
    left_out: pl.DataFrame
    #: Links to folders: their content is unknown, too.
    links: list[str]
    #: Temporary files of killed processes, for :meth:`Tree.clean`.
    temporary: list[str]


def walk(
    root: str, suffixes: Sequence[str], patterns: Sequence[str], *, hidden: str, rules_bytes: int,
    advance: Callable[[int], None] = lambda files: None,
) -> Walk:  # fmt: skip
    """Find the files under a root; see :meth:`Tree.walk` and the arguments of :class:`Tree`.

    Args:
        root: the folder.
        suffixes: the suffixes of the files.
        patterns: patterns of names to leave out.
        hidden: first characters of names that are left out unless a pattern re-includes them.
        rules_bytes: maximum size of a file of rules.
        advance: called after each folder with the number of its files.
    """
    endings = [suffix.lower() for suffix in suffixes]
    found = _Found((*endings, *(ending + INVALID for ending in endings)), tuple(patterns), hidden, rules_bytes)
    with open_root(root) as folder:
        try:
            found.scan(folder, "", Rules(patterns, hidden=hidden) if patterns else None)
        except (OSError, RefusalError) as error:
            raise DirectoryError(f"the folder {shown(root)} cannot be read: {describe_error(error)}") from error
    advance(len(found.paths))
    while found.folders:
        prefix, rules = found.folders.pop()
        before = len(found.paths)
        try:
            with Folder.open(os.path.join(root, prefix[:-1])) as folder:
                found.scan(folder, prefix, rules)
        except (OSError, RefusalError) as error:
            found.refuse(prefix[:-1], describe_error(error), folder=True)
        advance(len(found.paths) - before)
    return found.result(root)


@dataclass
class _Found:
    """The findings of a walk in progress."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    hidden: str
    rules_bytes: int
    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str, int | None]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    #: Folders still to be scanned, with the rules of their parents.
    folders: list[tuple[str, Rules | None]] = field(default_factory=list)

    def scan(self, folder: Folder, prefix: str, rules: Rules | None) -> None:
        """Scan the entries of one folder."""
        rules = self._rules_of(folder, prefix, rules)
        names, hidden = self.names, self.hidden
        add_path, add_size, add_time = self.paths.append, self.sizes.append, self.times.append
        add_change, add_inode = self.changes.append, self.inodes.append
        with folder.scan() as entries:
            for entry in entries:
                name = entry.name
                try:
                    reason = by_name(name, hidden) if rules is None else _ruled_out(rules, prefix, entry)
                    if reason is not None:
                        self.leave_out(prefix, entry, reason)
                    elif (name.endswith(names) or name.lower().endswith(names)) and entry.is_file(
                        follow_symlinks=False
                    ):
                        status = entry.stat(follow_symlinks=False)
                        add_path(prefix + name)
                        add_size(status.st_size)
                        add_time(status.st_mtime_ns)
                        add_change(status.st_ctime_ns)
                        add_inode(status.st_ino)
                    elif entry.is_dir(follow_symlinks=False):
                        self.folder(prefix + name, rules)
                    else:
                        self.other(prefix, entry)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self.refuse(prefix + name, describe_error(error))

    def _rules_of(self, folder: Folder, prefix: str, above: Rules | None) -> Rules | None:
        """The rules of a folder: those of its parents, and those in its own file of rules."""
        try:
            data = folder.read(RULES_FILE, self.rules_bytes)[0]
        except FileNotFoundError:
            return above
        except (OSError, RefusalError) as error:
            # It is not known what the file would leave out, so nothing in this folder is read.
            raise RefusalError(f"its {RULES_FILE} cannot be read: {describe_error(error)}") from error
        try:
            lines = data.decode("utf-8-sig").split("\n")
            if prefix:
                return Rules(lines, hidden=self.hidden, folder=prefix, above=above)
            return Rules([*self.patterns, *lines], hidden=self.hidden)
        except (UnicodeDecodeError, DirectoryError) as error:
            raise RefusalError(f"its {RULES_FILE} is not valid: {error}") from error

    def leave_out(self, prefix: str, entry: os.DirEntry[str], reason: str) -> None:
        """Record an entry that is left out, unless it is a file of this package."""
        name = entry.name
        if name.startswith(".ef-") and TEMPORARY.fullmatch(name):
            self.temporary.append(prefix + name)
        elif name == RULES_FILE:
            return
        elif entry.is_dir(follow_symlinks=False):
            self.left_out.append((f"{shown(prefix + name)}/", reason, None))
        elif name.lower().endswith(self.names) or name[0] == ".":
            self.left_out.append((shown(prefix + name), reason, 1))
        else:
            self.left_out.append((shown(prefix + name), SUFFIX, 0))

    def folder(self, path: str, rules: Rules | None) -> None:
        """Add a folder to scan."""
        if is_text(path):
            self.folders.append((f"{path}/", rules))
        else:
            self.refuse(path, "its name is not UTF-8", folder=True)

    def other(self, prefix: str, entry: os.DirEntry[str]) -> None:
        """Record an entry that is neither a file with a matching name nor a folder."""
        if entry.is_symlink():
            folder = False
            with contextlib.suppress(OSError):
                folder = entry.is_dir()
            path = shown(prefix + entry.name)
            self.left_out.append((path, FOLDER_LINK if folder else LINK, None))
            if folder:
                self.links.append(path)
        elif entry.name.lower().endswith(self.names):
            self.refuse(prefix + entry.name, kind(entry.stat(follow_symlinks=False).st_mode))
        else:
            self.leave_out(prefix, entry, SUFFIX)

    def refuse(self, path: str, reason: str, *, folder: bool = False) -> None:
        """Record a path that cannot be read."""
        self.refused.append((shown(path), reason))
        if folder:
            self.unreadable.append(shown(path))

    def _are_text(self) -> bool:
        return is_text("\n".join(self.paths))

    def _counted(self, root: str) -> list[tuple[str, str, int | None]]:
        """What is left out, with the number of files in ``_`` folders, in which many static sites keep their pages."""
        return [
            (
                path,
                reason,
                count_files(os.path.join(root, path), self.names) if reason == UNDERSCORE and files is None else files,
            )
            for path, reason, files in self.left_out
        ]

    def result(self, root: str) -> Walk:
        """The result as frames."""
        columns = [self.paths, self.sizes, self.times, _marks(self.times, self.changes, self.inodes)]
        files = pl.DataFrame(dict(zip(_FILES, columns, strict=True)), schema=_FILES) if self._are_text() else None
        if files is None:
            rows = list(zip(*columns, strict=True))
            self.refused += [(shown(path), "its name is not UTF-8") for path, *_ in rows if not is_text(path)]
            files = pl.DataFrame([row for row in rows if is_text(row[0])], schema=_FILES, orient="row")
        invalid = pl.col("path").str.ends_with(INVALID)
        return Walk(
            files=files.filter(~invalid),
            quarantined=files.filter(invalid).with_columns(pl.col("path").str.strip_suffix(INVALID)),
            refused=pl.DataFrame(self.refused, schema={"path": pl.String, "reason": pl.String}, orient="row"),
            unreadable=self.unreadable,
            left_out=pl.DataFrame(self._counted(root), schema=LEFT_OUT, orient="row").sort("path"),
            links=self.links,
            temporary=self.temporary,
        )


def _marks(times: list[int], changes: list[int], inodes: list[int]) -> pl.Series:
    """`Stat.mark` for many files at once."""
    total = np.zeros(len(times), dtype=np.uint64)
    columns = (times, changes, inodes) if HAS_IDENTITY else (times,)
    for column, dtype, factor in zip(columns, (np.int64, np.int64, np.uint64), MIX, strict=False):
        total += np.array(column, dtype=dtype).astype(np.uint64) * np.uint64(factor)
    return pl.Series((total & np.uint64(MARK_BITS)).astype(np.int64))


def _ruled_out(rules: Rules, prefix: str, entry: os.DirEntry[str]) -> str | None:
    """The reason why the rules leave an entry out, or None; quarantined files are checked under their original name."""
    folder = entry.is_dir(follow_symlinks=False)
    return rules.leave_out(prefix + (entry.name if folder else entry.name.removesuffix(INVALID)), folder=folder)
