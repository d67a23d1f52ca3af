"""SQL on PostgreSQL that bypasses the package, and a pool of databases with an empty store, shared by the tests."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

import entityframes as ef

_numbers = itertools.count()


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run SQL on PostgreSQL, bypassing the package. Returns the rows of the last statement."""
    rows: list[tuple[Any, ...]] = []
    # A different driver than the package's, which needs 30 ms of work for each connection.
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


def with_database(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{database}"))


#: Terminates all other clients of the database.
_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
#: Catalogs that record DDL in addition to what `_SHAPE` covers.
_CATALOGS = (
    "attrdef", "attribute", "collation", "constraint", "default_acl", "depend", "description", "event_trigger", "extension",
    "index", "inherits", "init_privs", "policy", "proc", "publication", "rewrite", "sequence", "statistic_ext", "trigger",
    "type",
)  # fmt: skip
#: The state of a database except for the rows of its tables: DDL that was executed changes it.
_SHAPE = """
    SELECT relname::text, count(*)::text, sum(hashtextextended(row(
        c.oid, relname, relnamespace, relowner, relam, reltablespace, reltoastrelid, relkind, relpersistence, relnatts,
        relchecks, relhasindex, relhasrules, relhastriggers, relrowsecurity, relforcerowsecurity, relreplident, relacl,
        reloptions)::text, 0))::text
    FROM pg_class AS c WHERE relpersistence <> 't' GROUP BY relname
    UNION ALL SELECT nspname, nspowner::text, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'settings', count(*)::text, NULL FROM pg_db_role_setting
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    UNION ALL SELECT 'database', row(datdba, datacl, datconnlimit, datallowconn, dattablespace)::text, NULL
        FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT 'format', version::text, since::text FROM entityframes.format
"""
_EMPTY = """
    DO $$
    DECLARE filled text;
    BEGIN
        SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_class
        WHERE relnamespace = 'entityframes'::regnamespace AND relkind = 'r' AND relname <> 'format'
        AND pg_table_size(oid) > 0 AND pg_relation_size(oid) > 0;
        IF filled IS NOT NULL THEN EXECUTE 'TRUNCATE ' || filled || ' RESTART IDENTITY'; END IF;
    END $$
"""


class Databases:
    """A pool of databases with an empty store, created ahead of time.

    Creating a database takes longer than most tests. A returned database in which only rows were written is emptied and
    reused; any other is dropped and replaced. A background thread does that.
    """

    AHEAD = 3

    def __init__(self, server: str, name: str) -> None:
        self._server, self._name = server, name
        self.template = f"{name}_template"
        execute(server, f"DROP DATABASE IF EXISTS {self.template}", f"CREATE DATABASE {self.template}")
        url = with_database(server, self.template)
        ef.connect(url).close()
        [(version,)] = execute(url, "SELECT current_setting('server_version_num')::int4")
        self._strategy = "STRATEGY file_copy" if version >= 150_000 else ""
        [(since,)] = execute(url, "SELECT pg_current_xact_id()::text::int8 % (1::int8 << 32)")
        changed = f"count(*) FILTER (WHERE age(xmin) < age('{since}'::xid))::text"
        counts = [f"SELECT '{name}', count(*)::text, {changed} FROM pg_catalog.pg_{name}" for name in _CATALOGS]
        self._shape = " UNION ALL ".join([_SHAPE, *counts]) + " ORDER BY 1, 2, 3"
        self._initial_shape = execute(url, self._shape)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="databases")
        self._ready: deque[Future[str]] = deque(self._thread.submit(self._make) for _ in range(self.AHEAD))

    def take(self) -> str:
        """The name of a database with an empty store."""
        return (self._ready.popleft() if self._ready else self._thread.submit(self._make)).result()

    def give_back(self, name: str) -> None:
        """Return a database to the pool."""
        self._ready.append(self._thread.submit(self._recycle, name))

    def wait(self) -> None:
        """Wait until all databases of the pool are created or emptied."""
        for made in self._ready:
            made.result()

    def close(self) -> None:
        """Drop all databases of the pool."""
        names = [self.template, *(made.result() for made in self._ready)]
        self._thread.shutdown()
        execute(self._server, *(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in names))

    def _make(self) -> str:
        name = f"{self._name}_{next(_numbers)}"
        execute(self._server, f"CREATE DATABASE {name} TEMPLATE {self.template} {self._strategy}")
        return name

    def _recycle(self, name: str) -> str:
        # A test may have left a database that allows no connections or has no store.
        with suppress(psycopg.Error), psycopg.connect(with_database(self._server, name), autocommit=True) as connection:
            connection.execute(_END_OTHERS)
            if connection.execute(self._shape).fetchall() == self._initial_shape:
                connection.execute(_EMPTY)
                return name
        execute(self._server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        return self._make()
