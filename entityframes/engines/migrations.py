"""Repair of stores of earlier versions whose tables differ from those that the migrations create today.

The migrations of formats 1 to 3 were edited after some stores had been created with them, so stores of the same format
can have different tables. From format 4 on the tables are well defined: the migration to it repairs every known
difference, in the same transaction, and rejects a store with any other. Released migrations are no longer edited, which
a test ensures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from entityframes.errors import FormatError

#: The last format whose stores may differ; they are repaired once they have been migrated to it.
REPAIRED_AT = 3

#: The repairs in the order in which they run, each with the part of a store whose absence makes it necessary.
REPAIRS: Mapping[str, Mapping[str, str]] = {
    "postgresql": {
        "reshape_jobs": "embedding_jobs.space",
        "reshape_spaces": "spaces.space",
        "reshape_vectors": "embeddings.vector",
        "reshape_due": "batches.due",
        "reshape_created_at": "entities.created_at default",
        "reshape_updated_at": "entities.updated_at default",
        "reshape_embedded_at": "embeddings.embedded_at default",
        "reshape_ids": "embedding_jobs.ids external",
    },
    "duckdb": {
        "reshape_job_lists": "embedding_jobs.entities",
        "reshape_job_texts": "embedding_jobs.keys_of",
        "reshape_spaces": "spaces.space",
        "reshape_vectors": "embeddings without a key",
        "reshape_due": "batches.due",
        "reshape_entities": "entities.key_hash",
        "reshape_hashed_by": "hashed_by.version",
    },
}

_JOB = "job_id batch_id space state attempts rescues fence worker lease_until error created_at updated_at"
_TABLES = {
    "entities": "entity_type id content metadata content_hash metadata_hash batch_id created_at updated_at",
    "batches": "batch_id run_id written_at created updated deleted due",
    "spaces": "space model dim activated_at created_at",
    "embeddings": "space entity_type id content_hash error embedded_at",
    "metadata_fields": "entity_type field position dtype declared",
    "folders": "folder holder lease_until",
    "files": "folder path entity_type id size mtime_ns file_hash content_hash metadata_hash header synced_at",
    "renames": "old_type old_id new_type new_id batch_id renamed_at",
}
_OF_ENGINE = {
    "postgresql": {"embedding_jobs": f"{_JOB} entity_types ids", "embeddings": "vector", "spaces": "number storage"},
    "duckdb": {
        "embedding_jobs": f"{_JOB} keys_of entities",
        "entities": "key_hash",
        "job_keys": "job_id entity_type id",
        "hashed_by": "version",
    },
}


def repair(engine: str, address: str, parts: Callable[[], Collection[str]], run: Callable[[str], object]) -> None:
    """Repair the tables of a store of format `REPAIRED_AT`.

    Args:
        engine: "postgresql" or "duckdb".
        address: the address of the store, for messages.
        parts: returns the existing parts: `table.column` of each column, with an additional word for its properties.
        run: executes a named statement.

    Raises:
        FormatError: a part is missing that no repair adds.
    """
    for name, part in REPAIRS[engine].items():
        if part not in parts():
            run(name)
    named = [
        (table, column)
        for tables in (_TABLES, _OF_ENGINE[engine])
        for table in tables
        for column in tables[table].split()
    ]
    there = parts()
    missing = [f"{table}.{column}" for table, column in named if f"{table}.{column}" not in there]
    if missing:
        raise FormatError(
            f"the store at {address} lacks {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}, "
            "which every store of its format has: it was changed manually or created by an unreleased version. Nothing "
            "was changed",
            advice="export its entities with the version that created it, and import them into a new store",
        )


def known_version(address: str, version: int | None) -> int:
    """The format number of a store.

    Raises:
        FormatError: the store has no format number.
    """
    if version is None:
        raise FormatError(
            f"the store at {address} has no format number (its table format is empty)",
            advice="restore that table from a backup, or use another namespace",
        )
    return int(version)
