"""Loads the statements of an engine from its ``.sql`` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from entityframes.errors import ConnectError

_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def quoted_namespace(namespace: str) -> str:
    """The namespace as a quoted SQL identifier, the only name that is ever put into a statement.

    Raises:
        ConnectError: it is not 1 to 63 ASCII letters, digits and underscores, starting with no digit.
    """
    if not isinstance(namespace, str) or _NAMESPACE.fullmatch(namespace) is None:
        raise ConnectError(
            f"namespace {namespace!r} cannot be used: it is 1 to 63 ASCII letters, digits and underscores, "
            "not starting with a digit"
        )
    return f'"{namespace}"'


@cache
def _named(file: str) -> Mapping[str, str]:
    """The statements of a file, with the parts that several of them share put in."""
    text = resources.files("entityframes.engines").joinpath(*file.split("/")).read_text("utf-8")
    pieces = re.split(r"^-- (name|part): (\w+)\n", text, flags=re.MULTILINE)[1:]
    named: dict[str, dict[str, str]] = {"name": {}, "part": {}}
    for kind, name, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        named[kind][name] = _without_comments(body)
    return {name: _with_parts(body, named["part"]) for name, body in named["name"].items()}


def _with_parts(body: str, parts: Mapping[str, str]) -> str:
    for name, part in parts.items():
        body = body.replace(f"{{{name}}}", part)
    return body


def _without_comments(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()


def load(file: str, namespace: str, catalog: str | None = None) -> dict[str, str]:
    """The statements of `file` by name, for one namespace, in a database whose name may be the same.

    Raises:
        ConnectError: the namespace cannot be used.
    """
    schema = quoted_namespace(namespace)
    if catalog is not None:
        escaped = catalog.replace('"', '""')
        schema = f'"{escaped}".{schema}'
    return {name: body.replace("{schema}", schema) for name, body in _named(file).items()}


def mending(statements: Mapping[str, str], checks: list[str]) -> list[str]:
    """The names of the statements that mend what these checks find, in the order in which they have to run.

    What is mended may call for more: a job that goes may leave entities without one, a ledger row that comes changes
    the balance. So all from the first one on are run; they do nothing where nothing is wrong.
    """
    every = [name for name in statements if name.startswith("mend_")]
    wanted = [place for place, name in enumerate(every) if name.removeprefix("mend_") in checks]
    return every[min(wanted) :] if wanted else []


def names(file: str) -> list[str]:
    """The names of the statements in `file`, in order."""
    return list(_named(file))
