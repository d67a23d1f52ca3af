-- Every statement that DuckDB gets. {schema} is the quoted namespace; {found} is the part that looks keys up.
-- Whether a content is empty is asked of its hash: the content would be read and decompressed for it.
-- Frames are scanned in place: given, changed and written are names registered for the connection.

-- name: found
-- Part of a statement: the stored rows of the keys in given (position, entity_type, id), with position and place.
found AS (
    SELECT t.position, e.rowid AS place, e.*
    FROM given AS t JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
)

-- name: found_by_hash
-- The same for many rows. There is no index: of all rows the hash of the key is read, eight bytes, and the texts only
-- of those that have one of these hashes, which others may have too by chance.
hashed AS MATERIALIZED (
    SELECT t.position, t.entity_type, t.id, e.rowid AS place
    FROM given AS t JOIN {schema}.entities AS e ON e.key_hash = hash(t.entity_type, t.id)
), found AS (
    SELECT h.position, h.place, e.*
    FROM hashed AS h JOIN {schema}.entities AS e
        ON e.rowid = h.place AND e.entity_type = h.entity_type AND e.id = h.id
)

-- name: format_table
-- Whether the store exists in this namespace, and how its name is written there. $1 namespace
SELECT count(*) > 0 AS there, max(schema_name) AS namespace
FROM duckdb_tables() WHERE lower(schema_name) = lower($1) AND table_name = 'format' AND NOT temporary

-- name: catalog
-- What the file's own catalog is called, and where it is; null in memory.
SELECT database_name, path FROM duckdb_databases() WHERE database_name = current_database()

-- name: storage_version
-- Which version of DuckDB can read the file, such as v1.0.0+; nothing for a store in memory.
SELECT max(tags['storage_version']) FROM duckdb_databases() WHERE database_name = current_database()

-- name: format_version
-- The store's format.
SELECT max(version) FROM {schema}.format

-- name: session
-- What every cursor sets, as it inherits nothing: times come in UTC, and SQL sees no variable of Python's.
SET TimeZone = 'UTC';
SET python_enable_replacements = false

-- name: settings
-- For all who have the file open in this process: no file outside the store can be read by SQL.
-- A checkpoint at each 16 MB of log, the default, takes half of a long run.
SET wal_autocheckpoint = '64MB';
SET enable_external_access = false

-- name: create_schema
-- The namespace.
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: drop
-- The store and all that is in it.
DROP SCHEMA {schema} CASCADE

-- name: hashed_elsewhere
-- Whether the hashes of the keys are from another version of DuckDB, which may compute them in another way.
SELECT version <> version() FROM {schema}.hashed_by

-- name: rehash
-- The hashes of the keys as this version computes them.
UPDATE {schema}.entities SET key_hash = hash(entity_type, id) WHERE key_hash <> hash(entity_type, id);
UPDATE {schema}.hashed_by SET version = version()

-- name: hold
-- Which changed rows are not in the state that is expected of them; asked inside the transaction that writes them.
WITH given AS (FROM changed), {found}
SELECT c.position
FROM changed AS c LEFT JOIN found AS e ON e.position = c.position
WHERE (c.expected IS NULL) <> (e.id IS NULL)
    OR e.content_hash <> c.expected OR e.metadata_hash <> c.expected_metadata

-- name: delete_differing
-- Entities whose content or metadata differ, before they are inserted as they are now: an update in place would read and
-- compress again all that stands beside them.
DELETE FROM {schema}.entities AS e USING (FROM changed WHERE NOT created) AS c
WHERE e.rowid = c.place AND e.entity_type = c.entity_type AND e.id = c.id

-- name: insert_changed
-- Entities as they are now, in the order of the frame. $1 batch
INSERT INTO {schema}.entities
SELECT entity_type, id, hash(entity_type, id), content, metadata, content_hash, metadata_hash, $1::UUID,
    coalesce(created_at, now()), now()
FROM changed

-- name: ledger
-- The ledger row of a batch. $1 batch, $2 run, $3 created, $4 updated, $5 deleted, $6 keys in its embedding job
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted, due)
VALUES ($1::UUID, $2::UUID, now(), $3, $4, $5, $6)

-- name: job
-- The embedding job of a batch. $1 job, $2 batch, $3 how many keys
INSERT INTO {schema}.embedding_jobs (job_id, batch_id, keys_of, entities, created_at, updated_at)
VALUES ($1::UUID, $2::UUID, $1::UUID, $3, now(), now())

-- name: job_keys
-- Its keys: those whose content the batch wrote. $1 job
INSERT INTO {schema}.job_keys SELECT $1::UUID, entity_type, id FROM changed WHERE due

-- name: checks
-- The CHECK constraints of the entities table, to find the rows that they refuse. $1 namespace
SELECT expression, constraint_name FROM duckdb_constraints()
WHERE lower(schema_name) = lower($1) AND table_name = 'entities' AND constraint_type = 'CHECK'

-- name: refused
-- Rows that a CHECK constraint refuses; the condition is the constraint's own text, as the database gives it.
SELECT position FROM changed WHERE NOT coalesce({condition}, true)

-- name: recorded
-- Whether the ledger has the batch. $1 batch
SELECT count(*) FROM {schema}.batches WHERE batch_id = $1::UUID

-- name: not_recorded
-- Which of some batches the ledger does not have. $1 batches
SELECT batch_id FROM (SELECT unnest($1::varchar[]) AS batch_id)
WHERE batch_id::uuid NOT IN (SELECT batch_id FROM {schema}.batches)

-- name: written_by
-- Which of the given rows the batch wrote. $1 batch
WITH {found}, members AS (
    SELECT DISTINCT k.entity_type, k.id
    FROM {schema}.embedding_jobs AS j JOIN {schema}.job_keys AS k ON k.job_id = j.keys_of
    WHERE j.batch_id = $1::UUID
)
SELECT e.position, e.created_at = e.updated_at AS created, m.id IS NOT NULL AS due
FROM found AS e
LEFT JOIN members AS m ON m.entity_type = e.entity_type AND m.id = e.id
WHERE e.batch_id = $1::UUID

-- name: deleted_by
-- How many entities a batch deleted; null if the ledger does not have it. $1 batch
SELECT max(deleted) FROM {schema}.batches WHERE batch_id = $1::UUID

-- name: hashes
-- The hashes of the keys that are stored, where, and since when.
WITH {found} SELECT position, place, content_hash, metadata_hash, created_at FROM found

-- name: stored
-- The metadata of the keys that are stored, and the hashes of what is stored of them.
WITH {found} SELECT position, metadata::VARCHAR AS metadata, content_hash, metadata_hash FROM found

-- name: existing
-- Positions of the keys that are stored, and where.
WITH {found} SELECT position, place FROM found

-- name: lookup
-- The entities of the keys that are stored, with the positions of the keys.
WITH {found}
SELECT position, content, metadata::VARCHAR AS metadata, lower(hex(content_hash)) AS content_hash,
    created_at, updated_at
FROM found

-- name: unchanged
-- Positions of the given keys whose entity is still as given, and where it is.
WITH {found}
SELECT e.position, e.place
FROM given AS t JOIN found AS e ON e.position = t.position
    AND e.content_hash = t.content_hash AND e.metadata_hash = t.metadata_hash

-- name: delete
-- Deletes the written keys.
DELETE FROM {schema}.entities AS e USING written AS w
WHERE e.rowid = w.place AND e.entity_type = w.entity_type AND e.id = w.id

-- name: delete_vectors
-- What was embedded of the written keys goes with them.
DELETE FROM {schema}.embeddings AS v USING written AS w WHERE v.entity_type = w.entity_type AND v.id = w.id

-- name: fields
-- The recorded metadata fields of some types, in the order in which they first came.
SELECT f.entity_type, f.field, f.dtype, f.declared
FROM {schema}.metadata_fields AS f JOIN given AS t ON f.entity_type = t.entity_type ORDER BY f.position

-- name: widen_fields
-- An inferred field widens; a declared one only from what it was found to be, or once its type has no entity left.
UPDATE {schema}.metadata_fields AS f SET dtype = t.dtype, declared = t.declared
FROM given AS t
WHERE f.entity_type = t.entity_type AND f.field = t.field AND (NOT f.declared OR f.dtype = '"Null"' OR f.dtype = t.was
    OR NOT EXISTS (SELECT 1 FROM {schema}.entities AS e WHERE e.entity_type = f.entity_type))

-- name: add_fields
-- New fields, in the order in which they came.
INSERT INTO {schema}.metadata_fields AS f (entity_type, field, position, dtype, declared)
SELECT entity_type, field, t.position + (SELECT coalesce(max(position), 0) + 1 FROM {schema}.metadata_fields), dtype, declared
FROM given AS t
ON CONFLICT (entity_type, field) DO NOTHING

-- name: is_empty
-- Whether a type has no entity. $1 entity_type
SELECT NOT EXISTS (SELECT 1 FROM {schema}.entities WHERE entity_type = $1)

-- name: stats
-- One row a type: its entities, how many of them are embedded, due and failed in a space. $1 space, null for the active
WITH chosen AS (
    SELECT coalesce($1::VARCHAR, (
        SELECT space FROM {schema}.spaces WHERE activated_at IS NOT NULL ORDER BY activated_at DESC LIMIT 1
    )) AS space
)
SELECT e.entity_type, count(*) AS entities,
    count(*) FILTER (WHERE v.content_hash IS NOT NULL AND v.error IS NULL) AS embedded,
    count(*) FILTER (WHERE e.content_hash <> unhex(sha256('')) AND v.content_hash IS NULL) AS due,
    count(*) FILTER (WHERE v.error IS NOT NULL) AS failed
FROM {schema}.entities AS e
LEFT JOIN {schema}.embeddings AS v ON v.space = (SELECT space FROM chosen)
    AND v.entity_type = e.entity_type AND v.id = e.id AND v.content_hash = e.content_hash
GROUP BY e.entity_type ORDER BY e.entity_type

-- name: count
-- How many entities a type has. $1 entity_type, or null for all
SELECT count(*) FROM {schema}.entities WHERE $1::VARCHAR IS NULL OR entity_type = $1

-- name: select
-- The body of a scan; columns, condition and limit are rendered by predicates.py from validated parts.
SELECT {columns} FROM {schema}.entities WHERE {condition} {limit}
