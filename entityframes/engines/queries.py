"""The SQL statements of an engine, loaded from its ``.sql`` files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

from entityframes.errors import ConnectError

#: A placeholder in a statement, or a parameter.
_PLACEHOLDER = re.compile(r"\{(\w+)\}|\$(\d+)")

_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def quoted_namespace(namespace: str) -> str:
    """The namespace as a quoted SQL identifier, the only identifier that is substituted into every statement.

    Raises:
        ConnectError: the namespace is not 1 to 63 ASCII letters, digits and underscores, or starts with a digit.
    """
    if not isinstance(namespace, str) or _NAMESPACE.fullmatch(namespace) is None:
        raise ConnectError(
            f"invalid namespace {namespace!r}",
            advice="it must consist of 1 to 63 ASCII letters, digits and underscores, and must not start with a digit",
        )
    return f'"{namespace}"'


@cache
def _read(file: str) -> Mapping[str, Mapping[str, str]]:
    """The statements ("name") and the parts of statements ("part") in a file, by name."""
    text = resources.files("entityframes.engines").joinpath(*file.split("/")).read_text("utf-8")
    pieces = re.split(r"^-- (name|part): (\w+)\n", text, flags=re.MULTILINE)[1:]
    found: dict[str, dict[str, str]] = {"name": {}, "part": {}}
    for kind, name, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        found[kind][name] = _without_comments(body)
    return found


@cache
def _named(file: str) -> Mapping[str, str]:
    """The statements of a file by name, with its own parts and the shared parts of its engine substituted."""
    read, shared = _read(file), _read(f"{file.partition('/')[0]}/shared.sql")
    parts = {**read["part"], **shared["part"]}
    return {name: _with_parts(body, parts) for name, body in read["name"].items()}


def _with_parts(body: str, parts: Mapping[str, str]) -> str:
    for name, part in parts.items():
        body = body.replace(f"{{{name}}}", part)
    return body


def _without_comments(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()


#: The files with the statements of each engine.
FILES = ("engine", "checks", "embedding", "text", "directory", "tables", "earlier")


@cache
def _migrations(engine: str) -> Mapping[int, str]:
    """The migrations by the number of the format that they lead to: one file each, whose statements run together."""
    folder = resources.files("entityframes.engines").joinpath(engine, "migrations")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {int(file.name.removesuffix(".sql")): _without_comments(file.read_text("utf-8")) for file in files}


class Statements:
    """The statements of an engine by name, for one namespace.

    Args:
        engine: the folder of the ``.sql`` files.
        namespace: the schema of the store; None if only statements without ``{schema}`` are used.
        catalog: the name of the database, if schema names have to be qualified with it to be unambiguous.
        files: the files to load.

    Raises:
        ConnectError: the namespace is invalid.
    """

    def __init__(
        self, engine: str, namespace: str | None, catalog: str | None = None, files: Iterable[str] = FILES
    ) -> None:
        self._engine, self._files, self._catalog = engine, tuple(files), catalog
        self._texts: dict[str, str] = {}
        self._values: dict[str, str] = {}
        if namespace is None:
            self._load()
        else:
            self.use(namespace)

    def use(self, namespace: str) -> None:
        """Switch to another namespace."""
        self.namespace = namespace
        schema = quoted_namespace(namespace)
        if self._catalog is not None:
            escaped = self._catalog.replace('"', '""')
            schema = f'"{escaped}".{schema}'
        self._load(schema)

    def _load(self, schema: str = "{schema}") -> None:
        for file in self._files:
            for name, body in _named(f"{self._engine}/{file}.sql").items():
                self._texts[name] = body.replace("{schema}", schema)
        for number, body in _migrations(self._engine).items():
            self._texts[f"migrate_{number}"] = body.replace("{schema}", schema)
        self._substitute()

    def set(self, **values: str) -> None:
        """Substitute text for placeholders in all statements, also after `use`."""
        self._values |= values
        self._substitute()

    def _substitute(self) -> None:
        for placeholder, value in self._values.items():
            self._texts = {name: text.replace(f"{{{placeholder}}}", value) for name, text in self._texts.items()}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def format(self, name: str, placeholders: Mapping[str, object]) -> str:
        """A statement with text substituted for its placeholders in braces, whatever else the text contains.

        Text for "1", "2", ... is substituted for its parameters $1, $2, ...
        """
        return _PLACEHOLDER.sub(lambda found: str(placeholders.get(found[1] or found[2], found[0])), self._texts[name])

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace a part of a statement."""
        self._texts[name] = self._texts[name].replace(old, new)

    def checks(self) -> list[str]:
        """The names of the statements that find inconsistencies."""
        return [name for name in self._texts if name.startswith("find_")]

    def repairs(self, checks: Iterable[str]) -> list[str]:
        """The names of the statements that repair the findings of these checks, in the order in which they must run.

        A repair may make another one necessary: deleting a job may leave due entities without a job, and an added
        ledger row changes the balance. Therefore all repairs from the first one on are run; those that find nothing to
        repair have no effect.
        """
        every = [name for name in self._texts if name.startswith("repair_")]
        selected = [index for index, name in enumerate(every) if name.removeprefix("repair_") in set(checks)]
        return every[min(selected) :] if selected else []


def names(file: str) -> list[str]:
    """The names of the statements in a file, in order."""
    return list(_named(file))
