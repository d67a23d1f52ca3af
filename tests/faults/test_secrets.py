"""A password and row contents that nobody may see, in everything that is said while things go wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from entityframes.results import RunResult
from tests.faults.servers import WAITING, Background, Proxy, Server, backends, wait_until
from tests.faults.test_connections import ONE_ROW, locked

PASSWORD = "p4ssw0rd-c4n4ry"
CONTENT = "c0nt3nt-c4n4ry"


@pytest.fixture
def login(own_server: Server, database: str) -> Iterator[str]:
    """A role with a password that the server asks for."""
    role = f"keeper_{database}"
    hba = own_server.data / "pg_hba.conf"
    before = hba.read_text()
    own_server.sql(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    hba.write_text(f"host all refused_{database} all reject\nhost all {role} all scram-sha-256\n{before}")
    own_server.sql("SELECT pg_reload_conf()")
    url = own_server.url(database, user=f"{role}:{PASSWORD}")
    yield url
    hba.write_text(before)
    own_server.sql("SELECT pg_reload_conf()", f"DROP ROLE {role}")


class Ear:
    """Hears everything that is said."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on(self, call: Callable[[], object]) -> object:
        """What a call returns, or the error that it raised, with all that it says of itself."""
        try:
            result = call()
        except BaseException as error:
            result = error
            self.heard.append("".join(traceback.format_exception(error)))
        self.heard += [repr(result), str(result)]
        if isinstance(result, RunResult):
            self.heard.append(result._repr_html_())
            # A failed row's own outcome may name its values; that of others may not.
            self.heard.append(str(result.outcomes.filter(pl.col("status") != "failed").rows()))
        return result


@pytest.fixture
def ear() -> Iterator[Ear]:
    """An ear that also hears log lines and standard error, and finds neither canary in the end."""
    ear, log, errors = Ear(), io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    with contextlib.redirect_stderr(errors):
        yield ear
    logging.getLogger().setLevel(level)
    logging.getLogger().removeHandler(handler)
    said = "\n".join([*ear.heard, log.getvalue(), errors.getvalue()])
    assert len(ear.heard) > 3
    for canary in (PASSWORD, CONTENT):
        assert canary not in said, said[max(said.index(canary) - 300, 0) : said.index(canary) + 100]


def frame(count: int = 20) -> pl.DataFrame:
    return pl.DataFrame({"n": range(count)}).select(
        entity_type=pl.lit("note"),
        id=pl.format("e{}", pl.col("n").cast(pl.String).str.zfill(6)),
        content=pl.format(f"{CONTENT} {{}}", "n"),
        metadata=pl.lit(f'{{"secret":"{CONTENT}"}}'),
    )


def test_refused_at_the_door(own_server: Server, database: str, login: str, ear: Ear) -> None:
    """A wrong password, and a role that pg_hba refuses."""
    with pytest.raises(ef.ConnectError, match="password authentication failed"):
        ef.connect(login.replace(PASSWORD, f"{PASSWORD}-wrong"))
    ear.on(lambda: ef.connect(login.replace(PASSWORD, f"{PASSWORD}-wrong")))
    own_server.sql(f"CREATE ROLE refused_{database} LOGIN PASSWORD '{PASSWORD}'")
    refused = own_server.url(database, user=f"refused_{database}:{PASSWORD}")
    with pytest.raises(ef.ConnectError, match="pg_hba.conf rejects"):
        ef.connect(refused)
    ear.on(lambda: ef.connect(refused))
    own_server.sql(f"DROP ROLE refused_{database}")


def test_what_is_said_of_faults(
    own_server: Server, database: str, login: str, ear: Ear, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constraints, triggers, timeouts, terminated backends, lost answers, a server that is gone."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.3)
    through = login.replace(f":{own_server.port}/", f":{proxy.port}/")
    store = ef.connect(through, workers=1)
    ear.on(lambda: store)
    assert ear.on(lambda: store.upsert(frame())).ok
    ear.on(lambda: store.plan(frame()))
    with locked(own_server, database, ONE_ROW):
        changed = frame().with_columns(content=pl.col("content") + "!")
        run = Background(lambda: ear.on(lambda: store.upsert(changed)))
        [pid] = wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait")
        own_server.sql(f"SELECT pg_terminate_backend({pid})")
    assert run.outcome().ok
    own_server.sql(
        f"ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE '%{CONTENT} 3') NOT VALID",
        database=database,
    )
    result = ear.on(lambda: store.upsert(frame()))
    assert result.counts["failed"] == 1
    ear.heard.append(str(result.failed.rows()))
    ear.on(lambda: store.upsert(frame(), on_error="rollback"))
    ear.on(lambda: store.upsert(frame(), on_error="raise"))
    ear.on(result.raise_for_failures)
    assert isinstance(
        ear.on(lambda: store.upsert(frame().with_columns(content=pl.lit(CONTENT, pl.Binary)).head(0))), ef.UpsertResult
    )
    ear.on(lambda: store.upsert(frame().with_columns(metadata=pl.lit(f'{{"secret": "{CONTENT}"'))).counts)
    proxy.drop_answer_to, proxy.refuse_after_drop = b"merged AS", True
    assert ear.on(lambda: store.upsert(frame(3).with_columns(content=pl.lit("harmless")))).counts["unknown"] == 3
    ear.on(lambda: store.upsert(frame()))
    ear.on(store.stats)
    store.close()
    ear.on(store.stats)


def test_what_the_command_line_says(own_server: Server, database: str, login: str, ear: Ear, tmp_path: Path) -> None:
    """A failed row's own line may name its values; nothing else does."""
    frame().drop("metadata").write_csv(tmp_path / "rows.csv")

    def entityframes(*words: str, url: str = login) -> str:
        command = [sys.executable, "-m", "entityframes", *words, "--store", url]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        return f"{run.returncode} {run.stdout} {run.stderr}"

    assert "20 created" in ear.on(lambda: entityframes("import", "rows.csv"))
    ear.on(lambda: entityframes("import", "rows.csv", "--dry-run", "--json"))
    ear.on(lambda: entityframes("stats", url=login.replace(PASSWORD, f"{PASSWORD}-wrong")))
    own_server.sql("UPDATE entityframes.entities SET content_hash = '' WHERE id = 'e000001'", database=database)
    assert "1 content_hash" in ear.on(lambda: entityframes("verify"))
    own_server.sql("ALTER TABLE entityframes.entities RENAME TO hidden", database=database)
    assert "2 " in ear.on(lambda: entityframes("import", "rows.csv"))
    own_server.sql("ALTER TABLE entityframes.hidden RENAME TO entities", database=database)


def test_what_is_said_on_duckdb(ear: Ear, tmp_path: Path) -> None:
    """A CHECK, a bad row, a duplicate, a wrong frame, a plan, a cancelled run, a closed store: row contents in none."""
    store = ef.connect(tmp_path / "x.duckdb")
    with store._engine._file.cursor() as cursor:
        [(ddl,)] = cursor.execute(
            "SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'"
        ).fetchall()
        cursor.execute("DROP TABLE entityframes.entities")
        cursor.execute(ddl.replace(");", ", CHECK (NOT ends_with(content, ' 3')));"))
    ear.on(lambda: store.plan(frame()))
    result = ear.on(lambda: store.upsert(frame()))
    assert result.counts["failed"] == 1
    ear.heard.append(str(result.failed.rows()))
    ear.on(result.raise_for_failures)
    for on_error in ("rollback", "raise"):
        ear.on(lambda on_error=on_error: store.upsert(frame(), on_error=on_error))
    ear.on(lambda: store.upsert(frame().with_columns(metadata=pl.lit(f'{{"secret": "{CONTENT}"'))))
    ear.on(lambda: store.upsert(pl.concat([frame(), frame()]), on_duplicate="error"))
    ear.on(lambda: store.upsert(frame().with_columns(content=pl.lit(CONTENT).cast(pl.Categorical))))
    cancel = threading.Event()
    cancel.set()
    assert ear.on(lambda: store.upsert(frame(), cancel=cancel)).counts["cancelled"] == 20
    with store._engine._file.cursor() as cursor:
        cursor.execute("UPDATE entityframes.entities SET content_hash = '' WHERE id = 'e000001'")
    assert ear.on(store.verify).height == 1
    store.close()
    ear.on(lambda: store.upsert(frame()))
