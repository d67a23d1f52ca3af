-- The statements for embedding and vector search on PostgreSQL. Besides {schema}, only numbers, validated names of
-- spaces and rendered predicates are substituted.

-- name: spaces
-- The spaces; the active one is the one that was activated last.
SELECT space, model, dim, storage, number,
    activated_at IS NOT NULL AND activated_at = max(activated_at) OVER () AS active, created_at
FROM {schema}.spaces ORDER BY number

-- name: coverage
-- The number of embedded, due and failed entities of each space.
SELECT s.space,
    count(*) FILTER (WHERE v.content_hash IS NOT NULL AND v.error IS NULL) AS embedded,
    count(*) FILTER (WHERE e.content <> '' AND v.content_hash IS NULL) AS due,
    count(*) FILTER (WHERE v.error IS NOT NULL) AS failed
FROM {schema}.spaces AS s
LEFT JOIN {schema}.entities AS e ON true
LEFT JOIN {schema}.embeddings AS v ON v.space = s.space
    AND v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash
GROUP BY s.space

-- name: space_lock
-- A lock until the end of the transaction, so that concurrent workers create a space only once. $1 namespace
SELECT pg_advisory_xact_lock(hashtextextended($1, 7042))

-- name: pgvector
-- Whether pgvector 0.8 or later is installed, and whether it is available.
SELECT coalesce(string_to_array(installed_version, '.')::int4[] >= '{0,8}' AND to_regtype('vector') IS NOT NULL, false)
    AS installed,
    installed_version IS NULL AND string_to_array(default_version, '.')::int4[] >= '{0,8}' AS available
FROM pg_available_extensions WHERE name = 'vector'

-- name: create_pgvector
-- Tried before the first space is created; without the privilege, search is exact.
CREATE EXTENSION IF NOT EXISTS vector

-- name: has_vector_column
-- Whether the column of pgvector's type exists.
SELECT EXISTS (SELECT FROM pg_attribute
    WHERE attrelid = '{schema}.embeddings'::regclass AND attname = 'pgvector' AND NOT attisdropped)

-- name: add_vector_column
-- Adds the column of pgvector's type, which requires the extension.
ALTER TABLE {schema}.embeddings ADD COLUMN pgvector vector

-- name: add_space
-- A new space, active if it is the first. $1 space, $2 model, $3 dim, $4 storage
INSERT INTO {schema}.spaces (space, model, dim, storage, activated_at, created_at)
SELECT $1, $2, $3::int4, $4, CASE WHEN NOT EXISTS (SELECT FROM {schema}.spaces) THEN now() END, now()
ON CONFLICT (space) DO NOTHING RETURNING number

-- name: add_partition
-- Adds the partition of a space: searches read only its vectors, and dropping it is fast.
CREATE TABLE {schema}.embeddings_{number} PARTITION OF {schema}.embeddings FOR VALUES IN ('{space}')

-- name: store_inline
-- Stores vectors that fit into a page inline, so that an exact search reads them without a TOAST lookup.
ALTER TABLE {schema}.embeddings_{number} ALTER COLUMN {storage} SET STORAGE PLAIN

-- name: activate_space
-- Makes a space the active one. $1 space
UPDATE {schema}.spaces SET activated_at = clock_timestamp() WHERE space = $1

-- name: release_jobs
-- Detaches the jobs of the last space, so that queued entities stay queued for the next space. $1 space
UPDATE {schema}.embedding_jobs
SET space = NULL, state = 'pending', attempts = 0, rescues = 0, lease_until = NULL, error = NULL, updated_at = now()
WHERE space = $1 AND NOT EXISTS (SELECT FROM {schema}.spaces WHERE space <> $1)

-- name: delete_space
-- Deletes a space and its jobs. $1 space
WITH jobs AS (DELETE FROM {schema}.embedding_jobs WHERE space = $1)
DELETE FROM {schema}.spaces WHERE space = $1

-- name: drop_partition
-- Drops the vectors of a space.
DROP TABLE IF EXISTS {schema}.embeddings_{number}

-- name: build_memory
-- Builds the index in memory, which is many times faster than on disk.
SET LOCAL maintenance_work_mem = '512MB'

-- name: create_index
-- Approximate search by inner product, which is the cosine of vectors of length 1.
CREATE INDEX IF NOT EXISTS nearest_{number} ON {schema}.embeddings_{number}
USING hnsw ((pgvector::vector({dim})) vector_ip_ops)

-- name: index_progress
-- The number of vectors in the index that another connection is creating.
SELECT tuples_done AS indexed FROM pg_stat_progress_create_index
WHERE relid = '{schema}.embeddings_{number}'::regclass

-- name: analyze_vectors
-- Without statistics the planner does not use the index; autovacuum would collect them minutes later.
ANALYZE {schema}.embeddings_{number}

-- name: has_others
-- Whether there are other spaces, so that the jobs queued by upserts do not cover a new space. $1 space
SELECT EXISTS (SELECT FROM {schema}.spaces WHERE space <> $1)

-- name: forget_errors
-- Makes failed entities due again. $1 space, $2 entity_type or null
DELETE FROM {schema}.embeddings
WHERE space = $1 AND error IS NOT NULL AND ($2::text IS NULL OR entity_type = $2)

-- name: forget_errors_of
-- Likewise for the given keys. $1 space, $2 entity_types, $3 ids
DELETE FROM {schema}.embeddings AS v USING unnest($2::text[], $3::text[]) AS t (entity_type, id)
WHERE v.space = $1 AND v.error IS NOT NULL AND v.entity_type = t.entity_type AND v.id = t.id

-- name: enqueue
-- Creates jobs for everything that is due. $1 space or null, $2 rows in a job, $3 entity_type or null
WITH due AS (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) / $2::int8 AS piece
    FROM {schema}.entities AS e
    WHERE e.content <> '' AND ($3::text IS NULL OR e.entity_type = $3) AND NOT EXISTS (
        SELECT FROM {schema}.embeddings AS v
        WHERE v.space = $1 AND v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash)
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: enqueue_keys
-- Creates jobs for the given keys that are due. $1 space or null, $2 rows in a job, $3 entity_types, $4 ids
WITH due AS (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) / $2::int8 AS piece
    FROM (SELECT DISTINCT * FROM unnest($3::text[], $4::text[]) AS t (entity_type, id)) AS t
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.entities WHERE entity_type = t.entity_type AND id = t.id OFFSET 0
    ) AS e
    WHERE e.content <> '' AND NOT EXISTS (
        SELECT FROM {schema}.embeddings AS v
        WHERE v.space = $1 AND v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash)
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: enqueue_failed
-- Creates jobs for failed entities, which makes them due again. $1 space, $2 rows in a job
WITH gone AS (
    DELETE FROM {schema}.embeddings WHERE space = $1 AND error IS NOT NULL RETURNING entity_type, id
), due AS (
    SELECT entity_type, id, (row_number() OVER (ORDER BY entity_type, id) - 1) / $2::int8 AS piece FROM gone
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: requeue_jobs
-- Requeues failed jobs. $1 space, $2 current state, $3 new state
UPDATE {schema}.embedding_jobs SET state = $3, attempts = 0, rescues = 0, updated_at = now()
WHERE space = $1 AND state = $2 RETURNING cardinality(ids) AS entities

-- name: jobs
-- The jobs, oldest first. $1 state, or null for all
SELECT job_id::text, batch_id::text, space, state, cardinality(ids) AS entities, attempts, worker, lease_until, error,
    created_at, updated_at
FROM {schema}.embedding_jobs WHERE $1::text IS NULL OR state = $1 ORDER BY created_at, job_id

-- name: open_jobs
-- The number of pending and running jobs of a space or without a space. $1 space
SELECT count(*) FROM {schema}.embedding_jobs
WHERE state IN ('pending', 'running') AND (space = $1 OR space IS NULL)

-- name: fail_abandoned
-- Marks jobs as failed that were abandoned too often. $1 space, $2 maximum of rescues, $3 current state, $4 new state
UPDATE {schema}.embedding_jobs
SET state = $4, error = rescues || ' workers died at it', lease_until = NULL, updated_at = now()
WHERE space = $1 AND state = $3 AND lease_until < now() AND rescues >= $2::int4

-- name: claim
-- Claims the oldest job that is pending, or running with an expired lease; workers do not wait for each other.
-- A job without a space is assigned to this space, with a copy for every other space.
-- $1 space, $2 worker, $3 lease, $4 maximum of rescues
WITH next AS (
    SELECT job_id, batch_id, space, state, entity_types, ids FROM {schema}.embedding_jobs
    WHERE (space = $1 OR space IS NULL) AND state IN ('pending', 'running')
        AND (state = 'pending' OR lease_until < now() AND rescues < $4::int4)
    ORDER BY created_at, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
), copies AS (
    INSERT INTO {schema}.embedding_jobs (job_id, batch_id, space, entity_types, ids, created_at, updated_at)
    SELECT gen_random_uuid(), n.batch_id, s.space, n.entity_types, n.ids, now(), now()
    FROM next AS n CROSS JOIN {schema}.spaces AS s WHERE n.space IS NULL AND s.space <> $1
)
UPDATE {schema}.embedding_jobs AS j
SET state = 'running', space = $1, worker = $2, lease_until = now() + make_interval(secs => $3::float8),
    fence = j.fence + 1, rescues = j.rescues + (n.state = 'running')::int4, updated_at = now()
FROM next AS n WHERE j.job_id = n.job_id
RETURNING j.job_id::text, j.fence, j.attempts, n.state = 'running' AS taken_over

-- name: members
-- The entities of a job that are still due, with their content, and whether an older vector is stored. Sorts keys only,
-- not content. $1 job, $2 space
SELECT e.entity_type, e.id, e.content, e.content_hash, v.content_hash IS NOT NULL AS stored
FROM (
    SELECT DISTINCT entity_type COLLATE "C" AS entity_type, id COLLATE "C" AS id FROM unnest(
        (SELECT entity_types FROM {schema}.embedding_jobs WHERE job_id = $1::uuid),
        (SELECT ids FROM {schema}.embedding_jobs WHERE job_id = $1::uuid)
    ) AS t (entity_type, id)
) AS t
CROSS JOIN LATERAL (
    SELECT * FROM {schema}.entities WHERE entity_type = t.entity_type AND id = t.id OFFSET 0
) AS e
LEFT JOIN LATERAL (
    SELECT content_hash FROM {schema}.embeddings
    WHERE entity_type = t.entity_type AND id = t.id AND space = $2 OFFSET 0
) AS v ON true
WHERE e.content <> '' AND v.content_hash IS DISTINCT FROM e.content_hash
ORDER BY t.entity_type, t.id

-- name: move
-- Changes the state of a job, if the worker still holds it.
-- $1 job, $2 fence, $3 current state, $4 new state, $5 attempts, $6 error, $7 lease
UPDATE {schema}.embedding_jobs
SET state = $4, attempts = $5::int4, error = $6, updated_at = now(),
    lease_until = CASE WHEN $4 = 'running' THEN now() + make_interval(secs => $7::float8) END
WHERE job_id = $1::uuid AND fence = $2::int4 AND state = $3 RETURNING job_id::text

-- name: hold_current
-- The given rows whose content has not changed since it was embedded. The lock on the entity delays concurrent updates
-- and deletions until the commit. $1 entity_types, $2 ids, $3 content hashes
SELECT t.position::int4 - 1 AS position
FROM unnest($1::text[], $2::text[], $3::bytea[]) WITH ORDINALITY AS t (entity_type, id, content_hash, position)
CROSS JOIN LATERAL (
    SELECT FROM {schema}.entities AS e
    WHERE e.entity_type = t.entity_type AND e.id = t.id AND e.content_hash = t.content_hash OFFSET 0 FOR SHARE
) AS e

-- name: create_vector_staging
-- The staging table for vectors; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_vectors (
    entity_type text, id text, content_hash bytea, error text, vector {type}
) ON COMMIT DROP

-- name: merge_vectors
-- Writes staged vectors, which replace older ones. $1 space
INSERT INTO {schema}.embeddings AS v (space, entity_type, id, content_hash, error, {storage})
SELECT $1, entity_type, id, content_hash, error, vector FROM pg_temp.entityframes_vectors
ON CONFLICT (entity_type, id, space) DO UPDATE SET
    content_hash = EXCLUDED.content_hash, error = EXCLUDED.error, embedded_at = EXCLUDED.embedded_at,
    {storage} = EXCLUDED.{storage}

-- name: iterative_scan
-- Makes an approximate search continue until enough rows pass the filter.
SET LOCAL hnsw.iterative_scan = strict_order

-- name: search_breadth
-- Sets the number of candidates of an approximate search.
SET LOCAL hnsw.ef_search = {breadth}

-- name: nearest
-- The nearest vectors of a space with their entities, which are null if the content has changed since.
-- $1 space, $2 vector, $3 limit, $4 entity_type or null
SELECT -v.distance AS score, e.entity_type, e.id, e.content, e.metadata::text AS metadata,
    encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at
FROM (
    SELECT entity_type, id, content_hash, pgvector::vector({dim}) <#> $2::vector AS distance
    FROM {schema}.embeddings
    WHERE space = $1 AND error IS NULL AND ($4::text IS NULL OR entity_type = $4)
    ORDER BY {order} LIMIT $3::int8
) AS v
LEFT JOIN {schema}.entities AS e
    ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
ORDER BY v.distance, v.entity_type, v.id

-- name: nearest_where
-- Likewise for entities that satisfy a predicate. $1 space, $2 vector, $3 limit, $4 entity_type or null
SELECT -(v.pgvector::vector({dim}) <#> $2::vector) AS score, e.entity_type, e.id, e.content,
    e.metadata::text AS metadata, encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at
FROM {schema}.embeddings AS v
JOIN (SELECT * FROM {schema}.entities WHERE {condition}) AS e
    ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
WHERE v.space = $1 AND v.error IS NULL AND ($4::text IS NULL OR v.entity_type = $4)
ORDER BY v.pgvector::vector({dim}) <#> $2::vector, v.entity_type, v.id LIMIT $3::int8

-- name: vectors
-- The vectors of a space as bytes, without pgvector. $1 space, $2 entity_type or null
SELECT v.entity_type, v.id, v.content_hash, v.vector
FROM {schema}.embeddings AS v
JOIN (SELECT * FROM {schema}.entities WHERE {condition}) AS e
    ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
WHERE v.space = $1 AND v.error IS NULL AND ($2::text IS NULL OR v.entity_type = $2)

-- name: entities_of
-- The entities of the given keys with the positions of the keys. $1 entity_types, $2 ids, $3 content hashes
SELECT t.position::int4 - 1 AS position, e.entity_type, e.id, e.content, e.metadata::text AS metadata,
    encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at
FROM unnest($1::text[], $2::text[], $3::bytea[]) WITH ORDINALITY AS t (entity_type, id, content_hash, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id AND e.content_hash = t.content_hash
ORDER BY position
