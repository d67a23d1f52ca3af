-- What PostgreSQL gets to repair stores of formats 1 to 3 whose tables are of another shape; earlier.py says when.
-- They have been migrated to format 3 before.

-- name: parts
-- The columns that there are, which of them have a default, and which are stored uncompressed. $1 namespace
SELECT c.relname || '.' || a.attname || suffix AS part
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN LATERAL (
    VALUES ('', true), (' default', a.atthasdef), (' external', a.attstorage = 'e')
) AS said (suffix, so)
WHERE c.relkind IN ('r', 'p') AND so

-- name: reshape_jobs
-- Jobs from before there were embeddings: without a space, a lease and their counters.
ALTER TABLE {schema}.embedding_jobs ADD COLUMN space text COLLATE "C",
    ADD COLUMN rescues int4 NOT NULL DEFAULT 0,
    ADD COLUMN fence int4 NOT NULL DEFAULT 0,
    ADD COLUMN worker text,
    ADD COLUMN lease_until timestamptz,
    ALTER COLUMN batch_id DROP NOT NULL;
CREATE INDEX IF NOT EXISTS open_jobs ON {schema}.embedding_jobs (created_at) WHERE state IN ('pending', 'running')

-- name: reshape_spaces
-- Stores from before there were embeddings have no spaces.
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
-- From before there were embeddings: a table that nothing wrote to; rows that somebody put there have no partition, and
-- are refused with the whole migration.
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
-- A ledger that does not say how many keys the job of a batch lists.
ALTER TABLE {schema}.batches ADD COLUMN due int4 NOT NULL DEFAULT 0;
UPDATE {schema}.batches AS b SET due = j.due
FROM (
    SELECT batch_id, sum(cardinality(ids))::int4 AS due FROM {schema}.embedding_jobs GROUP BY batch_id
) AS j
WHERE j.batch_id = b.batch_id

-- name: reshape_created_at
-- New entities are copied without their times.
ALTER TABLE {schema}.entities ALTER COLUMN created_at SET DEFAULT now()

-- name: reshape_updated_at
-- The same.
ALTER TABLE {schema}.entities ALTER COLUMN updated_at SET DEFAULT now()

-- name: reshape_embedded_at
-- New vectors are copied without their time.
ALTER TABLE {schema}.embeddings ALTER COLUMN embedded_at SET DEFAULT now()

-- name: reshape_ids
-- Compressing the ids of jobs costs a tenth of an insert.
ALTER TABLE {schema}.embedding_jobs ALTER COLUMN ids SET STORAGE EXTERNAL
