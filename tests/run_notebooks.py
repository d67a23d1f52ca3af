"""Run the notebooks and store their outputs in them: `python -m tests.run_notebooks [NAME ...]`, such as 01_quickstart.

The outputs are stored without what differs from machine to machine: temporary folders and times of execution.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
#: What the notebooks make with `mkdtemp(prefix="ef-")`.
TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/ef-\w+")


def run(path: Path) -> None:
    """Run a notebook, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=120, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata.language_info.pop("version", None)
    path.write_text(TEMPORARY.sub("/tmp/ef", nbformat.writes(notebook)) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        print(name)
        run(NOTEBOOKS / f"{name}.ipynb")
