"""A server that is killed and comes back, and a machine that is lost, while tasks write.

The machines are two raylets with temporary folders of their own, and the store is reached over TCP.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.distributed import Entities
from tests.distributed.test_partition import notes
from tests.faults.servers import Server, wait_until

pytestmark = pytest.mark.slow

FILES = 6


def counted(result: Any) -> dict[str, int]:
    return {status: count for status, count in result.counts.items() if count}


@pytest.fixture
def tcp_url(own_server: Server, database: str) -> str:
    """The address of a store with 300 entities, over TCP."""
    url = own_server.url(database)
    with ef.connect(url) as store:
        store.upsert(notes(range(300)))
    return url


def slowly(path: str) -> Any:
    """A function that reads a file with notes in pieces of 100 rows, with pauses."""

    def source() -> Iterator[pl.DataFrame]:
        for piece in pl.read_parquet(path).iter_slices(100):
            time.sleep(0.2)
            yield piece

    return source


@pytest.fixture
def sources(tmp_path: Path) -> list[Any]:
    """Files with 3,600 notes, of which 100 are stored as they are and 200 with another content, and one bad row each."""
    sources = []
    for number in range(FILES):
        rows = pl.concat([notes(range(600 * number, 600 * number + 600), "new")])
        if number == 0:
            rows = pl.concat([notes(range(100)), rows[100:]])
        bad = pl.DataFrame({"entity_type": ["note"], "id": [None], "content": ["x"]}, schema=rows.schema)
        pl.concat([rows, bad]).write_parquet(tmp_path / f"{number}.parquet")
        sources.append(slowly(str(tmp_path / f"{number}.parquet")))
    return sources


#: The counts of a run without faults.
EXPECTED = {"created": 3_300, "updated": 200, "unchanged": 100, "failed": FILES}


def when_some_rows_are_stored(url: str, act: Any) -> threading.Thread:
    """Call a function in a thread once a run has stored some rows."""

    def wait() -> None:
        with ef.connect(url) as store:
            wait_until(lambda: store.count("note") > 600, "some rows to be stored")
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def check(url: str, result: Any, sources: list[Any]) -> None:
    """The counts are exact, the bad rows are named, a second run changes nothing, and the store is sound."""
    from entityframes import ray as ours

    assert counted(result) == EXPECTED, (result, result.partitions.to_dicts())
    assert result.partitions["error"].null_count() == FILES
    assert result.outcomes.select("partition", "row", "rule").rows() == [
        (str(number), 600, "null_key") for number in range(FILES)
    ]
    again = ours.upsert(sources, url, target=Entities(batch_size=100), connections=2)
    assert counted(again) == {"unchanged": 3_600, "failed": FILES}
    with ef.connect(url) as store:
        assert store.count("note") == 3_600
        assert store.verify().is_empty()


def test_the_server_is_killed_and_restarted(
    cluster: Any,
    own_server: Server,
    tcp_url: str,
    sources: list[Any],
) -> None:
    """Tasks wait for it, or are tried again."""
    from entityframes import ray as ours

    def restart() -> None:
        own_server.kill()
        time.sleep(1.0)
        own_server.start()

    thread = when_some_rows_are_stored(tcp_url, restart)
    try:
        result = ours.upsert(sources, tcp_url, target=Entities(batch_size=100), connections=2, retries=5)
    finally:
        thread.join()
    check(tcp_url, result, sources)


def raylet_of(starter: subprocess.Popen[bytes]) -> int | None:
    """The process id of the raylet that a `ray start` has started."""
    import psutil

    found = [child.pid for child in psutil.Process(starter.pid).children(recursive=True) if child.name() == "raylet"]
    return found[0] if found else None


@pytest.fixture
def machines() -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """Ray, connected to a cluster of two raylets, and the process that has started the second one."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    if ray.is_initialized():
        ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = [tempfile.mkdtemp(prefix="ef-ray-") for _ in range(2)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    program = str(Path(sys.executable).parent / "ray")
    shared = ["--num-cpus=1", f"--object-store-memory={100 << 20}", "--disable-usage-stats", "--block"]
    head = [program, "start", "--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    starters = []
    try:
        with open(os.devnull, "wb") as null:
            options = {"env": environment, "stdout": null, "stderr": null, "start_new_session": True}
            starters.append(subprocess.Popen([*head, f"--temp-dir={folders[0]}", *shared], **options))
            wait_until(lambda: _listens(port), "the head to start")
            other = [program, "start", f"--address=127.0.0.1:{port}", f"--temp-dir={folders[1]}", *shared]
            ray.init(address=f"127.0.0.1:{port}", log_to_driver=False)
            starters.append(subprocess.Popen(other, **options))
        wait_until(lambda: ray.cluster_resources().get("CPU") == 2, "the second raylet")
        yield ray, starters[1]
    finally:
        ray.shutdown()
        for starter in starters:
            os.killpg(starter.pid, signal.SIGTERM)
            starter.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def test_a_raylet_is_killed(machines: tuple[Any, subprocess.Popen[bytes]], tcp_url: str, sources: list[Any]) -> None:
    """The partitions of a lost machine are written by the other one."""
    from entityframes import ray as ours

    _, starter = machines
    raylet = wait_until(lambda: raylet_of(starter), "the raylet to start")
    thread = when_some_rows_are_stored(tcp_url, lambda: os.kill(raylet, signal.SIGKILL))
    try:
        result = ours.upsert(sources, tcp_url, target=Entities(batch_size=100), connections=2)
    finally:
        thread.join()
    assert result.partitions["attempts"].max() == 2
    check(tcp_url, result, sources)
