"""The interrupt button: how long each kind of call goes on after it is pressed in a kernel, until the kernel is idle.

Each call would last much longer than that: it works on all rows, or is repeated for ever. The button is pressed at
different moments.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server

DEFAULT_ROWS = 500_000
FILES = 10_000
#: Seconds after the call has begun.
MOMENTS = (1.0, 0.2, 2.5, 0.6, 4.0)

SETUP = """
import itertools, time
from pathlib import Path
import polars as pl
import entityframes as ef

store = ef.connect(URL, namespace="interrupted")
version = itertools.count()
def notes(rows=ROWS):
    number = next(version)
    return pl.DataFrame({"n": range(rows)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"),
        content=pl.format("text {} of version {}", "n", pl.lit(number)).repeat_by(5).list.join(" "),
        metadata=pl.struct("n", version=pl.lit(number)),
    )
def pages(rows=1_000):
    for start in itertools.count(0, rows):
        yield pl.DataFrame({"n": range(start, start + rows)}).select(
            entity_type=pl.lit("page"), id=pl.format("p{}", "n"), content=pl.lit("text")
        )
def objects():
    for n in itertools.count():
        yield {"entity_type": "object", "id": f"o{n}", "content": "text", "metadata": {"n": n}}
def numbers(rows=ROWS):
    number = next(version)
    return pl.DataFrame({"id": range(rows), "version": number, "text": "text"}, schema_overrides={"version": pl.Int64})
def folder():
    root = Path("files")
    for n in range(FILES):
        path = root / "file" / f"{n}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"---\\nversion: {next(version)}\\n---\\ntext {n}")
    return ef.DirectorySync(store, root, types=["file"])
store.upsert(notes(), progress=False)
table = ef.create_table(store, "interrupted_numbers", numbers(1), key="id")
table.upsert(numbers(), progress=False)
ids = notes()
"""

#: For each call what is done before, without being measured, and the call.
CALLS = {
    "upsert": ("first, second = notes(), notes()", "while True: store.upsert(first); store.upsert(second)"),
    "upsert, unchanged": ("frame = notes(); store.upsert(frame)", "while True: store.upsert(frame)"),
    "upsert, one by one": ("", "while True: store.upsert_entity('note', 'n0', str(next(version)))"),
    "stream": ("", "store.upsert(pages())"),
    "objects": ("", "store.upsert(objects())"),
    "mirror": ("first, second = notes(), notes()", "while True: store.mirror(first); store.mirror(second)"),
    "plan": ("frame = notes()", "while True: store.plan(frame)"),
    "delete": ("first = notes(); store.upsert(first)", "while True: store.delete(ids); store.upsert(first)"),
    "exists": ("", "while True: store.exists(ids)"),
    "missing": ("", "while True: store.missing(ids)"),
    "get": ("", "while True: store.get(ids)"),
    "read": ("", "while True: store.read('note')"),
    "scan": ("", "while True: store.scan('note').collect()"),
    "scan, filtered": ("", "while True: store.scan('note').filter(pl.col('content').str.contains('x y')).collect()"),
    "count": ("", "while True: store.count('note', pl.col('content').str.len_chars() > 3)"),
    "stats": ("", "while True: store.stats()"),
    "verify": ("", "while True: store.verify()"),
    "embed": ("store.upsert(notes())", "store.embed(ef.HashingEmbedder(256))"),
    "search by words, new": ("store.upsert(notes())", "store.search('text', mode='text')"),
    "search by words": ("store.search('text', mode='text')", "while True: store.search('text', mode='text')"),
    "search by vector": (
        "store.embed(ef.HashingEmbedder(256), progress=False)", "while True: store.search('text of version')"
    ),
    "index": ("store.embed(ef.HashingEmbedder(256), progress=False)", "while True: store.index_space()"),
    "table, upsert": (
        "first, second = numbers(), numbers()", "while True: table.upsert(first); table.upsert(second)"
    ),
    "table, mirror": (
        "first, second = numbers(), numbers()", "while True: table.mirror(first); table.mirror(second)"
    ),
    "table, plan": ("frame = numbers()", "while True: table.plan(frame)"),
    "table, get": ("frame = numbers()", "while True: table.get(frame)"),
    "table, read": ("", "while True: table.read()"),
    "table, scan": ("", "while True: table.scan().collect()"),
    "table, delete": ("frame = numbers()", "while True: table.upsert(frame); table.delete(frame)"),
    "folder, plan": ("files = folder()", "while True: files.plan()"),
    "folder, import": ("files = folder()", "while True: files.import_files(); folder()"),
    "folder, export": (
        "files = folder(); files.import_files(progress=False)",
        "while True: store.upsert(store.read('file').select(entity_type=pl.lit('file'), id='id', content=pl.format("
        "'version {}', pl.lit(next(version))))); files.export_files()",
    ),
}  # fmt: skip


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Each call is interrupted several times."""
    [stored] = rows or [DEFAULT_ROWS]
    with server(postgres) as url:
        for database, address in (("duckdb", "store.duckdb"), ("postgresql", url)):
            if not any(chosen(f"{database} {name}", only) for name in CALLS):
                continue
            with tempfile.TemporaryDirectory() as folder, _kernel(Path(folder)) as kernel:
                setup = f"URL, ROWS, FILES = {address!r}, {stored}, {FILES}\n{SETUP}"
                kernel.run(setup)
                # The first traceback of a kernel takes longer, because IPython imports what formats it.
                kernel.run("raise KeyboardInterrupt")
                for name, (before, call) in CALLS.items():
                    if not chosen(f"{database} {name}", only) or (name == "index" and database == "duckdb"):
                        continue
                    for number in range(repeat):
                        kernel.run(before)
                        error, seconds = kernel.run(call, interrupted=MOMENTS[number % len(MOMENTS)])
                        outcome = None if error == "KeyboardInterrupt" else f"ended before: {error}"
                        measurements.add(
                            OURS, database=database, phase=name, rows=stored, seconds=seconds, outcome=outcome
                        )  # fmt: skip
    calls = measurements.frame().group_by("database", "phase", maintain_order=True)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, fmt_str_lengths=60):
        print(calls.agg(median=pl.col("seconds").median(), longest=pl.col("seconds").max(), presses=pl.len()))


class _Kernel:
    def __init__(self, manager: Any, client: Any) -> None:
        self._manager, self._client = manager, client

    def run(self, code: str, *, interrupted: float | None = None) -> tuple[str | None, float]:
        """Run a cell, interrupt it after a time, and return its error and the seconds from then until it is idle."""
        import queue

        request = self._client.execute(code)
        error, begun, pressed = None, time.monotonic(), 0.0
        while True:
            if interrupted is not None and not pressed and time.monotonic() - begun >= interrupted:
                pressed = time.monotonic()
                self._manager.interrupt_kernel()
            try:
                message = self._client.get_iopub_msg(timeout=0.02 if interrupted is not None and not pressed else 600)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "error":
                error = message["content"]["ename"]
                if error != "KeyboardInterrupt":
                    print("\n".join(message["content"]["traceback"])[-2_000:], file=sys.stderr)
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return error, time.monotonic() - pressed if pressed else 0.0


@contextmanager
def _kernel(folder: Path) -> Iterator[_Kernel]:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield _Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
