-- The statements for embedding and vector search on DuckDB. Besides {schema}, only the part that looks up keys,
-- dimensions and rendered predicates are substituted. given is a frame registered on the connection.

-- name: spaces
-- The spaces; the active one is the one that was activated last.
SELECT space, model, dim, activated_at IS NOT NULL AND activated_at = max(activated_at) OVER () AS active, created_at
FROM {schema}.spaces ORDER BY created_at, space

-- name: coverage
-- The number of embedded, due and failed entities of each space.
SELECT s.space,
    count(*) FILTER (WHERE v.content_hash IS NOT NULL AND v.error IS NULL) AS embedded,
    count(*) FILTER (WHERE e.content_hash <> unhex(sha256('')) AND v.content_hash IS NULL) AS due,
    count(*) FILTER (WHERE v.error IS NOT NULL) AS failed
FROM {schema}.spaces AS s
LEFT JOIN {schema}.entities AS e ON true
LEFT JOIN {schema}.embeddings AS v ON v.space = s.space
    AND v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash
GROUP BY s.space

-- name: add_space
-- A new space, active if it is the first. $1 space, $2 model, $3 dim
INSERT INTO {schema}.spaces (space, model, dim, activated_at, created_at)
SELECT $1, $2, $3, CASE WHEN NOT EXISTS (SELECT 1 FROM {schema}.spaces) THEN now() END, now()
WHERE NOT EXISTS (SELECT 1 FROM {schema}.spaces WHERE space = $1)

-- name: add_vector_column
-- Adds the column for vectors of a dimension; arrays of fixed length are compared faster than lists.
ALTER TABLE {schema}.embeddings ADD COLUMN IF NOT EXISTS vector_{dim} FLOAT[{dim}]

-- name: activate_space
-- Makes a space the active one. $1 space
UPDATE {schema}.spaces SET activated_at = now() WHERE space = $1

-- name: release_jobs
-- Detaches the jobs of the last space, so that queued entities stay queued for the next space. $1 space
UPDATE {schema}.embedding_jobs
SET space = NULL, state = 'pending', attempts = 0, rescues = 0, lease_until = NULL, error = NULL, updated_at = now()
WHERE space = $1 AND NOT EXISTS (SELECT 1 FROM {schema}.spaces WHERE space <> $1)

-- name: delete_jobs
-- Deletes the jobs of a space. $1 space
DELETE FROM {schema}.embedding_jobs WHERE space = $1

-- name: delete_embeddings
-- Deletes the vectors of a space. $1 space
DELETE FROM {schema}.embeddings WHERE space = $1

-- name: delete_space
-- Deletes a space. $1 space
DELETE FROM {schema}.spaces WHERE space = $1

-- name: has_others
-- Whether there are other spaces, so that the jobs queued by upserts do not cover a new space. $1 space
SELECT EXISTS (SELECT 1 FROM {schema}.spaces WHERE space <> $1)

-- name: forget_errors
-- Makes failed entities due again. $1 space, $2 entity_type or null
DELETE FROM {schema}.embeddings
WHERE space = $1 AND error IS NOT NULL AND ($2::VARCHAR IS NULL OR entity_type = $2)

-- name: forget_errors_of
-- Likewise for the given keys. $1 space
DELETE FROM {schema}.embeddings AS v USING given AS t
WHERE v.space = $1 AND v.error IS NOT NULL AND v.entity_type = t.entity_type AND v.id = t.id

-- name: forget_keys
-- Deletes lists of keys without a job.
DELETE FROM {schema}.job_keys WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs)

-- name: list_due
-- Creates lists of all keys that are due, each for a new job.
-- $1 space or null, $2 rows in a job, $3 entity_type or null
WITH due AS MATERIALIZED (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) // $2 AS piece
    FROM {schema}.entities AS e
    ANTI JOIN (SELECT * FROM {schema}.embeddings WHERE space = $1) AS v
        ON v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash
    WHERE e.content_hash <> unhex(sha256('')) AND ($3::VARCHAR IS NULL OR e.entity_type = $3)
), jobs AS MATERIALIZED (SELECT piece, uuid() AS job_id FROM due GROUP BY piece)
INSERT INTO {schema}.job_keys SELECT job_id, entity_type, id FROM due JOIN jobs USING (piece) ORDER BY piece

-- name: list_given
-- Likewise for the given keys. $1 space or null, $2 rows in a job
WITH {found}, due AS MATERIALIZED (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) // $2 AS piece
    FROM (SELECT DISTINCT ON (place) * FROM found) AS e
    ANTI JOIN (SELECT * FROM {schema}.embeddings WHERE space = $1) AS v
        ON v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash
    WHERE e.content_hash <> unhex(sha256(''))
), jobs AS MATERIALIZED (SELECT piece, uuid() AS job_id FROM due GROUP BY piece)
INSERT INTO {schema}.job_keys SELECT job_id, entity_type, id FROM due JOIN jobs USING (piece) ORDER BY piece

-- name: enqueue
-- Creates jobs for the lists without one. $1 space or null
INSERT INTO {schema}.embedding_jobs (job_id, space, keys_of, entities, created_at, updated_at)
SELECT job_id, $1, job_id, count(*), now(), now()
FROM {schema}.job_keys WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs)
GROUP BY job_id RETURNING entities

-- name: failed_keys
-- The entities that failed in a space. $1 space
SELECT entity_type, id FROM {schema}.embeddings WHERE space = $1 AND error IS NOT NULL

-- name: requeue_jobs
-- Requeues failed jobs. $1 space, $2 current state, $3 new state
UPDATE {schema}.embedding_jobs SET state = $3, attempts = 0, rescues = 0, updated_at = now()
WHERE space = $1 AND state = $2 RETURNING entities

-- name: jobs
-- The jobs, oldest first. $1 state, or null for all
SELECT job_id::VARCHAR AS job_id, batch_id::VARCHAR AS batch_id, space, state, entities, attempts, worker,
    lease_until, error, created_at, updated_at
FROM {schema}.embedding_jobs WHERE $1::VARCHAR IS NULL OR state = $1 ORDER BY created_at, job_id

-- name: open_jobs
-- The number of pending and running jobs of a space or without a space. $1 space
SELECT count(*) FROM {schema}.embedding_jobs
WHERE state IN ('pending', 'running') AND (space = $1 OR space IS NULL)

-- name: fail_abandoned
-- Marks jobs as failed that were abandoned too often.
-- $1 space, $2 maximum of rescues, $3 current state, $4 new state, $5 process
UPDATE {schema}.embedding_jobs
SET state = $4, error = rescues || ' workers died at it', lease_until = NULL, updated_at = now()
WHERE space = $1 AND state = $3 AND (lease_until < now() OR NOT starts_with(worker, $5)) AND rescues >= $2

-- name: next_job
-- The oldest job that is pending, or whose worker is dead: its lease has expired, or it belongs to another process,
-- which can no longer have the file open. $1 space, $2 maximum of rescues, $3 process
SELECT job_id::VARCHAR AS job_id, space, state, fence, attempts, rescues FROM {schema}.embedding_jobs
WHERE (space = $1 OR space IS NULL) AND (state = 'pending'
    OR state = 'running' AND (lease_until < now() OR NOT starts_with(worker, $3)) AND rescues < $2)
ORDER BY created_at, job_id LIMIT 1

-- name: copy_job
-- Copies a job without a space for every space but the given one. $1 job, $2 space
INSERT INTO {schema}.embedding_jobs (job_id, batch_id, space, keys_of, entities, created_at, updated_at)
SELECT uuid(), j.batch_id, s.space, j.keys_of, j.entities, now(), now()
FROM {schema}.embedding_jobs AS j CROSS JOIN {schema}.spaces AS s
WHERE j.job_id = $1::UUID AND j.space IS NULL AND s.space <> $2

-- name: claim
-- Claims a job. $1 job, $2 space, $3 worker, $4 lease, $5 rescues
UPDATE {schema}.embedding_jobs SET state = 'running', space = $2, worker = $3, fence = fence + 1, rescues = $5,
    lease_until = now() + to_milliseconds(($4 * 1000)::BIGINT), updated_at = now()
WHERE job_id = $1::UUID

-- name: members
-- The entities of a job that are still due, with their content, and whether an older vector is stored. $1 job, $2 space
WITH given AS (
    SELECT DISTINCT entity_type, id, NULL AS position
    FROM {schema}.job_keys WHERE job_id = (SELECT keys_of FROM {schema}.embedding_jobs WHERE job_id = $1::UUID)
), {found}
SELECT e.entity_type, e.id, e.content, e.content_hash, v.id IS NOT NULL AS stored
FROM found AS e
LEFT JOIN (SELECT entity_type, id, content_hash FROM {schema}.embeddings WHERE space = $2) AS v
    ON v.entity_type = e.entity_type AND v.id = e.id
WHERE e.content_hash <> unhex(sha256('')) AND v.content_hash IS DISTINCT FROM e.content_hash
ORDER BY e.entity_type, e.id

-- name: move
-- Changes the state of a job, if the worker still holds it.
-- $1 job, $2 fence, $3 current state, $4 new state, $5 attempts, $6 error, $7 lease
UPDATE {schema}.embedding_jobs SET state = $4, attempts = $5, error = $6, updated_at = now(),
    lease_until = CASE WHEN $4 = 'running' THEN now() + to_milliseconds(($7 * 1000)::BIGINT) END
WHERE job_id = $1::UUID AND fence = $2 AND state = $3

-- name: current
-- The given vectors whose content has not changed since it was embedded, and whether an older vector is stored.
-- $1 space
WITH {found}
SELECT t.position, v.id IS NOT NULL AS stored
FROM given AS t JOIN found AS e ON e.position = t.position AND e.content_hash = t.content_hash
LEFT JOIN (SELECT * FROM {schema}.embeddings WHERE space = $1) AS v
    ON v.entity_type = t.entity_type AND v.id = t.id
ORDER BY t.position

-- name: delete_written
-- Deletes vectors that will be replaced. $1 space
DELETE FROM {schema}.embeddings AS v USING given AS t
WHERE v.space = $1 AND v.entity_type = t.entity_type AND v.id = t.id

-- name: insert_vectors
-- Inserts vectors in key order. $1 space
INSERT INTO {schema}.embeddings (space, entity_type, id, content_hash, error, embedded_at, vector_{dim})
SELECT $1, entity_type, id, content_hash, error, now(), vector FROM given

-- name: nearest
-- The nearest vectors of a space with their entities, which are null if the content has changed since.
-- $1 space, $2 vector, $3 limit, $4 entity_type or null
WITH near AS MATERIALIZED (
    SELECT entity_type, id, content_hash, array_inner_product(vector_{dim}, $2::FLOAT[{dim}]) AS score
    FROM {schema}.embeddings
    WHERE space = $1 AND error IS NULL AND ($4::VARCHAR IS NULL OR entity_type = $4)
    ORDER BY score DESC, entity_type, id LIMIT $3
), given AS (SELECT entity_type, id, NULL AS position FROM near), {found}
SELECT v.score::DOUBLE AS score, e.entity_type, e.id, e.content, e.metadata::VARCHAR AS metadata,
    lower(hex(e.content_hash)) AS content_hash, e.created_at, e.updated_at
FROM near AS v
LEFT JOIN found AS e ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
ORDER BY v.score DESC, v.entity_type, v.id

-- name: nearest_where
-- Likewise for entities that satisfy a predicate. $1 space, $2 vector, $3 limit, $4 entity_type or null
WITH near AS MATERIALIZED (
    SELECT v.entity_type, v.id, array_inner_product(v.vector_{dim}, $2::FLOAT[{dim}]) AS score
    FROM {schema}.embeddings AS v
    JOIN (SELECT entity_type, id, content_hash FROM {schema}.entities WHERE {condition}) AS e
        ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
    WHERE v.space = $1 AND v.error IS NULL AND ($4::VARCHAR IS NULL OR v.entity_type = $4)
    ORDER BY score DESC, v.entity_type, v.id LIMIT $3
), given AS (SELECT entity_type, id, NULL AS position FROM near), {found}
SELECT v.score::DOUBLE AS score, e.entity_type, e.id, e.content, e.metadata::VARCHAR AS metadata,
    lower(hex(e.content_hash)) AS content_hash, e.created_at, e.updated_at
FROM near AS v JOIN found AS e ON e.entity_type = v.entity_type AND e.id = v.id
ORDER BY v.score DESC, v.entity_type, v.id
