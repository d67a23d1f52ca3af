"""A local cluster of Ray, for the tests that need one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import entityframes as ef
from tests.faults.conftest import database, own_databases, own_server  # noqa: F401

#: A store of 200 MB for objects is enough for these tests.
CLUSTER = {"object_store_memory": 200 << 20, "include_dashboard": False, "log_to_driver": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two CPUs, for all tests of a module."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    # A token is for clusters that others can reach.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # A short path, because it contains sockets.
    with tempfile.TemporaryDirectory(prefix="ef-ray-", ignore_cleanup_errors=True) as folder:
        for attempt in range(5):
            try:
                ray.init(num_cpus=2, _temp_dir=f"{folder}/{attempt}", **CLUSTER)
                break
            except Exception as error:
                # Ray waits 30 seconds for its processes, which a busy machine may not start by then.
                ray.shutdown()
                if attempt == 4 or "timed out during startup" not in str(error):
                    raise
        yield ray
        ray.shutdown()


@pytest.fixture
def store_url(postgres_url: str) -> Iterator[str]:
    """The address of an empty store on PostgreSQL, without a password."""
    yield postgres_url
    with ef.connect(postgres_url) as store:
        assert store.verify().is_empty()
