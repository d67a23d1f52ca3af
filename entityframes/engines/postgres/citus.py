"""What is different on a PostgreSQL with Citus, where a schema can be a shard: the tables are created in other words.

The statements in the ``.sql`` files keep to what Citus supports, except for those that `tests/test_citus.py` lists.
Released migrations are not edited, so a new store on Citus has them in this form. The tables are the same, but for a
wider number of a space.
"""

from __future__ import annotations

import re

from entityframes.engines.queries import Statements

#: For each migration, what is replaced, and by what. STORAGE within CREATE TABLE needs PostgreSQL 16, as does Citus 13.
EDITS: dict[str, list[tuple[str, str]]] = {
    "migrate_1": [
        (r"int4 (NOT NULL GENERATED ALWAYS AS IDENTITY)", r"int8 \1"),
        (r"(ids +text\[\]) NOT NULL", r"\1 STORAGE EXTERNAL NOT NULL"),
        (r"ALTER TABLE \S+ ALTER ids SET STORAGE EXTERNAL;\n", ""),
    ],
}


def edit_migrations(statements: Statements) -> None:
    """Edit the migrations for Citus."""
    for name, edits in EDITS.items():
        text = statements[name]
        for old, new in edits:
            text, count = re.subn(old, new, text)
            assert count == 1, old
        statements.replace(name, statements[name], text)
