"""Which names a walk leaves out: gitignore rules of the caller and of the ``.efignore`` files on the way."""

from __future__ import annotations

from collections.abc import Sequence

from entityframes.directory.left_out import DOT, RULE, UNDERSCORE
from entityframes.errors import DirectoryError

#: The file that holds the rules of its folder and of what is below it.
RULES_FILE = ".efignore"
#: What the names begin with that are left out unless a rule takes them back in.
HIDDEN = "._"


class Rules:
    """The rules of one folder, on top of those of the folders above it.

    Args:
        lines: patterns in gitignore's syntax; the last one that matches a name decides.
        hidden: what the names begin with that are left out where no rule says otherwise.
        folder: the folder that the patterns are relative to, empty or ending in a slash.
        above: what decides where none of these patterns match.

    Raises:
        DirectoryError: a line is no gitignore pattern.
    """

    def __init__(self, lines: Sequence[str], *, hidden: str, folder: str = "", above: Rules | None = None) -> None:
        from pathspec import GitIgnoreSpec

        self._hidden = hidden
        self._start = len(folder)
        self._above = above
        # A slash at the end asks for a folder. It is taken off, because the library takes a name for matched if a
        # folder above it is; but those have been asked about already, and may have been taken back in.
        lines = [line if line.endswith("\\ ") else line.rstrip() for line in lines]
        lines = [line for line in lines if line not in ("", "/")]
        try:
            patterns = GitIgnoreSpec.from_lines(line.removesuffix("/") for line in lines).patterns
        except ValueError as error:
            raise DirectoryError(f"a rule of what to leave out is not understood: {error}") from error
        self._patterns = [
            (pattern, line.endswith("/"))
            for line, pattern in zip(lines, patterns, strict=True)
            if pattern.include is not None
        ][::-1]

    def leave_out(self, path: str, *, folder: bool) -> str | None:
        """Why a path is left out, or None. What is below a folder that is, is not asked about."""
        below = path[self._start :]
        for pattern, only_folders in self._patterns:
            if only_folders and not folder:
                continue
            found = pattern.match_file(below)
            # The library's expressions have a group that takes part only if a folder above is what matches.
            if found is not None and found.match.lastgroup is None:
                return RULE if pattern.include else None
        if self._above is not None:
            return self._above.leave_out(path, folder=folder)
        return by_name(path[path.rfind("/") + 1 :], self._hidden)


def by_name(name: str, hidden: str) -> str | None:
    """Why a name is left out where no rule says anything of it, or None."""
    return None if name[0] not in hidden else DOT if name[0] == "." else UNDERSCORE
