-- The statements of the DuckDB engine. {schema} is the quoted namespace; {found} is the part that looks up
-- keys, and {one} the condition for a single one.
-- Empty content is detected by its hash, because otherwise the content would be read and decompressed.
-- given, changed and written are frames registered on the connection, which are scanned in place.

-- name: found
-- Part of a statement: the stored rows of the keys in given (position, entity_type, id), with position and place (the
-- rowid).
found AS (
    SELECT t.position, e.rowid AS place, e.*
    FROM given AS t JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
)

-- name: found_by_hash
-- Likewise for large tables. There is no index: the hashes of all keys are read, eight bytes each, and the keys only of
-- rows with one of the given hashes, as there may be collisions.
hashed AS MATERIALIZED (
    SELECT t.position, t.entity_type, t.id, e.rowid AS place
    FROM given AS t JOIN {schema}.entities AS e ON e.key_hash = hash(t.entity_type, t.id)
), found AS (
    SELECT h.position, h.place, e.*
    FROM hashed AS h JOIN {schema}.entities AS e
        ON e.rowid = h.place AND e.entity_type = h.entity_type AND e.id = h.id
)

-- name: one
-- Part of a statement: the condition for one key. $1 entity_type, $2 id
entity_type = $1 AND id = $2

-- name: one_by_hash
-- Likewise for large tables.
key_hash = hash($1, $2) AND entity_type = $1 AND id = $2

-- name: format_table
-- Whether the store exists in this namespace, and the exact spelling of its name. $1 namespace
SELECT count(*) > 0 AS there, max(schema_name) AS namespace
FROM duckdb_tables()
WHERE database_name = current_database() AND lower(schema_name) = lower($1) AND table_name = 'format'

-- name: catalog
-- The name of the catalog of the file, and its path, which is null in memory.
SELECT database_name, path FROM duckdb_databases() WHERE database_name = current_database()

-- name: storage_version
-- The storage version of the file, such as v1.0.0+; null for a store in memory.
SELECT max(tags['storage_version']) FROM duckdb_databases() WHERE database_name = current_database()

-- name: format_version
-- The store's format.
SELECT max(version) FROM {schema}.format

-- name: session
-- Settings of every cursor, which inherits none: timestamps are in UTC, and SQL cannot access Python variables.
SET TimeZone = 'UTC';
SET python_enable_replacements = false

-- name: settings
-- Settings of the database in this process: SQL cannot read other files, and checkpoints are less frequent. The
-- default, every 16 MB of log, takes half of the time of a long run.
SET wal_autocheckpoint = '64MB';
SET enable_external_access = false

-- name: store_settings
-- Further settings if there is a store: vectors are written uncompressed. ALP makes them a tenth smaller, but decoding
-- them takes longer than comparing them.
SET disabled_compression_methods = 'alp,alprd'

-- name: create_schema
-- Creates the namespace.
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: drop
-- Drops the store and everything in it.
DROP SCHEMA {schema} CASCADE

-- name: hashed_elsewhere
-- Whether the hashes of keys were computed by another version of DuckDB, whose hash function may differ.
SELECT version <> version() FROM {schema}.hashed_by

-- name: rehash
-- Recomputes the hashes of keys with this version.
UPDATE {schema}.entities SET key_hash = hash(entity_type, id) WHERE key_hash <> hash(entity_type, id);
UPDATE {schema}.hashed_by SET version = version()

-- name: hold
-- The changed rows whose entity does not have the expected hashes; executed in the transaction that writes them.
WITH given AS (FROM changed), {found}
SELECT c.position
FROM changed AS c LEFT JOIN found AS e ON e.position = c.position
WHERE (c.expected IS NULL) <> (e.id IS NULL)
    OR e.content_hash <> c.expected OR e.metadata_hash <> c.expected_metadata

-- name: delete_differing
-- Deletes entities whose content or metadata differ, before their new versions are inserted: an update in place would
-- read and recompress the rows around them.
DELETE FROM {schema}.entities AS e USING (FROM changed WHERE NOT created) AS c
WHERE e.rowid = c.place AND e.entity_type = c.entity_type AND e.id = c.id

-- name: insert_changed
-- Inserts the new versions of entities, in the order of the frame. $1 batch
INSERT INTO {schema}.entities
SELECT entity_type, id, hash(entity_type, id), content, metadata, content_hash, metadata_hash, $1::UUID,
    coalesce(created_at, now()), now()
FROM changed

-- name: delete_one
-- Deletes an entity before its new version is inserted. $1 entity_type, $2 id, $3 location
DELETE FROM {schema}.entities WHERE rowid = $3 AND entity_type = $1 AND id = $2

-- name: insert_one
-- Inserts an entity. $1... the columns of the row, $7 batch, $8 when it was created, in microseconds, null for now
INSERT INTO {schema}.entities VALUES (
    $1, $2, hash($1, $2), $3, $4, $5, $6, $7::UUID, coalesce(make_timestamptz($8::BIGINT), now()), now()
)

-- name: ledger
-- Adds the ledger row of a batch. $1 batch, $2 run, $3 created, $4 updated, $5 deleted, $6 keys in its embedding job
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted, due)
VALUES ($1::UUID, $2::UUID, now(), $3, $4, $5, $6)

-- name: job
-- Adds the embedding job of a batch. $1 job, $2 batch, $3 number of keys
INSERT INTO {schema}.embedding_jobs (job_id, batch_id, keys_of, entities, created_at, updated_at)
VALUES ($1::UUID, $2::UUID, $1::UUID, $3, now(), now())

-- name: job_keys
-- Adds the keys of the job: those with content that the batch wrote. $1 job
INSERT INTO {schema}.job_keys SELECT $1::UUID, entity_type, id FROM changed WHERE due

-- name: job_key
-- Adds a single key. $1 job, $2 entity_type, $3 id
INSERT INTO {schema}.job_keys VALUES ($1::UUID, $2, $3)

-- name: checks
-- The CHECK constraints of the entities table, to find the rows that they reject. $1 namespace
SELECT expression, constraint_name FROM duckdb_constraints()
WHERE database_name = current_database() AND lower(schema_name) = lower($1) AND table_name = 'entities'
    AND constraint_type = 'CHECK'

-- name: rejected
-- Rows that a CHECK constraint rejects; the condition is the text of the constraint, as returned by the database.
SELECT position FROM changed WHERE NOT coalesce({condition}, true)

-- name: batches_between
-- The batches in the ledger whose id is in a range. $1 first, $2 last
SELECT batch_id::VARCHAR AS batch_id FROM {schema}.batches WHERE batch_id BETWEEN $1::UUID AND $2::UUID

-- name: written_between
-- The given keys that were last written by such a batch, and whether it created them. $1 first batch, $2 last batch
WITH {found}
SELECT position, batch_id::VARCHAR AS batch_id, created_at = updated_at AS created
FROM found WHERE batch_id BETWEEN $1::UUID AND $2::UUID

-- name: hashes
-- The hashes of the keys that are stored, with their location and creation time.
WITH {found} SELECT position, place, content_hash, metadata_hash, created_at FROM found

-- name: stored
-- The metadata and the hashes of the keys that are stored.
WITH {found} SELECT position, metadata::VARCHAR AS metadata, content_hash, metadata_hash FROM found

-- name: existing
-- The positions of the keys that are stored, with their location.
WITH {found} SELECT position, place FROM found

-- name: lookup
-- The entities of the keys that are stored, with the positions of the keys. They are read by their location, because a
-- join by keys would decompress all contents.
WITH {found}, placed AS MATERIALIZED (SELECT position, place FROM found)
SELECT p.position, e.content, e.metadata::VARCHAR AS metadata, lower(hex(e.content_hash)) AS content_hash,
    e.created_at, e.updated_at
FROM placed AS p JOIN {schema}.entities AS e ON e.rowid = p.place

-- name: entity
-- An entity, with its times in microseconds. $1 entity_type, $2 id
SELECT content, metadata::VARCHAR, lower(hex(content_hash)), epoch_us(created_at), epoch_us(updated_at)
FROM {schema}.entities WHERE {one}

-- name: entity_hashes
-- The location and the hashes of an entity, and when it was created, in microseconds. $1 entity_type, $2 id
SELECT rowid, content_hash, metadata_hash, epoch_us(created_at) FROM {schema}.entities WHERE {one}

-- name: unchanged
-- The positions of the given keys whose entity has not changed, with its location.
WITH {found}
SELECT e.position, e.place
FROM given AS t JOIN found AS e ON e.position = t.position
    AND e.content_hash = t.content_hash AND e.metadata_hash = t.metadata_hash

-- name: delete
-- Deletes the written keys.
DELETE FROM {schema}.entities AS e USING written AS w
WHERE e.rowid = w.place AND e.entity_type = w.entity_type AND e.id = w.id

-- name: delete_passages
-- Deletes the passages of the written keys. Their vectors stay, for texts that are stored again.
DELETE FROM {schema}.passages AS p USING written AS w WHERE p.entity_type = w.entity_type AND p.id = w.id

-- name: fields
-- The recorded metadata fields of the given types, in order of first occurrence.
SELECT f.entity_type, f.field, f.dtype, f.declared
FROM {schema}.metadata_fields AS f JOIN given AS t ON f.entity_type = t.entity_type ORDER BY f.position

-- name: field_names
-- The names of the recorded metadata fields of a type. $1 entity_type
SELECT field FROM {schema}.metadata_fields WHERE entity_type = $1

-- name: widen_fields
-- Updates inferred fields; declared ones only if their dtype is the given one, or if their type has no entities.
UPDATE {schema}.metadata_fields AS f SET dtype = t.dtype, declared = t.declared
FROM given AS t
WHERE f.entity_type = t.entity_type AND f.field = t.field AND (NOT f.declared OR f.dtype = '"Null"' OR f.dtype = t.was
    OR NOT EXISTS (SELECT 1 FROM {schema}.entities AS e WHERE e.entity_type = f.entity_type))

-- name: add_fields
-- Adds new fields in the given order.
INSERT INTO {schema}.metadata_fields AS f (entity_type, field, position, dtype, declared)
SELECT entity_type, field, t.position + (SELECT coalesce(max(position), 0) + 1 FROM {schema}.metadata_fields), dtype, declared
FROM given AS t
ON CONFLICT (entity_type, field) DO NOTHING

-- name: is_empty
-- Whether a type has no entities. $1 entity_type
SELECT NOT EXISTS (SELECT 1 FROM {schema}.entities WHERE entity_type = $1)

-- name: stats
-- One row per type: the number of entities, and how many are embedded, due and failed.
-- $1 space, null for the active one
WITH chosen AS (
    SELECT coalesce($1::VARCHAR, (
        SELECT space FROM {schema}.spaces WHERE activated_at IS NOT NULL ORDER BY activated_at DESC LIMIT 1
    )) AS space
), {done}, {failing}, states AS (
    SELECT e.entity_type, e.content_hash <> unhex(sha256('')) AS filled, coalesce(d.text, false) AS text,
        d.id IS NOT NULL AND coalesce(d.metadata_hash = e.metadata_hash, true) AS done, f.id IS NOT NULL AS failed
    FROM {schema}.entities AS e
    LEFT JOIN (SELECT * FROM done WHERE space = (SELECT space FROM chosen)) AS d
        ON d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    LEFT JOIN (SELECT * FROM failing WHERE space = (SELECT space FROM chosen)) AS f
        ON f.entity_type = e.entity_type AND f.id = e.id
)
SELECT entity_type, count(*) AS entities,
    count(*) FILTER (WHERE done AND text AND NOT failed) AS embedded,
    count(*) FILTER (WHERE filled AND NOT done) AS due,
    count(*) FILTER (WHERE done AND failed) AS failed
FROM states GROUP BY entity_type ORDER BY entity_type

-- name: types
-- One row per type: the number of entities, and when one of them was last changed.
SELECT entity_type, count(*) AS entities, max(updated_at) AS updated_at
FROM {schema}.entities GROUP BY entity_type ORDER BY entity_type

-- name: runs
-- The runs in the ledger, the latest first. $1 number of runs, or null for all
SELECT run_id::VARCHAR AS run_id, count(*) AS batches, sum(created) AS created, sum(updated) AS updated,
    sum(deleted) AS deleted, min(written_at) AS first_written_at, max(written_at) AS last_written_at
FROM {schema}.batches GROUP BY run_id ORDER BY max(written_at) DESC, run_id LIMIT $1

-- name: count
-- The number of entities of a type. $1 entity_type, or null for all
SELECT count(*) FROM {schema}.entities WHERE $1::VARCHAR IS NULL OR entity_type = $1

-- name: select
-- The body of a scan; columns, condition and limit are rendered by predicates.py from validated parts.
SELECT {columns} FROM {schema}.entities WHERE {condition} {limit}
