"""The examples in the docstrings of everything that a user can reach: they run as shown, and none is missing."""

from __future__ import annotations

import doctest
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes import distributed, embedding
from entityframes.directory.plan import SyncPlan

NOTES = pl.DataFrame(
    {
        "id": ["a", "b", "c"],
        "content": ["Ada wrote the first program", "Alan broke the Enigma code", "Grace found a moth in the relay"],
        "year": [1843, 1941, 1947],
    }
)


def public_objects() -> dict[str, Any]:
    """Functions and classes by name, and the methods and properties that a class defines itself."""
    found = {name: getattr(module, name) for module in (ef, embedding, distributed) for name in module.__all__}
    # What a method returns that cannot be made otherwise.
    found["SyncPlan"] = SyncPlan
    for name, thing in list(found.items()):
        # The members of a Protocol are implemented by others.
        if inspect.isclass(thing) and not issubclass(thing, Exception) and thing is not embedding.Embedder:
            found |= {f"{name}.{member}": value for member, value in vars(thing).items() if is_public(member, value)}
    return found


def is_public(name: str, member: Any) -> bool:
    kinds = (property, cached_property, classmethod, staticmethod)
    return not name.startswith("_") and (isinstance(member, kinds) or inspect.isroutine(member))


OBJECTS = public_objects()


def doctest_of(name: str, globs: dict[str, Any] | None = None) -> doctest.DocTest:
    """The examples of an object, of which nothing is taken from the module that it is in."""
    [found] = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(
        OBJECTS[name], name, module=False, globs=globs or {}
    )
    return found


WITH_EXAMPLES = [name for name in OBJECTS if doctest_of(name).examples]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, store: ef.EntityStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prints what it shows, on a store of its own with three notes, in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store.upsert(ef.entities(NOTES, "note", id="id", content="content"), progress=False)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(doctest_of(name, {"ef": ef, "pl": pl, "store": store}), out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_public_object_has_an_example() -> None:
    """Functions, classes, methods and properties; of an error a line says when it is raised."""
    assert [name for name, thing in OBJECTS.items() if not thing.__doc__] == []
    errors = {name for name, thing in OBJECTS.items() if inspect.isclass(thing) and issubclass(thing, Exception)}
    without = [name for name in OBJECTS if name not in WITH_EXAMPLES or "Examples:\n" not in OBJECTS[name].__doc__]
    assert sorted(set(without) - errors) == []
