"""Addresses with a password: it never appears in any output, in any form and position."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

import entityframes as ef
from entityframes.engines import conninfo
from entityframes.engines.url import parse_url
from tests.conftest import execute

#: Parts of a password; none of them occurs in the package's own messages.
PARTS = ("Zq7x", "Wv9k", "Jy4h")
HOSTILE = (
    "",
    "@",
    "/",
    ":",
    "?",
    "#",
    "%",
    "&",
    "=",
    " ",
    "'",
    '"',
    "\\",
    "\n",
    ";",
    "[",
    "]",
    "{",
    "é",
    "%40",
    "$",
    "|",
    ",",
)

FORMS = (
    "postgresql://u:{}@127.0.0.1:1/x",
    "POSTGRESQL://u:{}@127.0.0.1:1/x",
    "postgres://u:{}@127.0.0.1:1/x",
    " \tpostgresql://u:{}@127.0.0.1:1/x\n",
    "postgresql:/u:{}@127.0.0.1:1/x",
    "postgresql:u:{}@127.0.0.1:1/x",
    "postgresql//u:{}@127.0.0.1:1/x",
    "postgresql:\\\\u:{}@127.0.0.1:1/x",
    "//u:{}@127.0.0.1:1/x",
    "'postgresql://u:{}@127.0.0.1:1/x'",
    "postgresql+psycopg2://u:{}@127.0.0.1:1/x",
    "postgresql://u:{}@[::1/x",
    "postgresql://u:{}@127.0.0.1:port/x",
    "postgresql://127.0.0.1:1/x?user=u&password={}",
    "postgresql://127.0.0.1:1/x?user=u&sslpassword={}&sslmode=disable",
    "postgresql://127.0.0.1:1/x?passwd={}",
    "postgresql://127.0.0.1:1/x?port={}",
    "postgresql://127.0.0.1:1/x?sslmode={}",
    "host=127.0.0.1 port=1 user=u password={}",
    "host=127.0.0.1 port=1 user=u password = '{}'",
    "host=127.0.0.1;port=1;password={}",
    "Host=127.0.0.1;Username=u;Password={}",
    "port={} host=127.0.0.1",
    "jdbc:postgresql://127.0.0.1:1/x?user=u&password={}",
    "Driver={{PostgreSQL}};Server=127.0.0.1;Uid=u;Pwd={};",
    "mysql://u:{}@127.0.0.1/x",
    "duckdb://u:{}@127.0.0.1/x",
    "u:{}@127.0.0.1",
    "PGPASSWORD={} psql",
    '{{"host": "127.0.0.1", "password": "{}"}}',
    "password: {}",
    "dbname=postgresql://u:{}@127.0.0.1:1/x",
    "host=u:{}@127.0.0.1 port=1",
    "couchdb://127.0.0.1/{}",
)


def shows(text: str) -> str | None:
    """A part of the password that occurs in a text, or None."""
    return next((part[n : n + 4] for part in PARTS for n in range(len(part) - 3) if part[n : n + 4] in text), None)


def passwords() -> list[str]:
    """Passwords with each hostile character, and some with several."""
    drawn = random.Random(0)
    several = ["".join(part + drawn.choice(HOSTILE) for part in PARTS) for _ in range(40)]
    return [character.join(PARTS) for character in HOSTILE] + several


@pytest.mark.parametrize("form", FORMS)
def test_no_part_of_a_password_is_repeated(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases 45 and 48: raw and percent-encoded, in the message, its causes, the traceback; and no file is created."""
    monkeypatch.chdir(tmp_path)
    for password, encode in itertools.product(passwords(), (str, lambda text: quote(text, safe=""))):
        try:
            parse_url(form.format(encode(password)))
        except ef.ConnectError:
            output = traceback.format_exc()
        else:
            with pytest.raises(ef.ConnectError) as caught:
                ef.connect(form.format(encode(password)))
            output = "".join(traceback.format_exception(caught.value))
            assert shows(repr(parse_url(form.format(encode(password))))) is None
        # A traceback contains the source lines of this file, but not the values of variables.
        assert shows(output) is None, (form, password, output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("HOST=127.0.0.1 PORT=1 DBNAME=x", "cannot be parsed"),
        (" \t", "is empty or contains a NUL"),
        (" Host = 127.0.0.1", "cannot be parsed"),
        ("postgresql://127.0.0.1:1/x?application_name=postgresql://y", "application_name contains what looks like"),
    ],
)
def test_an_address_that_is_nearly_one_is_not_taken_for_another(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is written wrongly is neither the name of a file nor another server."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ef.ConnectError, match=message):
        ef.connect(address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize(
    "name", ["PGPORT", "PGHOST", "PGSERVICE", "PGSSLMODE", "PGPASSWORD", "PGPASSFILE", "PGCONNECT_TIMEOUT"]
)
def test_what_the_environment_holds(name: str, tmp_path: Path) -> None:
    """Case 48: libpq takes parameters from the environment too, and repeats them."""
    script = "import entityframes as ef; ef.connect('postgresql://')"
    environment = {"PGHOST": "127.0.0.1", "PGPORT": "1", "PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    environment[name] = "@".join(PARTS)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert "ConnectError" in run.stderr
    assert shows(run.stderr) is None, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["postgresql:/u:{}@h/x", "u:{}@h", "host=h password='{}", " {{'password': '{}'}}"])
@pytest.mark.parametrize("source", ["--store", "$ENTITYFRAMES_URL"])
def test_the_command_line(form: str, source: str, tmp_path: Path) -> None:
    """Case 48: neither the message nor the help text next to it repeats the address."""
    address = form.format("@".join(PARTS))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    words = ["stats", "--store", address] if source == "--store" else ["stats"]
    environment |= {} if source == "--store" else {"ENTITYFRAMES_URL": address}
    run = subprocess.run(
        [sys.executable, "-m", "entityframes", *words],
        capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 2
    assert shows(run.stdout + run.stderr) is None, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_key_value_strings_are_understood(postgres_url: str) -> None:
    """They open the same store as the URL, with libpq's quoting."""
    [(user, database, folder, port)] = execute(
        postgres_url,
        "SELECT current_user::text, current_database()::text, "
        "split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port')",
    )
    pairs = f"user = {user} dbname='{database}' host='{folder}' port={port} application_name = 'it\\'s me' password=x"
    with ef.connect(pairs) as store, ef.connect(postgres_url) as other:
        store.upsert_entity("note", "a", "text")
        assert other.entity_exists("note", "a")
        assert "password" not in repr(store)
        assert "it's me" in {row[0] for row in execute(postgres_url, "SELECT application_name FROM pg_stat_activity")}


def test_a_wrong_address_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses the first connection is not there; only one that is full is tried again."""
    caplog.set_level("INFO", "entityframes")
    with pytest.raises(ef.ConnectError, match="Connection refused: check the address"):
        ef.connect("postgresql://u@127.0.0.1:1/x")
    assert "retrying" not in caplog.text


def test_messages_of_libpq_stay_useful() -> None:
    """The server's own message, and which server did not answer."""
    refused = 'connection to server at "db.example" (10.0.0.1), port 5432 failed: Connection refused'
    assert conninfo.shown_when_connecting(refused) == refused
    fatal = 'connection to server at "h", port 1 failed: FATAL: password authentication failed for user "me"'
    assert conninfo.shown_when_connecting(fatal) == fatal
    for repeated in (
        'missing "=" after "Zq"7x" in connection info string',
        'could not translate host name "Zq7x@h" to',
    ):
        assert not re.search("Zq|7x", conninfo.shown_when_connecting(repeated))
