"""The interrupt button of a notebook, in a real kernel: every kind of call stops soon, and says what is stored."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

#: Seconds within which a call has to stop; the machine that runs the tests may be busy.
BOUND = 20.0

#: Calls that take long, and how a cell counts what is stored. `begun` is set once the call is under way.
SETUP = """
import sys, threading, time
import polars as pl
import entityframes as ef

store = ef.connect(sys.argv_url)
def notes(start, rows):
    return pl.DataFrame({"n": range(start, start + rows)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("text {} ", "n").repeat_by(5).list.join("")
    )
def source():
    for start in range(0, 100_000_000, 500):
        yield notes(start, 500)
def begun(done, total):
    if done:
        print("begun", flush=True)
class Slow(ef.HashingEmbedder):
    def embed(self, texts, /):
        time.sleep(0.05)
        return super().embed(texts)
"""

CALLS: dict[str, tuple[str, str, str]] = {
    # What is there before, the call, and what is stored afterwards by status.
    "upsert": ("", "store.upsert(notes(0, 300_000), batch_size=500, progress=begun)", "created"),
    "stream": ("", "store.upsert(source(), batch_size=500, progress=begun)", "created"),
    "delete": (
        "import entityframes.writing.delete as d; d.DELETE_ROWS = 100; store.upsert(notes(0, 20_000))",
        "store.delete(notes(0, 20_000), progress=begun)", "left",
    ),
    "embed": (
        "import entityframes.embedding.worker as w; w.WRITE_SECONDS = 0.1; store.upsert(notes(0, 5_000), batch_size=100)",
        "store.embed(Slow(16, max_batch=10), progress=lambda done, total: begun(done >= 500, total))", "embedded",
    ),
    "read": ("store.upsert(notes(0, 20_000))", "while True: store.read('note', progress=begun)", ""),
    "get": ("store.upsert(notes(0, 20_000))", "while True: store.get(notes(0, 20_000), progress=begun)", ""),
    "exists": ("store.upsert(notes(0, 20_000))", "while True: store.exists(notes(0, 20_000), progress=begun)", ""),
    "plan": ("store.upsert(notes(0, 20_000))", "while True: store.plan(notes(0, 20_000), progress=begun)", ""),
    "verify": ("store.upsert(notes(0, 20_000))", "while True: store.verify(progress=begun)", ""),
    "scan": ("store.upsert(notes(0, 20_000))", "while True: begun(store.scan('note').collect().height, None)", ""),
    "search": ("store.upsert(notes(0, 20_000))", "while True: begun(len(store.search('text', mode='text')), None)", ""),
    "mirror": ("", "store.mirror(notes(0, 300_000), batch_size=500, progress=begun)", "created"),
    "table": (
        "t = ef.create_table(store, 'numbers', {'id': pl.Int64}, key='id')",
        "t.upsert(pl.DataFrame({'id': range(300_000)}), batch_size=500, progress=begun)", "rows",
    ),
}  # fmt: skip


class Kernel:
    """A kernel, and the outputs of its cells."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager, self._client = manager, client
        #: The displayed outputs in all their states.
        self.shown: list[dict[str, str]] = []

    def run(self, code: str, *, interrupted: bool = False) -> tuple[str, Any, float]:
        """Run a cell, which is interrupted once it has begun.

        Returns:
            What it printed; the content of its error or None; and the seconds from the interrupt to the end.
        """
        request = self._client.execute(code)
        text, error, pressed = "", None, 0.0
        while True:
            message = self._client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
                if interrupted and not pressed and "begun" in text:
                    self._manager.interrupt_kernel()
                    pressed = time.monotonic()
            elif message["msg_type"] in ("display_data", "update_display_data"):
                self.shown.append(content["data"])
            elif message["msg_type"] == "error":
                error = content
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return text, error, time.monotonic() - pressed


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), env=dict(os.environ))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CALLS)
def test_the_interrupt_button(kernel: Kernel, url: str, name: str) -> None:
    """The call ends; its note counts what the store counts; and the store works, and is consistent."""
    before, call, stored = CALLS[name]
    _, error, _ = kernel.run(SETUP.replace("sys.argv_url", repr(url)) + before)
    assert error is None, error
    _, error, seconds = kernel.run(call, interrupted=True)
    assert error is not None
    assert error["ename"] == "KeyboardInterrupt", "\n".join(error["traceback"])
    assert seconds < BOUND
    shown = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(error["traceback"]))
    assert "/entityframes/" not in shown or name == "scan", shown
    counts = "store.stats()[['entities', 'embedded']].sum().row(0)"
    text, error, _ = kernel.run(f"print(*{counts}); print(store.verify().height)")
    assert error is None, error
    entities, embedded, inconsistencies = map(int, text.split())
    assert inconsistencies == 0
    if not stored:
        return
    numbers = {status: int(n.replace(",", "")) for n, status in re.findall(r"(\d[\d,]*) ([a-z]+)[,.]", shown)}
    if stored == "rows":
        entities = int(kernel.run("print(t.read().height)")[0])
    expected = {"created": entities, "rows": entities, "left": 20_000 - entities, "embedded": embedded}[stored]
    status = {"rows": "created", "left": "deleted"}.get(stored, stored)
    assert numbers.get(status, 0) == expected, shown
    assert "Run the same call again to continue." in shown


@pytest.mark.slow
@pytest.mark.duckdb
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_a_bar_in_a_notebook(kernel: Kernel) -> None:
    """It is HTML, which is drawn again and again in one output, and needs no widgets."""
    code = SETUP.replace("sys.argv_url", "':memory:'") + "import entityframes.progress as p; p.DELAY = 0.0\n"
    # Polars calls a scan in a thread of its own.
    scan = "store.scan('note').collect().height"
    _, error, _ = kernel.run(
        code + f"store.upsert(notes(0, 20_000), batch_size=500); {scan}; store.read('note').height"
    )
    assert error is None, error
    assert {kind for output in kernel.shown for kind in output} == {"text/html", "text/plain"}
    assert any("20,000 created" in output["text/html"] for output in kernel.shown)
    assert any("created=20,000" in output["text/plain"] for output in kernel.shown)
    assert any("scan: 100%" in output["text/html"] for output in kernel.shown)
    assert "read: 100%" in kernel.shown[-1]["text/html"]
