-- The statements on DuckDB that find inconsistencies in a store (find_), and repair those that can be repaired
-- (repair_). Each find_ returns entity_type, id, batch_id, expected and found as text. {schema} is the quoted
-- namespace.

-- name: find_duplicate_key
-- Keys with several rows: no index prevents them if something else than this package writes to the file.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, '1 row' AS expected, count(*) || ' rows' AS found
FROM {schema}.entities GROUP BY entity_type, id HAVING count(*) > 1

-- name: repair_duplicate_key
-- Keeps the row that was written last.
DELETE FROM {schema}.entities WHERE rowid IN (
    SELECT rowid FROM {schema}.entities
    QUALIFY row_number() OVER (PARTITION BY entity_type, id ORDER BY updated_at DESC, rowid DESC) > 1
)

-- name: find_key_hash
-- Entities that cannot be found, because the stored hash of their key is wrong.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, hash(entity_type, id)::VARCHAR AS expected,
    key_hash::VARCHAR AS found
FROM {schema}.entities WHERE key_hash <> hash(entity_type, id)

-- name: repair_key_hash
-- Recomputes the hash.
UPDATE {schema}.entities SET key_hash = hash(entity_type, id) WHERE key_hash <> hash(entity_type, id)

-- name: find_content_hash
-- Entities whose content hash does not match their content.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, sha256(content) AS expected,
    lower(hex(content_hash)) AS found
FROM {schema}.entities WHERE content_hash <> unhex(sha256(content))

-- name: repair_content_hash
-- Recomputes the hash, which makes the content due for embedding.
UPDATE {schema}.entities SET content_hash = unhex(sha256(content))
WHERE content_hash <> unhex(sha256(content))

-- name: find_metadata_hash
-- Entities whose metadata hash does not match their metadata.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, sha256(metadata::VARCHAR) AS expected,
    lower(hex(metadata_hash)) AS found
FROM {schema}.entities WHERE metadata_hash <> unhex(sha256(metadata::VARCHAR))

-- name: repair_metadata_hash
-- Recomputes the hash.
UPDATE {schema}.entities SET metadata_hash = unhex(sha256(metadata::VARCHAR))
WHERE metadata_hash <> unhex(sha256(metadata::VARCHAR))

-- name: find_metadata
-- Entities whose metadata is not a JSON object.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, 'object' AS expected, lower(json_type(metadata)) AS found
FROM {schema}.entities WHERE json_type(metadata) <> 'OBJECT'

-- name: find_ledger
-- Batches that entities refer to but that are not in the ledger.
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, e.batch_id::VARCHAR AS batch_id, 'a ledger row' AS expected,
    'none for ' || count(*) || ' entities' AS found
FROM {schema}.entities AS e
WHERE NOT EXISTS (SELECT 1 FROM {schema}.batches AS b WHERE b.batch_id = e.batch_id)
GROUP BY e.batch_id

-- name: repair_ledger
-- Adds a ledger row, without a run, for each of these batches.
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
SELECT e.batch_id, '00000000-0000-0000-0000-000000000000', max(e.updated_at),
    count(*) FILTER (WHERE e.created_at = e.updated_at), count(*) FILTER (WHERE e.created_at <> e.updated_at), 0
FROM {schema}.entities AS e
WHERE NOT EXISTS (SELECT 1 FROM {schema}.batches AS b WHERE b.batch_id = e.batch_id)
GROUP BY e.batch_id

-- name: find_ledger_count
-- Batches with more entities than they wrote according to the ledger.
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, b.batch_id::VARCHAR AS batch_id,
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
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, NULL::VARCHAR AS batch_id,
    l.balance || ' entities by the ledger' AS expected, n.entities || ' are stored' AS found
FROM (SELECT coalesce(sum(created), 0) - coalesce(sum(deleted), 0) AS balance FROM {schema}.batches) AS l
CROSS JOIN (SELECT count(*) AS entities FROM {schema}.entities) AS n
WHERE l.balance <> n.entities

-- name: repair_ledger_balance
-- Adds a correcting ledger row, without a run.
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
SELECT uuid(), '00000000-0000-0000-0000-000000000000', now(), greatest(n.entities - l.balance, 0), 0,
    greatest(l.balance - n.entities, 0)
FROM (SELECT coalesce(sum(created), 0) - coalesce(sum(deleted), 0) AS balance FROM {schema}.batches) AS l
CROSS JOIN (SELECT count(*) AS entities FROM {schema}.entities) AS n
WHERE l.balance <> n.entities

-- name: find_job_batch
-- Embedding jobs of batches that are not in the ledger.
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, j.batch_id::VARCHAR AS batch_id, 'a ledger row' AS expected,
    'job ' || j.job_id || ' without one' AS found
FROM {schema}.embedding_jobs AS j
WHERE j.batch_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {schema}.batches AS b WHERE b.batch_id = j.batch_id)

-- name: repair_job_batch
-- Deletes these jobs; entities that are still due get another one.
DELETE FROM {schema}.embedding_jobs AS j
WHERE j.batch_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {schema}.batches AS b WHERE b.batch_id = j.batch_id)

-- name: find_job_members
-- Embedding jobs whose number of keys is not the recorded one.
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, j.batch_id::VARCHAR AS batch_id,
    j.entities || ' keys' AS expected, coalesce(k.keys, 0) || ' in job ' || j.job_id AS found
FROM {schema}.embedding_jobs AS j
LEFT JOIN (SELECT job_id, count(*) AS keys FROM {schema}.job_keys GROUP BY job_id) AS k ON k.job_id = j.keys_of
WHERE coalesce(k.keys, 0) <> j.entities

-- name: repair_job_members
-- Deletes these jobs; entities that are still due get another one.
DELETE FROM {schema}.embedding_jobs AS j
WHERE j.entities <> (SELECT count(*) FROM {schema}.job_keys AS k WHERE k.job_id = j.keys_of)

-- part: missing
-- Entities that are due for embedding and whose batch created a job, but that are in no job.
listed AS (
    SELECT entity_type, id
    FROM {schema}.job_keys WHERE job_id IN (SELECT keys_of FROM {schema}.embedding_jobs)
), jobs AS (
    SELECT batch_id, sum(entities) AS keys FROM {schema}.embedding_jobs GROUP BY batch_id
), missing AS MATERIALIZED (
    SELECT e.entity_type, e.id, e.batch_id
    FROM {schema}.entities AS e
    JOIN {schema}.batches AS b ON b.batch_id = e.batch_id
    LEFT JOIN jobs AS j ON j.batch_id = e.batch_id
    LEFT JOIN listed AS l ON l.entity_type = e.entity_type AND l.id = e.id
    WHERE e.content_hash <> unhex(sha256('')) AND b.due > 0 AND l.id IS NULL
        AND (e.created_at = e.updated_at OR coalesce(j.keys, 0) < b.due)
        AND NOT EXISTS (
            SELECT 1 FROM {schema}.passages AS p
            WHERE p.entity_type = e.entity_type AND p.id = e.id AND p.content_hash = e.content_hash
        )
)

-- name: find_job_missing
-- One row for each of these entities.
WITH {missing}
SELECT entity_type, id, batch_id::VARCHAR AS batch_id, 'an embedding job' AS expected, 'due, and in none' AS found
FROM missing

-- name: repair_job_missing
-- Creates one job per batch, for its keys that are due and in no job.
DELETE FROM {schema}.job_keys WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs);
WITH {missing}, made AS MATERIALIZED (SELECT batch_id, uuid() AS job_id FROM missing GROUP BY batch_id)
INSERT INTO {schema}.job_keys SELECT job_id, entity_type, id FROM missing JOIN made USING (batch_id);
INSERT INTO {schema}.embedding_jobs (job_id, batch_id, keys_of, entities, created_at, updated_at)
SELECT k.job_id, any_value(e.batch_id), k.job_id, count(*), now(), now()
FROM {schema}.job_keys AS k JOIN {schema}.entities AS e ON e.entity_type = k.entity_type AND e.id = k.id
WHERE k.job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs)
GROUP BY k.job_id

-- name: find_passage_entity
-- Entities that do not exist and have passages.
SELECT entity_type, id, NULL::VARCHAR AS batch_id, 'no passages in ' || space AS expected, count(*)::VARCHAR AS found
FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT 1 FROM {schema}.entities AS e WHERE e.entity_type = p.entity_type AND e.id = p.id)
GROUP BY space, entity_type, id

-- name: repair_passage_entity
-- Deletes these passages.
DELETE FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT 1 FROM {schema}.entities AS e WHERE e.entity_type = p.entity_type AND e.id = p.id)

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
SELECT entity_type, id, NULL::VARCHAR AS batch_id,
    'all passages of one content, with their vectors, in ' || space AS expected,
    passages || ' of ' || numbered || ' passages, ' || lacking || ' without a vector' AS found
FROM torn

-- name: repair_passages
-- Queues these entities, and deletes their passages, which makes them due.
DELETE FROM {schema}.job_keys WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs);
WITH {torn}, keys AS (SELECT DISTINCT entity_type, id FROM torn), made AS MATERIALIZED (SELECT uuid() AS job_id)
INSERT INTO {schema}.job_keys SELECT job_id, entity_type, id FROM keys CROSS JOIN made;
INSERT INTO {schema}.embedding_jobs (job_id, keys_of, entities, created_at, updated_at)
SELECT job_id, job_id, count(*), now(), now() FROM {schema}.job_keys
WHERE job_id NOT IN (SELECT keys_of FROM {schema}.embedding_jobs)
GROUP BY job_id;
WITH {torn}
DELETE FROM {schema}.passages AS p USING torn AS t
WHERE p.space = t.space AND p.entity_type = t.entity_type AND p.id = t.id

-- name: find_vector_space
-- Vectors and passages of spaces that do not exist.
SELECT NULL::VARCHAR AS entity_type, NULL::VARCHAR AS id, NULL::VARCHAR AS batch_id, 'a space ' || v.space AS expected,
    sum(v.vectors) || ' vectors, ' || sum(v.passages) || ' passages without one' AS found
FROM (
    SELECT space, 1 AS vectors, 0 AS passages FROM {schema}.embeddings
    UNION ALL SELECT space, 0, 1 FROM {schema}.passages
) AS v
WHERE NOT EXISTS (SELECT 1 FROM {schema}.spaces AS s WHERE s.space = v.space) GROUP BY v.space

-- name: repair_vector_space
-- Deletes them, because their model is unknown.
DELETE FROM {schema}.passages AS p
WHERE NOT EXISTS (SELECT 1 FROM {schema}.spaces AS s WHERE s.space = p.space);
DELETE FROM {schema}.embeddings AS v
WHERE NOT EXISTS (SELECT 1 FROM {schema}.spaces AS s WHERE s.space = v.space)

-- name: kinds
-- The kinds of values in each metadata field, with one id for each.
SELECT e.entity_type, f.key AS field, CASE f.type
    WHEN 'BOOLEAN' THEN 'boolean' WHEN 'VARCHAR' THEN 'string' WHEN 'NULL' THEN 'null'
    WHEN 'ARRAY' THEN 'array' WHEN 'OBJECT' THEN 'object'
    ELSE CASE
        WHEN regexp_full_match(f.value::VARCHAR, '-?[0-9]{1,18}') THEN 'integer'
        WHEN regexp_full_match(f.value::VARCHAR, '-?[0-9]+') THEN 'long integer'
        ELSE 'float'
    END
END AS kind, min(e.id) AS id
FROM {schema}.entities AS e, json_each(e.metadata) AS f
WHERE json_type(e.metadata) = 'OBJECT'
GROUP BY ALL ORDER BY ALL

-- name: all_fields
-- Every recorded metadata field.
SELECT entity_type, field, dtype, declared FROM {schema}.metadata_fields ORDER BY position

-- name: forget_fields
-- Deletes the given recorded fields.
DELETE FROM {schema}.metadata_fields AS f USING given AS t WHERE f.entity_type = t.entity_type AND f.field = t.field
