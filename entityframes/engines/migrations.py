"""Stores of earlier versions whose tables differ from those that the migrations make today.

While formats 1 to 3 were young their statements were edited, so that stores of one format number have different
tables. Format 4 is the first that says what the tables are: on the way to it each difference is repaired, in the
transaction of the migration, and what no repair knows is refused. A migration that has landed is not edited any more;
a test holds that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from entityframes.errors import FormatError

#: The format before which stores may differ; they are repaired once they have got this far.
REPAIRED_AT = 3

#: For each repair the part of a store that tells whether it is needed, by its absence. In the order in which they run.
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
    """Bring a store of the last format that had several shapes to the one that the code knows.

    Args:
        engine: "postgresql" or "duckdb".
        address: The store's, for messages.
        parts: What there is: `table.column` of each column, and a word more where something beside it matters.
        run: Executes the statements of a name.

    Raises:
        FormatError: A part is missing that no repair makes.
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
            "which each store of its format has: it was changed by hand or made by an unreleased version. Nothing was "
            "changed; export its entities with the version that made it, and import them into a new store"
        )


def known_version(address: str, version: int | None) -> int:
    """The format that a store says it has.

    Raises:
        FormatError: It says nothing.
    """
    if version is None:
        raise FormatError(
            f"the store at {address} does not say what format it has (its table format is empty): restore that table "
            "from a backup, or give another namespace"
        )
    return int(version)
