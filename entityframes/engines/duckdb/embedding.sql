-- The statements for embedding and vector search on DuckDB. Besides {schema}, only the part that looks up keys,
-- dimensions and rendered predicates are substituted. given and texts are frames registered on the connection.

-- name: spaces
-- The spaces; the active one is the one that was activated last.
SELECT space, model, dim, passages, activated_at IS NOT NULL AND activated_at = max(activated_at) OVER () AS active,
    created_at
FROM {schema}.spaces ORDER BY created_at, space

-- name: coverage
-- The number of embedded, due and failed entities of each space.
WITH {done}, {failing}, states AS (
    SELECT s.space, e.content_hash <> unhex(sha256('')) AS filled, coalesce(d.text, false) AS text,
        d.id IS NOT NULL AND coalesce(d.metadata_hash = e.metadata_hash, true) AS done, f.id IS NOT NULL AS failed
    FROM {schema}.spaces AS s
    LEFT JOIN {schema}.entities AS e ON true
    LEFT JOIN done AS d ON d.space = s.space
        AND d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    LEFT JOIN failing AS f ON f.space = s.space AND f.entity_type = e.entity_type AND f.id = e.id
)
SELECT space,
    count(*) FILTER (WHERE done AND text AND NOT failed) AS embedded,
    count(*) FILTER (WHERE filled AND NOT done) AS due,
    count(*) FILTER (WHERE done AND failed) AS failed
FROM states GROUP BY space

-- name: add_space
-- A new space, active if it is the first. $1 space, $2 model, $3 dim, $4 passages or null
INSERT INTO {schema}.spaces (space, model, dim, passages, activated_at, created_at)
SELECT $1, $2, $3, $4, CASE WHEN NOT EXISTS (SELECT 1 FROM {schema}.spaces) THEN now() END, now()
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

-- name: delete_space_passages
-- Deletes the passages of a space. $1 space
DELETE FROM {schema}.passages WHERE space = $1

-- name: delete_space
-- Deletes a space. $1 space
DELETE FROM {schema}.spaces WHERE space = $1

-- name: has_others
-- Whether there are other spaces, so that the jobs queued by upserts do not cover a new space. $1 space
SELECT EXISTS (SELECT 1 FROM {schema}.spaces WHERE space <> $1)

-- name: forget_errors
-- Makes failed entities due again. $1 space, $2 entity_type or null
DELETE FROM {schema}.embeddings WHERE space = $1 AND error IS NOT NULL AND ($2::VARCHAR IS NULL OR text_hash IN (
    SELECT text_hash FROM {schema}.passages WHERE space = $1 AND entity_type = $2
))

-- name: forget_errors_of
-- Likewise for the given keys. $1 space
DELETE FROM {schema}.embeddings WHERE space = $1 AND error IS NOT NULL AND text_hash IN (
    SELECT p.text_hash FROM {schema}.passages AS p JOIN given AS t ON t.entity_type = p.entity_type AND t.id = p.id
    WHERE p.space = $1
)

-- name: forget_keys
-- Deletes lists of keys without a job.
DELETE FROM {schema}.job_keys WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs)

-- name: list_due
-- Creates lists of all keys that are due, each for a new job.
-- $1 space or null, $2 rows in a job, $3 entity_type or null
WITH {done}, due AS MATERIALIZED (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) // $2 AS piece
    FROM {schema}.entities AS e
    LEFT JOIN (SELECT * FROM done WHERE space = $1) AS d
        ON d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    WHERE (d.id IS NULL OR d.metadata_hash <> e.metadata_hash)
        AND e.content_hash <> unhex(sha256('')) AND ($3::VARCHAR IS NULL OR e.entity_type = $3)
), jobs AS MATERIALIZED (SELECT piece, uuid() AS job_id FROM due GROUP BY piece)
INSERT INTO {schema}.job_keys SELECT job_id, entity_type, id FROM due JOIN jobs USING (piece) ORDER BY piece

-- name: list_given
-- Likewise for the given keys. $1 space or null, $2 rows in a job
WITH {found}, {done}, due AS MATERIALIZED (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) // $2 AS piece
    FROM (SELECT DISTINCT ON (place) * FROM found) AS e
    LEFT JOIN (SELECT * FROM done WHERE space = $1) AS d
        ON d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    WHERE (d.id IS NULL OR d.metadata_hash <> e.metadata_hash) AND e.content_hash <> unhex(sha256(''))
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
WITH {failing}
SELECT entity_type, id FROM failing WHERE space = $1

-- name: retitled
-- The entities that were cut with a title, and whose metadata have changed since. $1 space
SELECT p.entity_type, p.id
FROM {schema}.passages AS p
JOIN {schema}.entities AS e ON e.entity_type = p.entity_type AND e.id = p.id AND e.content_hash = p.content_hash
WHERE p.space = $1 AND p.position = 0 AND p.metadata_hash <> e.metadata_hash

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

-- name: clock
-- The time of the database.
SELECT now() AS now

-- name: embedded_by
-- The entities of jobs that a process was the last to claim, if all of their texts have a vector, and one of these was
-- written since some time. $1 process, $2 space, $3 time
WITH {done}
SELECT j.job_id::VARCHAR AS job_id, p.entity_type, p.id, min(v.error) AS error
FROM {schema}.embedding_jobs AS j
JOIN {schema}.job_keys AS k ON k.job_id = j.keys_of
JOIN done AS d ON d.space = $2 AND d.entity_type = k.entity_type AND d.id = k.id
JOIN {schema}.passages AS p ON p.space = $2 AND p.entity_type = k.entity_type AND p.id = k.id
JOIN {schema}.embeddings AS v ON v.space = $2 AND v.text_hash = p.text_hash
WHERE j.space = $2 AND j.state IN ('running', 'done') AND starts_with(j.worker, $1)
GROUP BY j.job_id, p.entity_type, p.id HAVING max(v.embedded_at) >= $3
ORDER BY p.entity_type, p.id

-- name: members
-- The entities of a job that are still due, with their content, and whether they have passages, maybe of older content.
-- The metadata only where it is used. Only the passages of these entities are looked up. $1 job, $2 space
WITH given AS (
    SELECT DISTINCT entity_type, id, NULL AS position
    FROM {schema}.job_keys WHERE job_id = (SELECT keys_of FROM {schema}.embedding_jobs WHERE job_id = $1::UUID)
), {found}, own AS MATERIALIZED (
    SELECT p.* FROM {schema}.passages AS p
    SEMI JOIN given AS t ON t.entity_type = p.entity_type AND t.id = p.id
    WHERE p.space = $2
), lacking AS (
    SELECT DISTINCT entity_type, id FROM own
    ANTI JOIN (SELECT text_hash FROM {schema}.embeddings WHERE space = $2) AS v ON v.text_hash = own.text_hash
    WHERE own.text_hash IS NOT NULL
)
SELECT e.entity_type, e.id, e.content, e.content_hash, {metadata} AS metadata, e.metadata_hash,
    p.id IS NOT NULL AS stored
FROM found AS e
LEFT JOIN (SELECT * FROM own WHERE position = 0) AS p ON p.entity_type = e.entity_type AND p.id = e.id
LEFT JOIN lacking AS l ON l.entity_type = e.entity_type AND l.id = e.id
WHERE e.content_hash <> unhex(sha256('')) AND (
    p.id IS NULL OR p.content_hash <> e.content_hash OR p.metadata_hash <> e.metadata_hash OR l.id IS NOT NULL
)
ORDER BY e.entity_type, e.id

-- name: move
-- Changes the state of a job, if the worker still holds it.
-- $1 job, $2 fence, $3 current state, $4 new state, $5 attempts, $6 error, $7 lease
UPDATE {schema}.embedding_jobs SET state = $4, attempts = $5, error = $6, updated_at = now(),
    lease_until = CASE WHEN $4 = 'running' THEN now() + to_milliseconds(($7 * 1000)::BIGINT) END
WHERE job_id = $1::UUID AND fence = $2 AND state = $3

-- name: embedded
-- Those of the given texts that have a vector or an error. $1 space
SELECT v.text_hash, v.error FROM {schema}.embeddings AS v SEMI JOIN texts AS t ON t.text_hash = v.text_hash
WHERE v.space = $1

-- name: current
-- The given entities that have not changed since they were read, and whether they have passages. $1 space
WITH {found}
SELECT t.position, p.id IS NOT NULL AS stored
FROM given AS t JOIN found AS e ON e.position = t.position AND e.content_hash = t.content_hash
LEFT JOIN (SELECT entity_type, id FROM {schema}.passages WHERE space = $1 AND position = 0) AS p
    ON p.entity_type = t.entity_type AND p.id = t.id
WHERE coalesce(t.metadata_hash = e.metadata_hash, true)
ORDER BY t.position

-- name: replace_errors
-- Deletes the errors of the given texts, which have a vector now. $1 space
DELETE FROM {schema}.embeddings AS v USING texts AS t
WHERE v.space = $1 AND v.text_hash = t.text_hash AND v.error IS NOT NULL AND t.error IS NULL

-- name: replace_vectors
-- Deletes the vectors and errors of the given texts. $1 space
DELETE FROM {schema}.embeddings AS v USING texts AS t WHERE v.space = $1 AND v.text_hash = t.text_hash

-- name: insert_vectors
-- Inserts the vectors of the given texts, except of those that have one. $1 space
INSERT INTO {schema}.embeddings (space, text_hash, error, embedded_at, vector_{dim})
SELECT $1, t.text_hash, t.error, now(), t.vector FROM texts AS t
ANTI JOIN (SELECT text_hash FROM {schema}.embeddings WHERE space = $1) AS v ON v.text_hash = t.text_hash

-- name: replace_passages
-- Deletes the passages of the given entities. $1 space
DELETE FROM {schema}.passages AS p USING given AS t
WHERE p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id

-- name: insert_passages
-- Inserts passages in key order. $1 space
INSERT INTO {schema}.passages
SELECT $1, entity_type, id, content_hash, metadata_hash, position, start, "end", heading, text_hash FROM given

-- name: vectors
-- The vectors of all passages of current contents. $1 space, $2 entity_type or null
SELECT p.entity_type, p.id, lower(hex(p.content_hash)) AS content_hash, p.start_char AS start,
    coalesce(p.end_char, length(e.content)) AS "end", p.heading, v.vector_{dim} AS vector
FROM {schema}.passages AS p
JOIN {schema}.entities AS e ON e.entity_type = p.entity_type AND e.id = p.id AND e.content_hash = p.content_hash
JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = p.text_hash AND v.error IS NULL
WHERE p.space = $1 AND ($2::VARCHAR IS NULL OR p.entity_type = $2)

-- name: vacuum
-- Deletes vectors that no passage uses.
DELETE FROM {schema}.embeddings AS v
WHERE NOT EXISTS (FROM {schema}.passages AS p WHERE p.space = v.space AND p.text_hash = v.text_hash)

-- part: hits
-- The best passage of each entity, out of the passages of the texts in near, if its content has not changed since.
-- $1 space, $3 limit, $4 entity_type or null
hits AS (
    SELECT p.entity_type, p.id, e.place, n.score, p.start_char, p.end_char, p.heading
    FROM near AS n
    JOIN (SELECT * FROM {schema}.passages WHERE space = $1) AS p ON p.text_hash = n.text_hash
    JOIN (SELECT rowid AS place, entity_type, id, content_hash FROM {schema}.entities WHERE {condition}) AS e
        ON e.entity_type = p.entity_type AND e.id = p.id AND e.content_hash = p.content_hash
    WHERE $4::VARCHAR IS NULL OR p.entity_type = $4
    QUALIFY row_number() OVER (PARTITION BY p.entity_type, p.id ORDER BY n.score DESC, p.position) = 1
), best AS MATERIALIZED (SELECT * FROM hits ORDER BY score DESC, entity_type, id LIMIT $3)

-- part: near
-- The texts with the nearest vectors. $5 number of texts
near AS MATERIALIZED (SELECT text_hash, score FROM scored ORDER BY score DESC LIMIT $5)

-- part: ranked
-- One row per hit, with the number of texts in near and the lowest of their scores; one row without an entity if there
-- are none. Entities are read by their location, because a join by keys would decompress all contents.
SELECT c.considered, c.lowest::DOUBLE AS lowest, b.score::DOUBLE AS score, e.entity_type, e.id, e.content, e.metadata::VARCHAR AS metadata,
    lower(hex(e.content_hash)) AS content_hash, e.created_at, e.updated_at,
    b.start_char AS start, b.end_char AS "end", b.heading
FROM (SELECT count(*) AS considered, min(score) AS lowest FROM near) AS c
LEFT JOIN (best AS b JOIN {schema}.entities AS e ON e.rowid = b.place) ON true
ORDER BY b.score DESC, b.entity_type, b.id

-- name: nearest
-- The entities with the nearest passages. $1 space, $2 vector, $3 limit, $4 entity_type or null, $5 number of texts
WITH scored AS (
    SELECT text_hash, array_inner_product(vector_{dim}, $2::FLOAT[{dim}]) AS score
    FROM {schema}.embeddings WHERE space = $1 AND error IS NULL
), {near}, {hits}
{ranked}

-- name: nearest_of_type
-- Likewise for entities of a type; only their vectors are compared.
WITH scored AS (
    SELECT v.text_hash, array_inner_product(v.vector_{dim}, $2::FLOAT[{dim}]) AS score
    FROM {schema}.embeddings AS v
    SEMI JOIN (SELECT text_hash FROM {schema}.passages WHERE space = $1 AND entity_type = $4) AS p
        ON p.text_hash = v.text_hash
    WHERE v.space = $1 AND v.error IS NULL
), {near}, {hits}
{ranked}

-- name: nearest_where
-- Likewise for entities that satisfy a predicate, of a type or of all.
WITH eligible AS MATERIALIZED (
    SELECT p.text_hash
    FROM (SELECT * FROM {schema}.passages WHERE space = $1) AS p
    SEMI JOIN (SELECT entity_type, id FROM {schema}.entities WHERE {condition}) AS e
        ON e.entity_type = p.entity_type AND e.id = p.id
    WHERE $4::VARCHAR IS NULL OR p.entity_type = $4
), scored AS (
    SELECT v.text_hash, array_inner_product(v.vector_{dim}, $2::FLOAT[{dim}]) AS score
    FROM {schema}.embeddings AS v SEMI JOIN eligible AS t ON t.text_hash = v.text_hash
    WHERE v.space = $1 AND v.error IS NULL
), {near}, {hits}
{ranked}

-- name: passages_near
-- The passages of the given entities, if their content has not changed, with their scores. $1 space, $2 vector
SELECT t.position, array_inner_product(v.vector_{dim}, $2::FLOAT[{dim}])::DOUBLE AS score,
    p.start_char AS start, p.end_char AS "end", p.heading
FROM given AS t
JOIN {schema}.passages AS p ON p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id
    AND p.content_hash = unhex(t.content_hash)
JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = p.text_hash AND v.error IS NULL
ORDER BY t.position, score DESC, p.position
