-- The statements for embedding and vector search on PostgreSQL. Besides {schema}, only numbers, validated names of
-- spaces and rendered predicates are substituted.

-- name: spaces
-- The spaces; the active one is the one that was activated last.
SELECT space, model, dim, passages, storage, number,
    activated_at IS NOT NULL AND activated_at = max(activated_at) OVER () AS active, created_at
FROM {schema}.spaces ORDER BY number

-- name: coverage
-- The number of embedded, due and failed entities of each space.
WITH {done}, {failing}, states AS (
    SELECT s.space, e.content <> '' AS filled, coalesce(d.text, false) AS text,
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
-- A new space, active if it is the first. $1 space, $2 model, $3 dim, $4 passages or null, $5 storage
INSERT INTO {schema}.spaces (space, model, dim, passages, storage, activated_at, created_at)
SELECT $1, $2, $3::int4, $4, $5, CASE WHEN NOT EXISTS (SELECT FROM {schema}.spaces) THEN now() END, now()
ON CONFLICT (space) DO NOTHING RETURNING number

-- name: add_partition
-- Adds the partitions of a space: searches read only its vectors, and dropping it is fast. Unlike CREATE TABLE PARTITION
-- OF, this does not wait for searches of other spaces.
CREATE TABLE {schema}.embeddings_{number} (LIKE {schema}.embeddings INCLUDING CONSTRAINTS INCLUDING DEFAULTS INCLUDING STORAGE);
CREATE TABLE {schema}.passages_{number} (LIKE {schema}.passages INCLUDING CONSTRAINTS INCLUDING DEFAULTS INCLUDING STORAGE);
ALTER TABLE {schema}.embeddings ATTACH PARTITION {schema}.embeddings_{number} FOR VALUES IN ('{space}');
ALTER TABLE {schema}.passages ATTACH PARTITION {schema}.passages_{number} FOR VALUES IN ('{space}')

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
-- Drops the vectors and the passages of a space.
DROP TABLE IF EXISTS {schema}.embeddings_{number};
DROP TABLE IF EXISTS {schema}.passages_{number}

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
ANALYZE {schema}.embeddings_{number};
ANALYZE {schema}.passages_{number}

-- name: has_others
-- Whether there are other spaces, so that the jobs queued by upserts do not cover a new space. $1 space
SELECT EXISTS (SELECT FROM {schema}.spaces WHERE space <> $1)

-- name: forget_errors
-- Makes failed entities due again. $1 space, $2 entity_type or null
DELETE FROM {schema}.embeddings AS v
WHERE v.space = $1 AND v.error IS NOT NULL AND ($2::text IS NULL OR EXISTS (
    SELECT FROM {schema}.passages AS p WHERE p.space = $1 AND p.text_hash = v.text_hash AND p.entity_type = $2
))

-- name: forget_errors_of
-- Likewise for the given keys. $1 space, $2 entity_types, $3 ids
DELETE FROM {schema}.embeddings AS v WHERE v.space = $1 AND v.error IS NOT NULL AND v.text_hash IN (
    SELECT p.text_hash
    FROM unnest($2::text[], $3::text[]) AS t (entity_type, id)
    JOIN {schema}.passages AS p ON p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id
)

-- name: enqueue
-- Creates jobs for everything that is due. $1 space or null, $2 rows in a job, $3 entity_type or null
WITH {done}, due AS (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) / $2::int8 AS piece
    FROM {schema}.entities AS e
    WHERE e.content <> '' AND ($3::text IS NULL OR e.entity_type = $3) AND NOT EXISTS (
        SELECT FROM done AS d
        WHERE d.space = $1 AND d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
            AND coalesce(d.metadata_hash = e.metadata_hash, true)
    )
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: enqueue_keys
-- Creates jobs for the given keys that are due. $1 space or null, $2 rows in a job, $3 entity_types, $4 ids
WITH {done}, due AS (
    SELECT e.entity_type, e.id, (row_number() OVER (ORDER BY e.entity_type, e.id) - 1) / $2::int8 AS piece
    FROM (SELECT DISTINCT * FROM unnest($3::text[], $4::text[]) AS t (entity_type, id)) AS t
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.entities WHERE entity_type = t.entity_type AND id = t.id OFFSET 0
    ) AS e
    WHERE e.content <> '' AND NOT EXISTS (
        SELECT FROM done AS d
        WHERE d.space = $1 AND d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
            AND coalesce(d.metadata_hash = e.metadata_hash, true)
    )
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: enqueue_failed
-- Creates jobs for failed entities, which makes them due again. $1 space, $2 rows in a job
WITH gone AS (
    DELETE FROM {schema}.embeddings WHERE space = $1 AND error IS NOT NULL RETURNING text_hash
), failed AS (
    SELECT DISTINCT p.entity_type, p.id
    FROM gone AS g JOIN {schema}.passages AS p ON p.space = $1 AND p.text_hash = g.text_hash
), due AS (
    SELECT entity_type, id, (row_number() OVER (ORDER BY entity_type, id) - 1) / $2::int8 AS piece FROM failed
)
INSERT INTO {schema}.embedding_jobs (job_id, space, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), $1, array_agg(entity_type), array_agg(id), now(), now()
FROM due GROUP BY piece RETURNING cardinality(ids) AS entities

-- name: retitled
-- The entities that were cut with a title, and whose metadata have changed since. $1 space
SELECT p.entity_type, p.id
FROM {schema}.passages AS p
JOIN {schema}.entities AS e ON e.entity_type = p.entity_type AND e.id = p.id AND e.content_hash = p.content_hash
WHERE p.space = $1 AND p.position = 0 AND p.metadata_hash <> e.metadata_hash

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

-- name: split_jobs
-- Splits large pending jobs of a space or without a space; a job keeps its first keys. $1 space, $2 keys of a job
WITH large AS (
    SELECT job_id, batch_id, space, entity_types, ids, attempts, created_at FROM {schema}.embedding_jobs
    WHERE state = 'pending' AND (space = $1 OR space IS NULL) AND cardinality(ids) > $2::int4
    FOR UPDATE SKIP LOCKED
), added AS (
    INSERT INTO {schema}.embedding_jobs
        (job_id, batch_id, space, entity_types, ids, attempts, created_at, updated_at)
    SELECT gen_random_uuid(), batch_id, space, entity_types[low:low + $2::int4 - 1], ids[low:low + $2::int4 - 1],
        attempts, created_at, now()
    FROM large CROSS JOIN LATERAL generate_series($2::int4 + 1, cardinality(ids), $2::int4) AS s (low)
)
UPDATE {schema}.embedding_jobs AS j
SET entity_types = j.entity_types[:$2::int4], ids = j.ids[:$2::int4], updated_at = now()
FROM large AS l WHERE j.job_id = l.job_id RETURNING j.job_id::text

-- name: give_back
-- Lets the leases of a process that has died expire now. $1 process
UPDATE {schema}.embedding_jobs SET lease_until = now() - interval '1 second'
WHERE state = 'running' AND starts_with(worker, $1) AND lease_until >= now() RETURNING job_id::text

-- name: clock
-- The time of the database.
SELECT clock_timestamp() AS now

-- name: embedded_by
-- The entities of jobs that a process was the last to claim, if all of their texts have a vector, and one of these was
-- written since some time. $1 process, $2 space, $3 time
WITH {done}
SELECT j.job_id::text AS job_id, p.entity_type, p.id, min(v.error) AS error
FROM {schema}.embedding_jobs AS j
CROSS JOIN LATERAL unnest(j.entity_types, j.ids) AS m (entity_type, id)
JOIN done AS d ON d.space = $2 AND d.entity_type = m.entity_type AND d.id = m.id
JOIN {schema}.passages AS p ON p.space = $2 AND p.entity_type = m.entity_type AND p.id = m.id
JOIN {schema}.embeddings AS v ON v.space = $2 AND v.text_hash = p.text_hash
WHERE j.space = $2 AND j.state IN ('running', 'done') AND starts_with(j.worker, $1)
GROUP BY j.job_id, p.entity_type, p.id HAVING max(v.embedded_at) >= $3::timestamptz
ORDER BY p.entity_type, p.id

-- name: members
-- The entities of a job that are still due, with their content, and whether they have passages, maybe of older content.
-- The metadata only where it is used. Sorts keys only, not content. $1 job, $2 space
WITH {done}
SELECT e.entity_type, e.id, e.content, e.content_hash, {metadata} AS metadata, e.metadata_hash,
    p.position IS NOT NULL AS stored
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
    SELECT position FROM {schema}.passages
    WHERE entity_type = t.entity_type AND id = t.id AND space = $2 AND position = 0 OFFSET 0
) AS p ON true
LEFT JOIN LATERAL (
    SELECT content_hash, metadata_hash FROM done
    WHERE entity_type = t.entity_type AND id = t.id AND space = $2 OFFSET 0
) AS d ON true
WHERE e.content <> ''
    AND (d.content_hash IS DISTINCT FROM e.content_hash OR d.metadata_hash <> e.metadata_hash)
ORDER BY t.entity_type, t.id

-- name: move
-- Changes the state of a job, if the worker still holds it.
-- $1 job, $2 fence, $3 current state, $4 new state, $5 attempts, $6 error, $7 lease
UPDATE {schema}.embedding_jobs
SET state = $4, attempts = $5::int4, error = $6, updated_at = now(),
    lease_until = CASE WHEN $4 = 'running' THEN now() + make_interval(secs => $7::float8) END
WHERE job_id = $1::uuid AND fence = $2::int4 AND state = $3 RETURNING job_id::text

-- name: hold_current
-- The given rows whose entity has not changed since it was read, and whether it has passages. The lock on the entity
-- delays concurrent updates and deletions until the commit.
-- $1 entity_types, $2 ids, $3 content hashes, $4 metadata hashes, null where they do not matter
SELECT t.position::int4 - 1 AS position
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[])
    WITH ORDINALITY AS t (entity_type, id, content_hash, metadata_hash, position)
CROSS JOIN LATERAL (
    SELECT FROM {schema}.entities AS e
    WHERE e.entity_type = t.entity_type AND e.id = t.id AND e.content_hash = t.content_hash
        AND coalesce(e.metadata_hash = t.metadata_hash, true) OFFSET 0 FOR SHARE
) AS e

-- name: embedded
-- Those of the given texts that have a vector or an error. $1 space, $2 hashes of texts
SELECT text_hash, error FROM {schema}.embeddings WHERE space = $1 AND text_hash = ANY ($2::bytea[])

-- name: keep_vectors
-- A lock until the end of the transaction, which delays the deletion of unused vectors. $1 namespace
SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 7043))

-- name: delay_writers
-- A lock until the end of the transaction, which waits for transactions that are about to use vectors. $1 namespace
SELECT pg_advisory_xact_lock(hashtextextended($1, 7043))

-- name: all_vectors
-- The vectors of all passages of current contents, as bytes. $1 space, $2 entity_type or null
SELECT p.entity_type, p.id, encode(p.content_hash, 'hex') AS content_hash, p.start_char AS start,
    coalesce(p.end_char, length(e.content)) AS "end", p.heading, {vector} AS vector
FROM {schema}.passages AS p
JOIN {schema}.entities AS e ON e.entity_type = p.entity_type AND e.id = p.id AND e.content_hash = p.content_hash
JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = p.text_hash AND v.error IS NULL
WHERE p.space = $1 AND ($2::text IS NULL OR p.entity_type = $2)

-- name: vacuum
-- Deletes vectors that no passage uses.
WITH gone AS (
    DELETE FROM {schema}.embeddings AS v
    WHERE NOT EXISTS (SELECT FROM {schema}.passages AS p WHERE p.space = v.space AND p.text_hash = v.text_hash)
    RETURNING space
)
SELECT count(*) FROM gone

-- name: create_vector_staging
-- The staging table for vectors; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_vectors (text_hash bytea, error text, vector {type}) ON COMMIT DROP

-- name: merge_vectors
-- Writes staged vectors, except of texts that have one, unless they are replaced. $1 space, $2 whether they are
INSERT INTO {schema}.embeddings AS v (space, text_hash, error, {storage})
SELECT $1, text_hash, error, vector FROM pg_temp.entityframes_vectors
ON CONFLICT (text_hash, space) DO UPDATE SET
    error = EXCLUDED.error, embedded_at = EXCLUDED.embedded_at, {storage} = EXCLUDED.{storage}
WHERE $2::boolean OR v.error IS NOT NULL AND EXCLUDED.error IS NULL

-- name: delete_entity_passages
-- Deletes the passages of the given entities. $1 space, $2 entity_types, $3 ids
DELETE FROM {schema}.passages AS p USING unnest($2::text[], $3::text[]) AS t (entity_type, id)
WHERE p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id

-- name: create_passage_staging
-- The staging table for passages; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_passages (
    space text, entity_type text, id text, content_hash bytea, metadata_hash bytea, position int4, start_char int8,
    end_char int8, heading text, text_hash bytea
) ON COMMIT DROP

-- name: merge_passages
-- Writes staged passages in key order.
INSERT INTO {schema}.passages (
    space, entity_type, id, content_hash, metadata_hash, position, start_char, end_char, heading, text_hash
)
SELECT space, entity_type, id, content_hash, metadata_hash, position, start_char, end_char, heading, text_hash
FROM pg_temp.entityframes_passages ORDER BY entity_type COLLATE "C", id COLLATE "C", position
ON CONFLICT (entity_type, id, space, position) DO UPDATE SET
    content_hash = EXCLUDED.content_hash, metadata_hash = EXCLUDED.metadata_hash, start_char = EXCLUDED.start_char,
    end_char = EXCLUDED.end_char, heading = EXCLUDED.heading, text_hash = EXCLUDED.text_hash

-- name: has_index
-- Whether a space has the index.
SELECT to_regclass('{schema}.nearest_{number}') IS NOT NULL

-- name: iterative_scan
-- Makes an approximate search continue until enough rows pass the filter.
SET LOCAL hnsw.iterative_scan = strict_order

-- name: search_breadth
-- Sets the number of candidates of an approximate search.
SET LOCAL hnsw.ef_search = {breadth}

-- part: hits
-- The best passage of each entity, out of the passages of the texts in near, if its content has not changed since.
-- $1 space, $3 limit, $4 entity_type or null
hits AS (
    SELECT DISTINCT ON (p.entity_type, p.id) p.entity_type, p.id, n.score, p.start_char, p.end_char, p.heading
    FROM near AS n
    CROSS JOIN LATERAL (
        SELECT * FROM {schema}.passages
        WHERE space = $1 AND text_hash = n.text_hash AND ($4::text IS NULL OR entity_type = $4) OFFSET 0
    ) AS p
    CROSS JOIN LATERAL (
        SELECT FROM {schema}.entities
        WHERE entity_type = p.entity_type AND id = p.id AND content_hash = p.content_hash AND ({condition}) OFFSET 0
    ) AS e
    ORDER BY p.entity_type, p.id, n.score DESC, p.position
), best AS (SELECT * FROM hits ORDER BY score DESC, entity_type, id LIMIT $3::int8)

-- part: ranked
-- One row per hit, with the number of texts in near and the lowest of their scores; one row without an entity if there
-- are none.
SELECT c.considered, c.lowest, b.score, b.entity_type, b.id, e.content, e.metadata::text AS metadata,
    encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at,
    b.start_char AS start, b.end_char AS "end", b.heading
FROM (SELECT {considered} AS considered, min(score) AS lowest FROM near) AS c
LEFT JOIN (best AS b JOIN {schema}.entities AS e ON e.entity_type = b.entity_type AND e.id = b.id) ON true
ORDER BY b.score DESC, b.entity_type, b.id

-- name: nearest
-- The entities with the nearest passages; whether the index can be used depends on the order. A filter is applied to
-- the entities of the nearest texts. $1 space, $2 vector, $3 limit, $4 entity_type or null, $5 number of texts
WITH near AS MATERIALIZED (
    SELECT text_hash, -distance AS score FROM (
        SELECT text_hash, pgvector::vector({dim}) <#> $2::vector AS distance
        FROM {schema}.embeddings WHERE space = $1 AND error IS NULL
    ) AS v ORDER BY {order} LIMIT $5::int8
), {hits}
{ranked}

-- part: near_eligible
-- The nearest of the texts in eligible, if there are fewer than $6 of them.
near AS MATERIALIZED (
    SELECT v.text_hash, -(v.pgvector::vector({dim}) <#> $2::vector) AS score
    FROM (SELECT DISTINCT text_hash FROM eligible WHERE (SELECT count(*) FROM eligible) < $6::int8) AS t
    JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = t.text_hash AND v.error IS NULL
    ORDER BY score DESC LIMIT $5::int8
)

-- name: nearest_of_few
-- The entities of a type with the nearest passages, without the index; considered is null if the type has too many.
-- $1 space, $2 vector, $3 limit, $4 entity_type, $5 number of texts, $6 too many passages
WITH eligible AS MATERIALIZED (
    SELECT text_hash FROM {schema}.passages WHERE space = $1 AND entity_type = $4 LIMIT $6::int8
), {near_eligible}, {hits}
{ranked}

-- name: nearest_of_few_where
-- Likewise for entities that satisfy a predicate, of a type or of all.
WITH eligible AS MATERIALIZED (
    SELECT p.text_hash
    FROM (SELECT entity_type, id FROM {schema}.entities WHERE {condition}) AS e
    JOIN {schema}.passages AS p ON p.space = $1 AND p.entity_type = e.entity_type AND p.id = e.id
    WHERE $4::text IS NULL OR e.entity_type = $4
    LIMIT $6::int8
), {near_eligible}, {hits}
{ranked}

-- name: nearest_of_many
-- Likewise for any number of entities.
WITH near AS MATERIALIZED (
    SELECT v.text_hash, -(v.pgvector::vector({dim}) <#> $2::vector) AS score
    FROM {schema}.embeddings AS v
    WHERE v.space = $1 AND v.error IS NULL AND v.text_hash IN (
        SELECT p.text_hash FROM {schema}.passages AS p
        JOIN (SELECT entity_type, id FROM {schema}.entities WHERE {condition}) AS e
            ON e.entity_type = p.entity_type AND e.id = p.id
        WHERE p.space = $1 AND ($4::text IS NULL OR p.entity_type = $4)
    )
    ORDER BY score DESC LIMIT $5::int8
), {hits}
{ranked}

-- name: vectors
-- The vectors of a space as bytes, without pgvector. $1 space, $2 entity_type or null
SELECT v.text_hash, v.vector
FROM {schema}.embeddings AS v
WHERE v.space = $1 AND v.error IS NULL AND EXISTS (
    SELECT FROM {schema}.passages AS p
    JOIN (SELECT entity_type, id FROM {schema}.entities WHERE {condition}) AS e
        ON e.entity_type = p.entity_type AND e.id = p.id
    WHERE p.space = $1 AND p.text_hash = v.text_hash AND ($2::text IS NULL OR p.entity_type = $2)
)

-- name: nearest_of
-- The entities with the best passages out of those with the given texts.
-- $1 space, $2 hashes of texts, $3 limit, $4 entity_type or null, $5 their scores
WITH near AS MATERIALIZED (
    SELECT text_hash, score FROM unnest($2::bytea[], $5::float8[]) AS t (text_hash, score)
), {hits}
{ranked}

-- name: passages_near
-- The passages of the given entities, if their content has not changed, with their scores.
-- $1 space, $2 vector, $3 entity_types, $4 ids, $5 content hashes (hex)
SELECT t.position::int4 - 1 AS position, -(v.pgvector::vector({dim}) <#> $2::vector) AS score,
    p.start_char AS start, p.end_char AS "end", p.heading
FROM unnest($3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS t (entity_type, id, content_hash, position)
JOIN {schema}.passages AS p ON p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id
    AND p.content_hash = decode(t.content_hash, 'hex')
JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = p.text_hash AND v.error IS NULL
ORDER BY t.position, score DESC, p.position

-- name: passage_vectors
-- Likewise with the vectors as bytes, without pgvector. $1 space, $2 entity_types, $3 ids, $4 content hashes (hex)
SELECT t.position::int4 - 1 AS position, v.vector, p.start_char AS start, p.end_char AS "end", p.heading
FROM unnest($2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS t (entity_type, id, content_hash, position)
JOIN {schema}.passages AS p ON p.space = $1 AND p.entity_type = t.entity_type AND p.id = t.id
    AND p.content_hash = decode(t.content_hash, 'hex')
JOIN {schema}.embeddings AS v ON v.space = $1 AND v.text_hash = p.text_hash AND v.error IS NULL
ORDER BY t.position, p.position
