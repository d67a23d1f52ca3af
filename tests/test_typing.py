"""What a type checker says of a script that uses the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "user_scripts"

pytestmark = pytest.mark.duckdb


def lines_with_errors(script: str, cache: Path) -> list[int]:
    """The lines of a script in which mypy finds errors."""
    from mypy import api

    options = ["--strict", "--no-error-summary", f"--cache-dir={cache}"]
    printed, failure, _ = api.run([*options, str(FOLDER / script)])
    assert failure == ""
    return sorted({int(line) for line in re.findall(rf"{re.escape(script)}:(\d+): error", printed)})


@pytest.mark.slow
def test_types_fit_what_users_write_and_find_their_mistakes(tmp_path: Path) -> None:
    """Nothing is reported in a script without mistakes, and each mistake of another one is."""
    assert lines_with_errors("user.py", tmp_path) == []
    lines = (FOLDER / "mistakes.py").read_text("utf-8").splitlines()
    planted = [number for number, line in enumerate(lines, 1) if "  # " in line]
    assert len(planted) >= 6
    assert lines_with_errors("mistakes.py", tmp_path) == planted


def test_the_package_says_that_it_has_types() -> None:
    """Otherwise type checkers ignore them."""
    import entityframes

    assert (Path(entityframes.__file__).parent / "py.typed").is_file()
