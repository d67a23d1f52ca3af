"""The recipe for SQLAlchemy and Alembic, carried out with both of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from tests.conftest import execute
from tests.test_guide import GUIDE, blocks, text_of

#: What `alembic init` writes, with the models of the recipe as the target.
ENVIRONMENT = """
from alembic import context
from sqlalchemy import create_engine, pool
from models import Base

engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection, target_metadata=Base.metadata, compare_server_default=True, include_schemas=True)
    with context.begin_transaction():
        context.run_migrations()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the recipe."""
    files = next(block for block in blocks(text_of(GUIDE / "recipe" / "sqlalchemy.md")) if block.language == "bash")
    subprocess.run(["bash", "-c", files.code], cwd=tmp_path, check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    # The models are imported once per process.
    monkeypatch.delitem(sys.modules, "models", raising=False)
    return tmp_path


@pytest.mark.slow
def test_autogenerate_finds_no_difference_after_a_load(empty_postgres_url: str, project: Path) -> None:
    """The models make the tables by a migration; frames are loaded; the models still describe the database."""
    url = empty_postgres_url.replace("postgresql://", "postgresql+psycopg://")
    alembic = Config(project / "alembic.ini")
    command.init(alembic, str(project / "migrations"))
    alembic.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    (project / "migrations" / "env.py").write_text(ENVIRONMENT)
    command.revision(alembic, "tables", autogenerate=True)
    command.upgrade(alembic, "head")
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_name IN ('countries', 'customers')"
    assert execute(empty_postgres_url, tables) == [(2,)]
    command.check(alembic)
    run = subprocess.run([sys.executable, "load.py", url], cwd=project, capture_output=True, text=True, timeout=120)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "ada@example.org created None",
        "bob@example.org failed foreign_key:customers_country_fkey",
        "cy@example.org failed check:balance_not_negative",
    ]
    rows = execute(empty_postgres_url, "SELECT email, balance::text, tags, extra, created_at IS NULL FROM customers")
    assert rows == [("ada@example.org", "1.50", ["new", "vip"], {"source": "web"}, False)]
    # It raises an exception if there is anything to migrate.
    command.check(alembic)
