-- Format 3. Entities have no index of their keys, which took half the time of the INSERT: a file has one process, and
-- that one writer at a time, which looks the keys up before it writes them, by their hash. Texts are compressed as a
-- whole, hashes, which nothing makes smaller, not at all. The keys of jobs have a table of their own: in the row of
-- their job they would be written again with each job that comes after it.
-- The tables are made anew: a change of a column's type could not be replayed from the log after a crash.
CREATE TABLE {schema}.entities_3 (
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
INSERT INTO {schema}.entities_3 BY NAME SELECT *, hash(entity_type, id) AS key_hash FROM {schema}.entities;
DROP TABLE {schema}.entities;
ALTER TABLE {schema}.entities_3 RENAME TO entities;
CREATE TABLE {schema}.embedding_jobs_3 (
    job_id       UUID PRIMARY KEY,
    batch_id     UUID,
    space        VARCHAR,
    state        VARCHAR NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    -- The job under which its keys are listed; jobs of several spaces share them.
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
INSERT INTO {schema}.embedding_jobs_3 BY NAME
SELECT * EXCLUDE (entity_types, ids), job_id AS keys_of, len(ids) AS entities FROM {schema}.embedding_jobs;
CREATE TABLE {schema}.job_keys (
    job_id      UUID NOT NULL,
    entity_type VARCHAR NOT NULL,
    id          VARCHAR NOT NULL
);
INSERT INTO {schema}.job_keys SELECT job_id, unnest(entity_types), unnest(ids) FROM {schema}.embedding_jobs;
DROP TABLE {schema}.embedding_jobs;
ALTER TABLE {schema}.embedding_jobs_3 RENAME TO embedding_jobs;
CREATE TABLE {schema}.hashed_by (version VARCHAR NOT NULL);
INSERT INTO {schema}.hashed_by VALUES (version());
INSERT INTO {schema}.format (version) VALUES (3)
