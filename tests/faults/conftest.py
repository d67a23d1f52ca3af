"""A server of the tests' own for those that harm it, a database for each test, and a proxy before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import entityframes as ef
from tests.databases import Databases
from tests.faults.servers import Proxy, Server


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A PostgreSQL that may be killed; who kills it starts it again."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def own_databases(own_server: Server) -> Iterator[Databases]:
    """Databases with an empty store on it, for one test after the other."""
    databases = Databases(own_server.url(), "fault")
    yield databases
    databases.close()


@pytest.fixture
def database(own_databases: Databases) -> Iterator[str]:
    """The name of a database with an empty store."""
    # Nothing works on the server beside a test that may harm it.
    own_databases.settle()
    name = own_databases.take()
    yield name
    own_databases.give_back(name)
    own_databases.settle()


@pytest.fixture
def proxy(own_server: Server) -> Iterator[Proxy]:
    """A proxy before the server."""
    proxy = Proxy(own_server)
    yield proxy
    proxy.close()


@pytest.fixture
def own_store(own_server: Server, database: str) -> Iterator[Callable[..., ef.EntityStore]]:
    """Opens the test's database, by way of a proxy or as another user if wanted; closed at the end."""
    stores: list[ef.EntityStore] = []

    def connect(*, port: int | None = None, user: str = "postgres", **options: Any) -> ef.EntityStore:
        stores.append(ef.connect(own_server.url(database, port=port, user=user), **options))
        return stores[-1]

    yield connect
    for store in stores:
        store.close()
