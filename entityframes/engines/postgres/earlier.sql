-- Repairs of the tables of stores of formats 1 to 3 on PostgreSQL; see engines/migrations.py. They run after the
-- migration to format 3.

-- name: parts
-- The existing columns, which of them have a default, and which are stored uncompressed. $1 namespace
SELECT c.relname || '.' || a.attname || suffix AS part
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN LATERAL (
    VALUES ('', true), (' default', a.atthasdef), (' external', a.attstorage = 'e')
) AS said (suffix, so)
WHERE c.relkind IN ('r', 'p') AND so

-- name: reshape_jobs
-- Jobs created before embeddings existed, without a space, a lease and counters.
ALTER TABLE {schema}.embedding_jobs ADD COLUMN space text COLLATE "C",
    ADD COLUMN rescues int4 NOT NULL DEFAULT 0,
    ADD COLUMN fence int4 NOT NULL DEFAULT 0,
    ADD COLUMN worker text,
    ADD COLUMN lease_until timestamptz,
    ALTER COLUMN batch_id DROP NOT NULL;
CREATE INDEX IF NOT EXISTS open_jobs ON {schema}.embedding_jobs (created_at) WHERE state IN ('pending', 'running')

-- name: reshape_spaces
-- Stores created before embeddings existed have no table of spaces.
CREATE TABLE {schema}.spaces (
    space        text COLLATE "C" PRIMARY KEY,
    number       int4 NOT NULL GENERATED ALWAYS AS IDENTITY,
    model        text NOT NULL,
    dim          int4 NOT NULL,
    storage      text NOT NULL CHECK (storage IN ('pgvector', 'vector')),
    activated_at timestamptz,
    created_at   timestamptz NOT NULL
)

-- name: reshape_vectors
-- Stores created before embeddings existed: nothing was written to that table. Rows added by users have no partition,
-- and make the whole migration fail.
ALTER TABLE {schema}.embeddings RENAME TO embeddings_4;
ALTER INDEX {schema}.embeddings_pkey RENAME TO embeddings_4_pkey;
CREATE TABLE {schema}.embeddings (
    space        text COLLATE "C" NOT NULL,
    entity_type  text COLLATE "C" NOT NULL,
    id           text COLLATE "C" NOT NULL,
    content_hash bytea NOT NULL,
    error        text,
    embedded_at  timestamptz NOT NULL DEFAULT now(),
    vector       bytea,
    PRIMARY KEY (entity_type, id, space)
) PARTITION BY LIST (space);
INSERT INTO {schema}.embeddings (space, entity_type, id, content_hash, error, embedded_at)
SELECT space, entity_type, id, content_hash, error, embedded_at FROM {schema}.embeddings_4;
DROP TABLE {schema}.embeddings_4

-- name: reshape_due
-- A ledger without the number of keys in the job of a batch.
ALTER TABLE {schema}.batches ADD COLUMN due int4 NOT NULL DEFAULT 0;
UPDATE {schema}.batches AS b SET due = j.due
FROM (
    SELECT batch_id, sum(cardinality(ids))::int4 AS due FROM {schema}.embedding_jobs GROUP BY batch_id
) AS j
WHERE j.batch_id = b.batch_id

-- name: reshape_created_at
-- New entities are copied without timestamps.
ALTER TABLE {schema}.entities ALTER COLUMN created_at SET DEFAULT now()

-- name: reshape_updated_at
-- Likewise.
ALTER TABLE {schema}.entities ALTER COLUMN updated_at SET DEFAULT now()

-- name: reshape_embedded_at
-- New vectors are copied without a timestamp.
ALTER TABLE {schema}.embeddings ALTER COLUMN embedded_at SET DEFAULT now()

-- name: reshape_ids
-- Compressing the ids of jobs takes a tenth of the time of an insert.
ALTER TABLE {schema}.embedding_jobs ALTER COLUMN ids SET STORAGE EXTERNAL
