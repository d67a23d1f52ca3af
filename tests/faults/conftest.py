"""A server of the tests' own for those that harm it, a database for each test, and a proxy before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import entityframes as ef
from tests.faults.servers import Proxy, Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A PostgreSQL that may be killed; who kills it starts it again."""
    server = Server()
    server.sql("CREATE DATABASE template_of_faults")
    ef.connect(server.url("template_of_faults")).close()
    yield server
    server.stop()


@pytest.fixture
def database(own_server: Server) -> Iterator[str]:
    """The name of a fresh database with an empty store."""
    name = f"fault_{next(_numbers)}"
    own_server.sql(f"CREATE DATABASE {name} TEMPLATE template_of_faults")
    yield name
    own_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


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
