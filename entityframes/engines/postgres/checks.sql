-- The statements on PostgreSQL that find inconsistencies in a store (find_), and repair those that can be repaired
-- (repair_). Each find_ returns entity_type, id, batch_id, expected and found as text. {schema} is the quoted
-- namespace.

-- name: find_duplicate_key
-- Keys with several rows, which are possible only if the index of the primary key is corrupt.
SELECT entity_type, id, NULL::text AS batch_id, '1 row' AS expected, count(*) || ' rows' AS found
FROM {schema}.entities GROUP BY entity_type, id HAVING count(*) > 1

-- name: repair_duplicate_key
-- Keeps the row that was written last.
DELETE FROM {schema}.entities WHERE ctid IN (
    SELECT ctid FROM (
        SELECT ctid, row_number() OVER (PARTITION BY entity_type, id ORDER BY updated_at DESC, ctid DESC) AS place
        FROM {schema}.entities
    ) AS numbered WHERE place > 1
)

-- name: find_content_hash
-- Entities whose content hash does not match their content.
SELECT entity_type, id, NULL::text AS batch_id, encode(sha256(convert_to(content, 'UTF8')), 'hex') AS expected,
    encode(content_hash, 'hex') AS found
FROM {schema}.entities WHERE content_hash <> sha256(convert_to(content, 'UTF8'))

-- name: repair_content_hash
-- Recomputes the hash, which makes the content due for embedding.
UPDATE {schema}.entities SET content_hash = sha256(convert_to(content, 'UTF8'))
WHERE content_hash <> sha256(convert_to(content, 'UTF8'))

-- name: find_metadata_hash
-- Entities whose metadata hash does not match their metadata.
SELECT entity_type, id, NULL::text AS batch_id, encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex') AS expected,
    encode(metadata_hash, 'hex') AS found
FROM {schema}.entities WHERE metadata_hash <> sha256(convert_to(metadata::text, 'UTF8'))

-- name: repair_metadata_hash
-- Recomputes the hash.
UPDATE {schema}.entities SET metadata_hash = sha256(convert_to(metadata::text, 'UTF8'))
WHERE metadata_hash <> sha256(convert_to(metadata::text, 'UTF8'))

-- name: find_metadata
-- Entities whose metadata is not a JSON object.
SELECT entity_type, id, NULL::text AS batch_id, 'object' AS expected, json_typeof(metadata) AS found
FROM {schema}.entities WHERE json_typeof(metadata) <> 'object'

-- name: find_ledger
-- Batches that entities refer to but that are not in the ledger.
SELECT NULL::text AS entity_type, NULL::text AS id, e.batch_id::text AS batch_id, 'a ledger row' AS expected,
    'none for ' || count(*) || ' entities' AS found
FROM {schema}.entities AS e
WHERE NOT EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = e.batch_id)
GROUP BY e.batch_id

-- name: repair_ledger
-- Adds a ledger row, without a run, for each of these batches.
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
SELECT e.batch_id, '00000000-0000-0000-0000-000000000000', max(e.updated_at),
    count(*) FILTER (WHERE e.created_at = e.updated_at), count(*) FILTER (WHERE e.created_at <> e.updated_at), 0
FROM {schema}.entities AS e
WHERE NOT EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = e.batch_id)
GROUP BY e.batch_id

-- name: find_ledger_count
-- Batches with more entities than they wrote according to the ledger.
SELECT NULL::text AS entity_type, NULL::text AS id, b.batch_id::text AS batch_id,
    'created >= ' || h.created || ', updated >= ' || h.updated AS expected,
    'created ' || b.created || ', updated ' || b.updated AS found
FROM {schema}.batches AS b
JOIN (
    SELECT batch_id, count(*) FILTER (WHERE created_at = updated_at) AS created,
        count(*) FILTER (WHERE created_at <> updated_at) AS updated
    FROM {schema}.entities GROUP BY batch_id
) AS h ON h.batch_id = b.batch_id
WHERE b.created < h.created OR b.updated < h.updated

-- name: repair_ledger_count
-- Raises the counts to the number of entities.
UPDATE {schema}.batches AS b SET created = greatest(b.created, h.created), updated = greatest(b.updated, h.updated)
FROM (
    SELECT batch_id, count(*) FILTER (WHERE created_at = updated_at) AS created,
        count(*) FILTER (WHERE created_at <> updated_at) AS updated
    FROM {schema}.entities GROUP BY batch_id
) AS h
WHERE h.batch_id = b.batch_id AND (b.created < h.created OR b.updated < h.updated)

-- name: find_ledger_balance
-- The number of entities created minus those deleted must equal the number of entities.
SELECT NULL::text AS entity_type, NULL::text AS id, NULL::text AS batch_id,
    l.balance || ' entities by the ledger' AS expected, n.entities || ' are stored' AS found
FROM (SELECT coalesce(sum(created), 0) - coalesce(sum(deleted), 0) AS balance FROM {schema}.batches) AS l
CROSS JOIN (SELECT count(*) AS entities FROM {schema}.entities) AS n
WHERE l.balance <> n.entities

-- name: repair_ledger_balance
-- Adds a correcting ledger row, without a run.
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', now(), greatest(n.entities - l.balance, 0), 0,
    greatest(l.balance - n.entities, 0)
FROM (SELECT coalesce(sum(created), 0) - coalesce(sum(deleted), 0) AS balance FROM {schema}.batches) AS l
CROSS JOIN (SELECT count(*) AS entities FROM {schema}.entities) AS n
WHERE l.balance <> n.entities

-- name: find_job_batch
-- Embedding jobs of batches that are not in the ledger.
SELECT NULL::text AS entity_type, NULL::text AS id, j.batch_id::text AS batch_id, 'a ledger row' AS expected,
    'job ' || j.job_id || ' without one' AS found
FROM {schema}.embedding_jobs AS j
WHERE j.batch_id IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = j.batch_id)

-- name: repair_job_batch
-- Deletes these jobs; entities that are still due get another one.
DELETE FROM {schema}.embedding_jobs AS j
WHERE j.batch_id IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = j.batch_id)

-- name: find_job_members
-- Embedding jobs whose lists of types and ids have different lengths.
SELECT NULL::text AS entity_type, NULL::text AS id, batch_id::text AS batch_id, cardinality(ids) || ' types' AS expected,
    cardinality(entity_types) || ' in job ' || job_id AS found
FROM {schema}.embedding_jobs WHERE cardinality(entity_types) <> cardinality(ids)

-- name: repair_job_members
-- Deletes these jobs; entities that are still due get another one.
DELETE FROM {schema}.embedding_jobs WHERE cardinality(entity_types) <> cardinality(ids)

-- part: missing
-- Entities that are due for embedding and whose batch created a job, but that are in no job.
listed AS (
    SELECT m.entity_type, m.id
    FROM {schema}.embedding_jobs AS j CROSS JOIN unnest(j.entity_types, j.ids) AS m (entity_type, id)
), jobs AS (
    SELECT batch_id, sum(cardinality(ids)) AS keys FROM {schema}.embedding_jobs GROUP BY batch_id
), missing AS MATERIALIZED (
    SELECT e.entity_type, e.id, e.batch_id
    FROM {schema}.entities AS e
    JOIN {schema}.batches AS b ON b.batch_id = e.batch_id
    LEFT JOIN jobs AS j ON j.batch_id = e.batch_id
    LEFT JOIN listed AS l ON l.entity_type = e.entity_type AND l.id = e.id
    WHERE e.content <> '' AND b.due > 0 AND l.id IS NULL
        AND (e.created_at = e.updated_at OR coalesce(j.keys, 0) < b.due)
        AND NOT EXISTS (
            SELECT FROM {schema}.passages AS p
            WHERE p.entity_type = e.entity_type AND p.id = e.id AND p.content_hash = e.content_hash
        )
)

-- name: find_job_missing
-- One row for each of these entities.
WITH {missing}
SELECT entity_type, id, batch_id::text AS batch_id, 'an embedding job' AS expected, 'due, and in none' AS found
FROM missing

-- name: repair_job_missing
-- Creates one job per batch, for its keys that are due and in no job.
WITH {missing}
INSERT INTO {schema}.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), batch_id, array_agg(entity_type), array_agg(id), now(), now() FROM missing GROUP BY batch_id

-- name: find_passage_entity
-- Entities that do not exist and have passages.
SELECT entity_type, id, NULL::text AS batch_id, 'no passages in ' || space AS expected, count(*)::text AS found
FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT FROM {schema}.entities AS e WHERE e.entity_type = p.entity_type AND e.id = p.id)
GROUP BY space, entity_type, id

-- name: repair_passage_entity
-- Deletes these passages.
DELETE FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT FROM {schema}.entities AS e WHERE e.entity_type = p.entity_type AND e.id = p.id)

-- part: torn
-- Entities whose passages in a space are not numbered 0, 1, 2, ..., are of several contents, or lack a vector.
torn AS (
    SELECT p.space, p.entity_type, p.id, count(*) AS passages, max(p.position) + 1 AS numbered,
        count(*) FILTER (WHERE p.text_hash IS NOT NULL AND v.text_hash IS NULL) AS lacking
    FROM {schema}.passages AS p
    JOIN {schema}.spaces AS s ON s.space = p.space
    LEFT JOIN {schema}.embeddings AS v ON v.space = p.space AND v.text_hash = p.text_hash
    GROUP BY p.space, p.entity_type, p.id
    HAVING count(*) <> max(p.position) + 1 OR count(DISTINCT p.position) <> count(*)
        OR count(DISTINCT p.content_hash) > 1
        OR count(*) FILTER (WHERE p.text_hash IS NOT NULL AND v.text_hash IS NULL) > 0
)

-- name: find_passages
-- One row for each of these entities and spaces.
WITH {torn}
SELECT entity_type, id, NULL::text AS batch_id,
    'all passages of one content, with their vectors, in ' || space AS expected,
    passages || ' of ' || numbered || ' passages, ' || lacking || ' without a vector' AS found
FROM torn

-- name: repair_passages
-- Queues these entities, and deletes their passages, which makes them due.
WITH {torn}
INSERT INTO {schema}.embedding_jobs (job_id, entity_types, ids, created_at, updated_at)
SELECT gen_random_uuid(), array_agg(entity_type), array_agg(id), now(), now()
FROM (SELECT DISTINCT entity_type, id FROM torn) AS t HAVING count(*) > 0;
WITH {torn}
DELETE FROM {schema}.passages AS p USING torn AS t
WHERE p.space = t.space AND p.entity_type = t.entity_type AND p.id = t.id

-- name: find_vector_space
-- Vectors and passages of spaces that do not exist.
SELECT NULL::text AS entity_type, NULL::text AS id, NULL::text AS batch_id, 'a space ' || v.space AS expected,
    sum(v.vectors) || ' vectors, ' || sum(v.passages) || ' passages without one' AS found
FROM (
    SELECT space, 1 AS vectors, 0 AS passages FROM {schema}.embeddings
    UNION ALL SELECT space, 0, 1 FROM {schema}.passages
) AS v
WHERE NOT EXISTS (SELECT FROM {schema}.spaces AS s WHERE s.space = v.space) GROUP BY v.space

-- name: repair_vector_space
-- Deletes them, because their model is unknown.
DELETE FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT FROM {schema}.spaces AS s WHERE s.space = p.space);
DELETE FROM {schema}.embeddings AS v
WHERE NOT EXISTS (SELECT FROM {schema}.spaces AS s WHERE s.space = v.space)

-- name: kinds
-- The kinds of values in each metadata field, with one id for each.
SELECT entity_type, field, kind, min(id) AS id
FROM (
    SELECT e.entity_type, e.id, f.key AS field, CASE json_typeof(f.value)
        WHEN 'number' THEN CASE
            WHEN f.value::text ~ '^-?[0-9]{1,18}$' THEN 'integer'
            WHEN f.value::text ~ '^-?[0-9]+$' THEN 'long integer'
            ELSE 'float'
        END
        ELSE json_typeof(f.value)
    END AS kind
    FROM {schema}.entities AS e
    CROSS JOIN LATERAL json_each(CASE json_typeof(e.metadata) WHEN 'object' THEN e.metadata ELSE '{}' END) AS f
) AS k
GROUP BY entity_type, field, kind ORDER BY entity_type, field, kind

-- name: all_fields
-- Every recorded metadata field.
SELECT entity_type, field, dtype, declared FROM {schema}.metadata_fields ORDER BY position

-- name: forget_fields
-- Deletes recorded fields. $1 entity_types, $2 fields
DELETE FROM {schema}.metadata_fields AS f USING unnest($1::text[], $2::text[]) AS t (entity_type, field)
WHERE f.entity_type = t.entity_type AND f.field = t.field

-- name: snapshot
-- Makes all checks use the same snapshot.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: keep_writers_out
-- Makes the repair wait for writers, and writers wait for the repair; readers are not blocked.
LOCK TABLE {schema}.entities, {schema}.batches, {schema}.embedding_jobs, {schema}.passages IN SHARE ROW EXCLUSIVE MODE
