"""A private server for tests that damage it, a database for each test, and a proxy in front of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import entityframes as ef
from tests.databases import Databases
from tests.faults.servers import Proxy, Server


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A PostgreSQL server that may be killed; a test that kills it must start it again."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def own_databases(own_server: Server) -> Iterator[Databases]:
    """Databases with an empty store on that server, reused from test to test."""
    databases = Databases(own_server.url(), "fault")
    yield databases
    databases.close()


@pytest.fixture
def database(own_databases: Databases) -> Iterator[str]:
    """The name of a database with an empty store."""
    # Nothing else may work on the server during a test that may harm it.
    own_databases.wait()
    name = own_databases.take()
    yield name
    own_databases.give_back(name)
    own_databases.wait()


@pytest.fixture
def proxy(own_server: Server) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    proxy = Proxy(own_server)
    yield proxy
    proxy.close()


@pytest.fixture
def own_store(own_server: Server, database: str) -> Iterator[Callable[..., ef.EntityStore]]:
    """A function that opens the test's database, optionally through a proxy or as another user; closed at the end."""
    stores: list[ef.EntityStore] = []

    def connect(*, port: int | None = None, user: str = "postgres", **options: Any) -> ef.EntityStore:
        stores.append(ef.connect(own_server.url(database, port=port, user=user), **options))
        return stores[-1]

    yield connect
    for store in stores:
        store.close()
