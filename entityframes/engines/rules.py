"""Rules: short stable names for the errors of rows, so that failures can be counted by rule."""

from __future__ import annotations

import polars as pl

#: Constraint violations by SQLSTATE; the name of the constraint or column is appended after a colon.
_CONSTRAINTS = {
    "23502": "not_null",
    "23503": "foreign_key",
    "23505": "unique",
    "23514": "check",
    "23P01": "exclusion",
}
#: Other errors by SQLSTATE.
_OTHERS = {
    "22001": "too_long",
    "22003": "out_of_range",
    "22008": "out_of_range",
    "22021": "invalid_character",
    "22P02": "invalid_text",
    "22P05": "invalid_character",
    "40001": "serialization_failure",
    "40P01": "deadlock",
    "42501": "permission_denied",
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "55P03": "lock_not_available",
    "57014": "statement_timeout",
    "58030": "io_error",
    "P0001": "trigger",
    "P0004": "trigger",
    "25006": "read_only",
    "EF002": "rekeyed",
}
#: Rules for whole SQLSTATE classes.
_CLASSES = {
    "08": "connection_lost",
    "57": "connection_lost",
    "22": "invalid_value",
    "23": "constraint",
    "P0": "trigger",
}


def rule_of(sqlstate: str | None, name: str | None = None) -> str:
    """The rule for a database error.

    Args:
        sqlstate: the SQLSTATE of the error; None if it has none.
        name: the name of the violated constraint or of the column, if known.
    """
    if not sqlstate:
        return "no_sqlstate"
    if kind := _CONSTRAINTS.get(sqlstate):
        return f"{kind}:{name}" if name else kind
    return _OTHERS.get(sqlstate) or _CLASSES.get(sqlstate[:2]) or f"sqlstate:{sqlstate}"


def with_rules(rejected: pl.DataFrame) -> pl.DataFrame:
    """Replace the column ``name`` of a result by ``rule`` (String), null where there is no error."""
    errors = zip(rejected["error"], rejected["sqlstate"], rejected["name"], strict=True)
    rules = [None if error is None else rule_of(sqlstate, name) for error, sqlstate, name in errors]
    return rejected.drop("name").with_columns(pl.Series("rule", rules, dtype=pl.String))
