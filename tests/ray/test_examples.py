"""The examples in the docstrings of `entityframes.ray` run as shown."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.mark.parametrize("name", ["EntitySink", "embed", "upsert"])
def test_examples_run(name: str, cluster: Any, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on a store of its own, in an empty folder."""
    import ray.data

    import entityframes.ray

    assert name in entityframes.ray.__all__
    ray.data.DataContext.get_current().enable_progress_bars = False
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(recurse=False, exclude_empty=False)
    globs = {"ef": ef, "pl": pl, "url": store_url}
    [found] = finder.find(getattr(entityframes.ray, name), name, module=False, globs=globs)
    assert found.examples
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(found, out=report.append)
    assert runner.failures == 0, "".join(report)
