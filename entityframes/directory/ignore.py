"""Names that a walk leaves out: gitignore rules from the caller and from ``.efignore`` files."""

from __future__ import annotations

from collections.abc import Sequence

from entityframes.directory.left_out import DOT, RULE, UNDERSCORE
from entityframes.errors import DirectoryError

#: The file with the rules for its folder and everything below it.
RULES_FILE = ".efignore"
#: First characters of names that are left out unless a rule re-includes them.
HIDDEN = "._"


class Rules:
    """The rules of one folder, in addition to those of its parent folders.

    Args:
        lines: patterns in gitignore syntax; the last matching pattern wins.
        hidden: first characters of names that are left out unless a rule re-includes them.
        folder: the folder that the patterns are relative to, empty or ending in a slash.
        above: the rules to apply if none of these patterns match.

    Raises:
        DirectoryError: a line is not a valid gitignore pattern.
    """

    def __init__(self, lines: Sequence[str], *, hidden: str, folder: str = "", above: Rules | None = None) -> None:
        from pathspec import GitIgnoreSpec

        self._hidden = hidden
        self._start = len(folder)
        self._above = above
        # A trailing slash matches folders only. It is removed here, because the library matches a name if one of its
        # parent folders matches; the parents have already been checked, and may have been re-included.
        lines = [line if line.endswith("\\ ") else line.rstrip() for line in lines]
        lines = [line for line in lines if line not in ("", "/")]
        try:
            patterns = GitIgnoreSpec.from_lines(line.removesuffix("/") for line in lines).patterns
        except ValueError as error:
            raise DirectoryError(f"invalid ignore pattern: {error}") from error
        self._patterns = [
            (pattern, line.endswith("/"))
            for line, pattern in zip(lines, patterns, strict=True)
            if pattern.include is not None
        ][::-1]

    def leave_out(self, path: str, *, folder: bool) -> str | None:
        """The reason why a path is left out, or None. Must not be called for paths below an ignored folder."""
        below = path[self._start :]
        for pattern, only_folders in self._patterns:
            if only_folders and not folder:
                continue
            found = pattern.match_file(below)
            # The library's expressions have a group that participates only if a parent folder is what matches.
            if found is not None and found.match.lastgroup is None:
                return RULE if pattern.include else None
        if self._above is not None:
            return self._above.leave_out(path, folder=folder)
        return by_name(path[path.rfind("/") + 1 :], self._hidden)


def by_name(name: str, hidden: str) -> str | None:
    """The reason why a name is left out if no rule matches it, or None."""
    return None if name[0] not in hidden else DOT if name[0] == "." else UNDERSCORE
