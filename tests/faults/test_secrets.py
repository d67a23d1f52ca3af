"""A secret password and secret row contents must not appear in any message, log or traceback when faults occur."""

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
    """A role with a password that the server requires."""
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


class Capture:
    """Captures all output."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def call(self, call: Callable[[], object]) -> object:
        """The result of a call, or the error that it raised, with all its texts."""
        try:
            result = call()
        except BaseException as error:
            result = error
            self.texts.append("".join(traceback.format_exception(error)))
        self.texts += [repr(result), str(result)]
        if isinstance(result, RunResult):
            self.texts.append(result._repr_html_())
            # The outcome of a failed row may name its values; the outcomes of other rows may not.
            self.texts.append(str(result.outcomes.filter(pl.col("status") != "failed").rows()))
        return result


@pytest.fixture
def capture() -> Iterator[Capture]:
    """A capture that includes log lines and standard error; at the end neither secret may occur in it."""
    capture, log, errors = Capture(), io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    with contextlib.redirect_stderr(errors):
        yield capture
    logging.getLogger().setLevel(level)
    logging.getLogger().removeHandler(handler)
    output = "\n".join([*capture.texts, log.getvalue(), errors.getvalue()])
    assert len(capture.texts) > 3
    for canary in (PASSWORD, CONTENT):
        assert canary not in output, output[max(output.index(canary) - 300, 0) : output.index(canary) + 100]


def frame(count: int = 20) -> pl.DataFrame:
    return pl.DataFrame({"n": range(count)}).select(
        entity_type=pl.lit("note"),
        id=pl.format("e{}", pl.col("n").cast(pl.String).str.zfill(6)),
        content=pl.format(f"{CONTENT} {{}}", "n"),
        metadata=pl.lit(f'{{"secret":"{CONTENT}"}}'),
    )


@pytest.mark.slow
def test_failed_logins(own_server: Server, database: str, login: str, capture: Capture) -> None:
    """A wrong password, and a role that pg_hba rejects."""
    with pytest.raises(ef.ConnectError, match="password authentication failed"):
        ef.connect(login.replace(PASSWORD, f"{PASSWORD}-wrong"))
    capture.call(lambda: ef.connect(login.replace(PASSWORD, f"{PASSWORD}-wrong")))
    own_server.sql(f"CREATE ROLE refused_{database} LOGIN PASSWORD '{PASSWORD}'")
    refused = own_server.url(database, user=f"refused_{database}:{PASSWORD}")
    with pytest.raises(ef.ConnectError, match="pg_hba.conf rejects"):
        ef.connect(refused)
    capture.call(lambda: ef.connect(refused))
    own_server.sql(f"DROP ROLE refused_{database}")


@pytest.fixture
def files(
    own_server: Server, database: str, login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str, Path]:
    """A password file, what identifies the login but for its password, and a service file."""
    user, port = f"keeper_{database}", own_server.port
    passwords, services = tmp_path / "passwords", tmp_path / "services.conf"
    passwords.write_text(f"127.0.0.1:{port}:{database}:{user}:{PASSWORD}\n")
    passwords.chmod(0o600)
    where = f"host=127.0.0.1 port={port} dbname={database} user={user}"
    services.write_text("\n".join(["[mine]", *where.split(), f"password={PASSWORD}", "[open]", *where.split()]))
    for name in ("PGPASSFILE", "PGPASSWORD", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)
    return passwords, where, services


@pytest.mark.slow
def test_where_libpq_finds_a_login(
    files: tuple[Path, str, Path], login: str, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Password files, services and variables, in key=value strings, URLs and URLs of SQLAlchemy."""
    passwords, where, services = files
    bare = login.replace(f":{PASSWORD}", "")

    def opens(address: str, **variables: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with ef.connect(address) as store:
                assert store.upsert(frame(), progress=False).ok
                capture.call(lambda: store)
                return store.address

    opens(f"{where} password='{PASSWORD}'")
    opens(f"{where} passfile={passwords}")
    opens(where, PGPASSFILE=str(passwords))
    opens(bare, PGPASSFILE=str(passwords))
    opens(bare, PGPASSWORD=PASSWORD)
    opens(f"{bare}&passfile={passwords}")
    opens(f"{bare.replace('postgresql', 'postgresql+asyncpg')}&passfile={passwords}")
    for address in ("service=mine", "postgresql:///?service=mine", "postgresql+psycopg://?service=mine"):
        assert opens(address, PGSERVICEFILE=str(services)) == "postgresql:///?service=mine"
    opens("postgresql://", PGSERVICEFILE=str(services), PGSERVICE="mine")
    opens("service=open", PGSERVICEFILE=str(services), PGPASSFILE=str(passwords))
    # What the address says itself comes first.
    opens(f"service=mine application_name=x {where}", PGSERVICEFILE=str(services))


def test_logins_that_libpq_does_not_find(
    files: tuple[Path, str, Path], capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason, without passwords from the address, from variables and from files."""
    passwords, where, services = files

    def refused(address: str, message: str, **variables: str) -> None:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            error = capture.call(lambda: ef.connect(address))
        assert isinstance(error, ef.ConnectError)
        assert message in str(error)

    refused(where, "no password supplied")
    refused(where, "password authentication failed", PGPASSWORD=f"{PASSWORD}-wrong")
    passwords.write_text(passwords.read_text().replace(PASSWORD, f"{PASSWORD}-wrong"))
    refused(where, "password authentication failed", PGPASSFILE=str(passwords))
    refused(
        "service=missing",
        "postgresql:///?service=missing: Failed to connect: definition of service *** not found",
        PGSERVICEFILE=str(services),
    )
    refused("service=mine", "service file *** not found", PGSERVICEFILE=str(services / "missing"))
    services.write_text(services.read_text().replace("password=", f"{PASSWORD}="))
    refused("service=mine", "syntax error in service file ***, line 6", PGSERVICEFILE=str(services))


@pytest.mark.slow
def test_messages_of_faults(
    own_server: Server, database: str, login: str, capture: Capture, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constraints, triggers, timeouts, terminated backends, lost answers, a stopped server."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.3)
    through = login.replace(f":{own_server.port}/", f":{proxy.port}/")
    store = ef.connect(through, workers=1)
    capture.call(lambda: store)
    assert capture.call(lambda: store.upsert(frame())).ok
    capture.call(lambda: store.plan(frame()))
    with locked(own_server, database, ONE_ROW):
        changed = frame().with_columns(content=pl.col("content") + "!")
        run = Background(lambda: capture.call(lambda: store.upsert(changed)))
        [pid] = wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait")
        own_server.sql(f"SELECT pg_terminate_backend({pid})")
    assert run.outcome().ok
    own_server.sql(
        f"ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE '%{CONTENT} 3') NOT VALID",
        database=database,
    )
    result = capture.call(lambda: store.upsert(frame()))
    assert result.counts["failed"] == 1
    capture.texts.append(str(result.failed.rows()))
    capture.call(lambda: store.upsert(frame(), on_error="rollback"))
    capture.call(lambda: store.upsert(frame(), on_error="raise"))
    capture.call(result.raise_for_failures)
    assert isinstance(
        capture.call(lambda: store.upsert(frame().with_columns(content=pl.lit(CONTENT, pl.Binary)).head(0))),
        ef.UpsertResult,
    )
    capture.call(lambda: store.upsert(frame().with_columns(metadata=pl.lit(f'{{"secret": "{CONTENT}"'))).counts)
    proxy.drop_answer_to, proxy.refuse_after_drop = b"merged AS", True
    assert capture.call(lambda: store.upsert(frame(3).with_columns(content=pl.lit("harmless")))).counts["unknown"] == 3
    capture.call(lambda: store.upsert(frame()))
    capture.call(store.stats)
    store.close()
    capture.call(store.stats)


@pytest.mark.slow
def test_output_of_the_command_line(
    own_server: Server, database: str, login: str, capture: Capture, tmp_path: Path
) -> None:
    """The line of a failed row may name its values; nothing else may."""
    frame().drop("metadata").write_csv(tmp_path / "rows.csv")

    def entityframes(*words: str, url: str = login) -> str:
        command = [sys.executable, "-m", "entityframes", *words, "--store", url]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        return f"{run.returncode} {run.stdout} {run.stderr}"

    assert "20 created" in capture.call(lambda: entityframes("import", "rows.csv"))
    capture.call(lambda: entityframes("import", "rows.csv", "--dry-run", "--json"))
    capture.call(lambda: entityframes("stats", url=login.replace(PASSWORD, f"{PASSWORD}-wrong")))
    own_server.sql("UPDATE entityframes.entities SET content_hash = '' WHERE id = 'e000001'", database=database)
    assert "1 content_hash" in capture.call(lambda: entityframes("verify"))
    own_server.sql("ALTER TABLE entityframes.entities RENAME TO hidden", database=database)
    assert "2 " in capture.call(lambda: entityframes("import", "rows.csv"))
    own_server.sql("ALTER TABLE entityframes.hidden RENAME TO entities", database=database)


def test_messages_on_duckdb(capture: Capture, tmp_path: Path) -> None:
    """A CHECK, a bad row, a duplicate, a wrong frame, a plan, a cancelled run, a closed store: no row contents."""
    store = ef.connect(tmp_path / "x.duckdb")
    with store._engine.database.file.cursor() as cursor:
        [(ddl,)] = cursor.execute(
            "SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'"
        ).fetchall()
        cursor.execute("DROP TABLE entityframes.entities")
        cursor.execute(ddl.replace(");", ", CHECK (NOT ends_with(content, ' 3')));"))
    capture.call(lambda: store.plan(frame()))
    result = capture.call(lambda: store.upsert(frame()))
    assert result.counts["failed"] == 1
    capture.texts.append(str(result.failed.rows()))
    capture.call(result.raise_for_failures)
    for on_error in ("rollback", "raise"):
        capture.call(lambda on_error=on_error: store.upsert(frame(), on_error=on_error))
    capture.call(lambda: store.upsert(frame().with_columns(metadata=pl.lit(f'{{"secret": "{CONTENT}"'))))
    capture.call(lambda: store.upsert(pl.concat([frame(), frame()]), on_duplicate="error"))
    capture.call(lambda: store.upsert(frame().with_columns(content=pl.lit(CONTENT).cast(pl.Categorical))))
    cancel = threading.Event()
    cancel.set()
    assert capture.call(lambda: store.upsert(frame(), cancel=cancel)).counts["cancelled"] == 20
    with store._engine.database.file.cursor() as cursor:
        cursor.execute("UPDATE entityframes.entities SET content_hash = '' WHERE id = 'e000001'")
    assert capture.call(store.verify).height == 1
    store.close()
    capture.call(lambda: store.upsert(frame()))
