-- Repairs of the tables of stores of formats 1 to 3 on DuckDB; see engines/migrations.py. They run after the migration
-- to format 3. As in the migrations, tables are recreated.

-- name: parts
-- The existing columns, and whether the table of vectors has no primary key. $1 namespace
SELECT table_name || '.' || column_name AS part FROM duckdb_columns()
WHERE database_name = current_database() AND lower(schema_name) = lower($1)
UNION ALL
SELECT 'embeddings without a key' WHERE NOT EXISTS (
    FROM duckdb_constraints()
    WHERE database_name = current_database() AND lower(schema_name) = lower($1) AND table_name = 'embeddings'
        AND constraint_type = 'PRIMARY KEY'
)

-- name: reshape_job_lists
-- Jobs with lists of keys, as in format 2: these are first joined to text, which is split again.
CREATE TABLE {schema}.embedding_jobs_4 AS
SELECT * REPLACE (array_to_string(entity_types, chr(0)) AS entity_types, array_to_string(ids, chr(0)) AS ids),
    len(ids)::INTEGER AS entities
FROM {schema}.embedding_jobs;
DROP TABLE {schema}.embedding_jobs;
ALTER TABLE {schema}.embedding_jobs_4 RENAME TO embedding_jobs

-- name: reshape_job_texts
-- Jobs with their keys as one text, joined by a character that no key contains.
CREATE TABLE {schema}.embedding_jobs_4 (
    job_id       UUID PRIMARY KEY,
    batch_id     UUID,
    space        VARCHAR,
    state        VARCHAR NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    keys_of      UUID NOT NULL,
    entities     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    rescues      INTEGER NOT NULL DEFAULT 0,
    fence        INTEGER NOT NULL DEFAULT 0,
    worker       VARCHAR,
    lease_until  TIMESTAMPTZ,
    error        VARCHAR,
    created_at   TIMESTAMPTZ NOT NULL,
    updated_at   TIMESTAMPTZ NOT NULL
);
INSERT INTO {schema}.embedding_jobs_4 BY NAME
SELECT * EXCLUDE (entity_types, ids), job_id AS keys_of FROM {schema}.embedding_jobs;
CREATE TABLE {schema}.job_keys (
    job_id      UUID NOT NULL,
    entity_type VARCHAR NOT NULL,
    id          VARCHAR NOT NULL
);
INSERT INTO {schema}.job_keys
SELECT job_id, unnest(string_split(entity_types, chr(0))), unnest(string_split(ids, chr(0)))
FROM {schema}.embedding_jobs WHERE entities > 0;
DROP TABLE {schema}.embedding_jobs;
ALTER TABLE {schema}.embedding_jobs_4 RENAME TO embedding_jobs

-- name: reshape_spaces
-- Stores created before embeddings existed have no table of spaces.
CREATE TABLE {schema}.spaces (
    space        VARCHAR PRIMARY KEY,
    model        VARCHAR NOT NULL,
    dim          INTEGER NOT NULL,
    activated_at TIMESTAMPTZ,
    created_at   TIMESTAMPTZ NOT NULL
)

-- name: reshape_vectors
-- Stores created before embeddings existed: nothing was written to that table; rows added by users are kept.
CREATE TABLE {schema}.embeddings_4 (
    space        VARCHAR NOT NULL,
    entity_type  VARCHAR NOT NULL,
    id           VARCHAR NOT NULL,
    content_hash BLOB NOT NULL,
    error        VARCHAR,
    embedded_at  TIMESTAMPTZ NOT NULL
);
INSERT INTO {schema}.embeddings_4 BY NAME FROM {schema}.embeddings;
DROP TABLE {schema}.embeddings;
ALTER TABLE {schema}.embeddings_4 RENAME TO embeddings

-- name: reshape_due
-- A ledger without the number of keys in the job of a batch.
CREATE TABLE {schema}.batches_4 (
    batch_id   UUID PRIMARY KEY,
    run_id     UUID NOT NULL,
    written_at TIMESTAMPTZ NOT NULL,
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL,
    deleted    INTEGER NOT NULL,
    due        INTEGER NOT NULL DEFAULT 0
);
INSERT INTO {schema}.batches_4 BY NAME
SELECT *, coalesce(
    (SELECT sum(j.entities)::INTEGER FROM {schema}.embedding_jobs AS j WHERE j.batch_id = b.batch_id), 0
) AS due
FROM {schema}.batches AS b;
DROP TABLE {schema}.batches;
ALTER TABLE {schema}.batches_4 RENAME TO batches

-- name: reshape_entities
-- Entities of format 3 created before keys were looked up by hash.
CREATE TABLE {schema}.entities_4 (
    entity_type   VARCHAR NOT NULL,
    id            VARCHAR NOT NULL,
    key_hash      UBIGINT NOT NULL,
    content       VARCHAR NOT NULL USING COMPRESSION zstd,
    metadata      JSON NOT NULL USING COMPRESSION zstd,
    content_hash  BLOB NOT NULL USING COMPRESSION uncompressed,
    metadata_hash BLOB NOT NULL USING COMPRESSION uncompressed,
    batch_id      UUID NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL,
    updated_at    TIMESTAMPTZ NOT NULL
);
INSERT INTO {schema}.entities_4 BY NAME SELECT *, hash(entity_type, id) AS key_hash FROM {schema}.entities;
DROP TABLE {schema}.entities;
ALTER TABLE {schema}.entities_4 RENAME TO entities

-- name: reshape_hashed_by
-- Likewise: the version that computed the hashes.
CREATE TABLE {schema}.hashed_by (version VARCHAR NOT NULL);
INSERT INTO {schema}.hashed_by VALUES (version())
