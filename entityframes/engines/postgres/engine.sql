-- The statements of the PostgreSQL engine. {schema} is the quoted namespace; names of parts in braces are replaced by
-- these. {created} is whether the statement has inserted the row that it returns, rather than updated it.

-- part: ledger_and_job
-- Adds the ledger row of a batch for the rows in written, and an embedding job if any content is due.
-- $1 batch, $2 run, $3 job
ledger AS (
    INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted, due)
    SELECT $1::uuid, $2::uuid, now(), count(*) FILTER (WHERE created), count(*) FILTER (WHERE NOT created), 0,
        count(*) FILTER (WHERE due)
    FROM written HAVING count(*) > 0
), job AS (
    INSERT INTO {schema}.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at)
    SELECT $3::uuid, $1::uuid, array_agg(entity_type), array_agg(id), now(), now()
    FROM written WHERE due HAVING count(*) > 0
)

-- part: rekeyed
-- Raises an error if a trigger has changed the keys of rows in merged, compared with those in written.
(SELECT CASE WHEN m.rows > w.rows THEN concat('EF001 ', m.rows)::int4 END
    FROM (SELECT count(*) AS rows FROM merged) AS m, (SELECT count(*) AS rows FROM written) AS w)

-- name: format_table
-- Whether the store exists in this namespace.
-- Uses the catalog, not to_regclass, whose cache may be older than the lock on migrations. $1 namespace
SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'format')

-- name: format_version
-- The store's format.
SELECT max(version)::int4 FROM {schema}.format

-- name: namespaces
-- The schemas of this name, case-insensitively. $1 namespace
SELECT nspname::text AS namespace FROM pg_namespace WHERE lower(nspname) = lower($1) ORDER BY nspname COLLATE "C"

-- name: migration_lock
-- A lock until the end of the transaction, so that concurrent processes create the store only once.
SELECT pg_advisory_xact_lock(hashtextextended(lower($1), 7041))

-- part: settings
-- Settings that these statements depend on: the encoding of text, the format of literals, NULL and values, the
-- isolation level, and that built-in names and those of pgvector are found. The search path of the user is kept, except
-- that a pg_catalog in it is moved to the front. For performance: no just-in-time compilation, which takes longer than
-- these statements; the cost of a random page read is that of current disks, because otherwise a few keys of a large
-- table cause a sequential scan; and long texts are compressed with a method that takes less than half of the time.
(VALUES
    ('client_encoding', 'UTF8'), ('standard_conforming_strings', 'on'), ('backslash_quote', 'safe_encoding'),
    ('array_nulls', 'on'), ('transform_null_equals', 'off'), ('quote_all_identifiers', 'off'),
    ('bytea_output', 'hex'), ('extra_float_digits', '1'), ('DateStyle', 'ISO, YMD'), ('IntervalStyle', 'postgres'),
    ('TimeZone', 'UTC'), ('xmlbinary', 'base64'), ('xmloption', 'content'), ('gin_fuzzy_search_limit', '0'),
    ('default_transaction_isolation', 'read committed'),
    ('jit', 'off'), ('random_page_cost', '1.1'), ('default_toast_compression', {compression}),
    ('search_path', pg_catalog.concat_ws(', ',
        CASE WHEN 'pg_catalog' = ANY ((pg_catalog.current_schemas(false))[2:]) THEN (
            SELECT pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' ORDER BY place)
            FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS listed (name, place)
            WHERE name <> 'pg_catalog'
        ) ELSE nullif(pg_catalog.current_setting('search_path'), '') END,
        (
            SELECT pg_catalog.quote_ident(n.nspname)
            FROM pg_catalog.pg_extension AS x JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace
            WHERE x.extname = 'vector' AND n.nspname <> ALL (pg_catalog.current_schemas(true))
        )
    ))
) AS settings (name, value)
WHERE pg_catalog.current_setting(name, true) IS NOT NULL AND value IS NOT NULL

-- name: session
-- The first statement on every connection, sent as a single message. Checks whether the server process was started for
-- this connection, by resetting a setting to the value sent at startup. Settings are applied only in that case, and
-- only if there is no proxy in between, according to the port, or if the proxy was found not to be a pooler.
WITH backend AS MATERIALIZED (
    SELECT pg_catalog.set_config('entityframes.connection', NULL, false) AS nonce,
        coalesce(pg_catalog.inet_server_port(), 0) AS port, (
        SELECT CASE WHEN 'lz4' = ANY (enumvals) THEN 'lz4' ELSE setting END
        FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression'
    ) AS compression
)
SELECT {knows} AS own, backend.compression, pg_catalog.current_setting('server_encoding') AS encoding,
    pg_catalog.current_setting('synchronous_standby_names') <> ''
        AND pg_catalog.current_setting('synchronous_commit') NOT IN ('off', 'local') AS synchronous,
    pg_catalog.current_setting('server_version_num')::int4 AS version,
    EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') AS citus,
    pg_catalog.pg_is_in_recovery() AS standby,
    CASE WHEN {knows} AND {sure} THEN (SELECT pg_catalog.count(pg_catalog.set_config(name, value, false)) FROM {settings}) END AS set
FROM backend

-- name: own_name
-- The value that was sent when the server process was started.
SELECT pg_catalog.set_config('entityframes.connection', NULL, false)

-- name: local_settings
-- The same settings for one transaction, behind a pooler that may assign another server process to the next one.
SELECT pg_catalog.count(pg_catalog.set_config(name, value, true)) FROM {settings}

-- name: schema_exists
-- Checked first, because CREATE SCHEMA IF NOT EXISTS requires a privilege that a user of the store may not have.
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)

-- name: create_schema
-- Creates the namespace.
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: drop
-- Drops the store and everything in it.
DROP SCHEMA {schema} CASCADE

-- name: probe
-- The given rows that are new or differ from the stored entities. Many keys of a small table are joined by hash, few
-- keys of a large table by index; the planner knows their number.
-- $1 entity_types, $2 ids, $3 content hashes, $4 metadata hashes
SELECT t.position::int4 - 1 AS position, e.id IS NULL AS created,
    e.id IS NULL OR e.content_hash <> t.content_hash AS differs
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[])
    WITH ORDINALITY AS t (entity_type, id, content_hash, metadata_hash, position)
LEFT JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
WHERE e.id IS NULL OR e.content_hash <> t.content_hash OR e.metadata_hash <> t.metadata_hash

-- name: between
-- The entities between two ids of a type; a single row of nulls if there are too many between the first id and a sample
-- id close to it.
-- $1 entity_type, $2 first id, $3 sample id, $4 too many up to it, $5 last id, $6 maximum number of rows
WITH near AS (
    SELECT count(*) AS entities FROM (
        SELECT 1 FROM {schema}.entities WHERE entity_type = $1 AND id >= $2 AND id <= $3 LIMIT $4::int8
    ) AS e
)
(SELECT id, content_hash, metadata_hash FROM {schema}.entities
WHERE entity_type = $1 AND id >= $2 AND id <= $5 AND (SELECT entities FROM near) < $4::int8 LIMIT $6::int8)
UNION ALL SELECT NULL, NULL, NULL FROM near WHERE entities = $4::int8

-- name: hold
-- Locks the given entities in key order, and returns the keys whose entity does not have the expected hashes.
-- $1 entity_types, $2 ids, $3 content hashes (null: no such entity), $4 metadata hashes (null: any)
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[])
        WITH ORDINALITY AS t (entity_type, id, content_hash, metadata_hash, position)
), held AS (
    SELECT g.position, e.content_hash, e.metadata_hash
    FROM given AS g JOIN {schema}.entities AS e ON e.entity_type = g.entity_type AND e.id = g.id
    ORDER BY e.entity_type, e.id FOR UPDATE OF e
)
SELECT g.position::int4 - 1 AS position
FROM given AS g LEFT JOIN held AS h ON h.position = g.position
WHERE (g.content_hash IS NULL) <> (h.position IS NULL)
    OR h.content_hash <> g.content_hash OR h.metadata_hash <> g.metadata_hash

-- name: create_staging
-- The staging table for the rows of a batch; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_staging (
    position int4, entity_type text, id text, content text, metadata text, content_hash bytea, metadata_hash bytea,
    differs boolean
) ON COMMIT DROP

-- name: nested_loops
-- Until the end of the transaction: look up each staged key in the index, in key order, without a bitmap scan for each
-- key, which takes three times as long, and without a scan of the whole table.
DO 'BEGIN SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_bitmapscan = off; END'

-- name: update_staged
-- Updates the entities of staged rows that differ, which is faster than a merge. $1 batch, $2 whether to create a job
UPDATE {schema}.entities AS e SET
    content = s.content, metadata = s.metadata::json, content_hash = s.content_hash,
    metadata_hash = s.metadata_hash, batch_id = $1::uuid, updated_at = now()
FROM pg_temp.entityframes_staging AS s
WHERE e.entity_type = s.entity_type AND e.id = s.id
    AND (e.content_hash <> s.content_hash OR e.metadata_hash <> s.metadata_hash)
RETURNING CASE WHEN e.entity_type = s.entity_type AND e.id = s.id THEN s.position END AS position, false AS created,
    s.differs AND s.content <> '' AND $2::boolean AS due

-- name: merge_staged
-- Writes staged rows that are new or differ, and returns the outcome of each.
-- $1 batch, $2 whether to create a job
WITH merged AS (
    INSERT INTO {schema}.entities AS e
        (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id)
    SELECT entity_type, id, content, metadata::json, content_hash, metadata_hash, $1::uuid
    FROM pg_temp.entityframes_staging
    ORDER BY entity_type COLLATE "C", id COLLATE "C"
    ON CONFLICT (entity_type, id) DO UPDATE SET
        content = EXCLUDED.content, metadata = EXCLUDED.metadata, content_hash = EXCLUDED.content_hash,
        metadata_hash = EXCLUDED.metadata_hash, batch_id = EXCLUDED.batch_id, updated_at = EXCLUDED.updated_at
    WHERE e.content_hash <> EXCLUDED.content_hash OR e.metadata_hash <> EXCLUDED.metadata_hash
    RETURNING e.entity_type, e.id, {created} AS created
)
SELECT s.position, m.created, s.differs AND s.content <> '' AND $2::boolean AS due
FROM merged AS m LEFT JOIN pg_temp.entityframes_staging AS s ON s.entity_type = m.entity_type AND s.id = m.id

-- name: record
-- Adds the ledger row of a batch, and an embedding job if any content is due.
-- $1 batch, $2 run, $3 job, $4 created, $5 updated, $6 entity_types and $7 ids of what is due
WITH job AS (
    INSERT INTO {schema}.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at)
    SELECT $3::uuid, $1::uuid, $6::text[], $7::text[], now(), now() WHERE cardinality($7::text[]) > 0
)
INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted, due)
VALUES ($1::uuid, $2::uuid, now(), $4::text::int4, $5::text::int4, 0, cardinality($7::text[]))

-- name: merge_arrays
-- Processes a small batch in one statement: probe, merge, ledger and job. With a number of fields, an entity is
-- overwritten only if no further fields of these types are recorded, and only if this statement sees the batch that
-- wrote it: a batch that was committed meanwhile may have a field recorded meanwhile.
-- $1 batch, $2 run, $3 job, $4 whether to create a job, $5... columns of the rows, $11 number of recorded fields, null
-- for any, $12 types
WITH given AS (
    SELECT * FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[], $10::bytea[])
        WITH ORDINALITY AS t (entity_type, id, content, metadata, content_hash, metadata_hash, position)
), known AS MATERIALIZED (
    SELECT count(*)::text = $11 AS complete FROM {schema}.metadata_fields WHERE entity_type = ANY ($12::text[])
), changed AS (
    SELECT t.*, t.content <> '' AND (e.id IS NULL OR e.content_hash <> t.content_hash) AND $4::boolean AS due
    FROM given AS t
    LEFT JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
    WHERE e.id IS NULL OR e.content_hash <> t.content_hash OR e.metadata_hash <> t.metadata_hash
), merged AS (
    INSERT INTO {schema}.entities AS e
        (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id, created_at, updated_at)
    SELECT entity_type, id, content, metadata::json, content_hash, metadata_hash, $1::uuid, now(), now()
    FROM changed
    ORDER BY entity_type COLLATE "C", id COLLATE "C"
    ON CONFLICT (entity_type, id) DO UPDATE SET
        content = EXCLUDED.content, metadata = EXCLUDED.metadata, content_hash = EXCLUDED.content_hash,
        metadata_hash = EXCLUDED.metadata_hash, batch_id = EXCLUDED.batch_id, updated_at = EXCLUDED.updated_at
    WHERE (e.content_hash <> EXCLUDED.content_hash OR e.metadata_hash <> EXCLUDED.metadata_hash)
        AND ($11::text IS NULL OR ((SELECT complete FROM known) AND EXISTS (
            SELECT FROM {schema}.batches AS b WHERE b.batch_id = e.batch_id
        )))
    RETURNING e.entity_type, e.id, {created} AS created
), written AS (
    SELECT c.position, c.entity_type, c.id, m.created, c.due
    FROM merged AS m JOIN changed AS c ON c.entity_type = m.entity_type AND c.id = m.id
), {ledger_and_job}
-- Also rows that differ but were not written: a concurrent transaction wrote the same row, or a trigger skipped it.
SELECT c.position::int4 - 1 AS position, w.created, coalesce(w.due, false) AS due
FROM changed AS c LEFT JOIN written AS w ON w.position = c.position
WHERE {rekeyed} IS NULL

-- name: merge_expected
-- Likewise with the hashes that each stored entity must have: entities that differ are locked in key order and
-- compared, and those without the expected hashes are not overwritten.
-- $1 batch, $2 run, $3 job, $4 whether to create a job, $5... columns of the rows, $11 content hashes (null: no such
-- entity), $12 metadata hashes (null: any), $13 number of recorded fields, null for any, and $14 types, as for
-- merge_arrays
WITH given AS (
    SELECT * FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[], $10::bytea[], $11::bytea[],
        $12::bytea[]) WITH ORDINALITY AS t (
            entity_type, id, content, metadata, content_hash, metadata_hash, expected, expected_metadata, position
        )
), differing AS MATERIALIZED (
    SELECT t.*
    FROM given AS t
    LEFT JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
    WHERE e.id IS NULL OR e.content_hash <> t.content_hash OR e.metadata_hash <> t.metadata_hash
), known AS MATERIALIZED (
    SELECT count(*)::text = $13 AS complete FROM {schema}.metadata_fields WHERE entity_type = ANY ($14::text[])
), held AS MATERIALIZED (
    SELECT d.position, e.content_hash, e.metadata_hash, e.batch_id
    FROM differing AS d JOIN {schema}.entities AS e ON e.entity_type = d.entity_type AND e.id = d.id
    ORDER BY e.entity_type, e.id FOR UPDATE OF e
), compared AS MATERIALIZED (
    SELECT d.*, h.position IS NULL AS created, h.batch_id,
        d.content <> '' AND (h.position IS NULL OR h.content_hash <> d.content_hash) AND $4::boolean AS due,
        coalesce((d.expected IS NULL) <> (h.position IS NULL) OR h.content_hash <> d.expected
            OR h.metadata_hash <> d.expected_metadata, false) AS conflict
    FROM differing AS d LEFT JOIN held AS h ON h.position = d.position
), changed AS MATERIALIZED (
    SELECT c.*, NOT c.created AND NOT c.conflict AND $13::text IS NOT NULL AND NOT (
        (SELECT complete FROM known) AND EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = c.batch_id)
    ) AS again
    FROM compared AS c
), inserted AS (
    INSERT INTO {schema}.entities AS e
        (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id, created_at, updated_at)
    SELECT entity_type, id, content, metadata::json, content_hash, metadata_hash, $1::uuid, now(), now()
    FROM changed WHERE created AND NOT conflict
    ORDER BY entity_type COLLATE "C", id COLLATE "C"
    ON CONFLICT (entity_type, id) DO NOTHING
    RETURNING e.entity_type, e.id
), updated AS (
    UPDATE {schema}.entities AS e SET
        content = c.content, metadata = c.metadata::json, content_hash = c.content_hash,
        metadata_hash = c.metadata_hash, batch_id = $1::uuid, updated_at = now()
    FROM changed AS c
    WHERE NOT c.created AND NOT c.conflict AND NOT c.again AND e.entity_type = c.entity_type AND e.id = c.id
    RETURNING e.entity_type, e.id
), merged AS (
    SELECT * FROM inserted UNION ALL SELECT * FROM updated
), written AS (
    SELECT c.position, c.entity_type, c.id, c.created, c.due
    FROM merged AS w
    JOIN changed AS c ON c.entity_type = w.entity_type AND c.id = w.id
), {ledger_and_job}
SELECT c.position::int4 - 1 AS position, w.created, coalesce(w.due, false) AS due, c.conflict, c.again
FROM changed AS c LEFT JOIN written AS w ON w.position = c.position
WHERE {rekeyed} IS NULL

-- name: may_leave_out
-- Whether there is a user-defined BEFORE trigger, which may skip or change rows, or a row-level policy for this user,
-- which COPY does not respect. $1 namespace
SELECT row_security_active(t) OR EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = t AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 3 = 3
)
FROM CAST(format('%I.entities', $1::text) AS regclass) AS t

-- name: may_keep
-- Whether there is a user-defined trigger or a row-level policy that may prevent deletions. $1 namespace
SELECT row_security_active(t) OR EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = t AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 9 = 9
)
FROM CAST(format('%I.entities', $1::text) AS regclass) AS t

-- name: may_write
-- Whether the entities table has its columns and this user has the privileges, so that an error is caused by a row.
SELECT bool_and(has_table_privilege('{schema}.entities', privilege)) AND (
    SELECT count(*) FROM (
        SELECT entity_type, id, content, metadata, content_hash, metadata_hash, batch_id, created_at, updated_at
        FROM {schema}.entities LIMIT 0
    ) AS none
) = 0
FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege

-- name: create_tried
-- The outcomes of staged rows; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_tried (
    position int4, created boolean, sqlstate text, error text, name text, other_type text, other_id text
) ON COMMIT DROP

-- name: index_staging
-- Makes slices accessible without a scan of all rows.
CREATE INDEX ON pg_temp.entityframes_staging (position)

-- name: immediate_constraints
-- Makes deferred constraints raise an error at the row, not at COMMIT.
SET CONSTRAINTS ALL IMMEDIATE

-- name: merge_each
-- Writes staged rows in slices, each in a subtransaction: 256 rows; if these are rejected 16 rows, and then single
-- rows. Records the error of each rejected row, and the key of a row that a trigger has changed. Positions are in key
-- order. A row that a trigger may have given a key under which the same is stored is written to find that key, and
-- rolled back.
DO $each$
DECLARE
    lower int4 := 0;
    step int4 := 256;
    top int4 := (SELECT max(position) FROM pg_temp.entityframes_staging);
    elsewhere boolean;
    created boolean;
    other_type text;
    other_id text;
    constraint_name text;
    column_name text;
    always boolean := false;
BEGIN
    WHILE lower <= top LOOP
        BEGIN
            other_type := NULL;
            other_id := NULL;
            WITH merged AS (
                INSERT INTO {schema}.entities AS e
                    (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id)
                SELECT entity_type, id, content, metadata::json, content_hash, metadata_hash,
                    current_setting('entityframes.batch_id')::uuid
                FROM pg_temp.entityframes_staging WHERE position >= lower AND position < lower + step
                ORDER BY position
                ON CONFLICT (entity_type, id) DO UPDATE SET
                    content = EXCLUDED.content, metadata = EXCLUDED.metadata, content_hash = EXCLUDED.content_hash,
                    metadata_hash = EXCLUDED.metadata_hash, batch_id = EXCLUDED.batch_id,
                    updated_at = EXCLUDED.updated_at
                WHERE always OR e.content_hash <> EXCLUDED.content_hash OR e.metadata_hash <> EXCLUDED.metadata_hash
                RETURNING e.entity_type, e.id, {created} AS created
            ), found AS (
                SELECT s.position, m.*
                FROM merged AS m LEFT JOIN pg_temp.entityframes_staging AS s ON m.entity_type = s.entity_type AND m.id = s.id
                    AND s.position >= lower AND s.position < lower + step
            ), tried AS (
                INSERT INTO pg_temp.entityframes_tried (position, created, other_type, other_id)
                SELECT coalesce(position, lower), found.created, CASE WHEN position IS NULL THEN entity_type END,
                    CASE WHEN position IS NULL THEN id END
                FROM found
            )
            SELECT min(entity_type) FILTER (WHERE position IS NULL), min(id) FILTER (WHERE position IS NULL),
                bool_or(found.created)
            INTO other_type, other_id, created FROM found;
            elsewhere := EXISTS (
                SELECT FROM pg_temp.entityframes_staging AS s
                LEFT JOIN {schema}.entities AS e ON e.entity_type = s.entity_type AND e.id = s.id
                WHERE s.position >= lower AND s.position < lower + step
                    AND (e.id IS NULL OR e.content_hash <> s.content_hash OR e.metadata_hash <> s.metadata_hash)
            );
            IF always OR ((other_id IS NOT NULL OR elsewhere) AND step > 1) THEN
                RAISE SQLSTATE 'EF001';
            ELSIF other_id IS NOT NULL AND NOT created AND current_setting('entityframes.expecting')::boolean THEN
                RAISE 'a trigger gives it the key %/%, under which another entity is stored', other_type, other_id
                    USING ERRCODE = 'EF002';
            END IF;
            always := elsewhere AND other_id IS NULL;
            IF NOT always THEN
                lower := lower + step;
            END IF;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            -- Errors that are not caused by a row end the batch.
            IF substr(SQLSTATE, 1, 2) IN ('08', '25', '40', '53', '57', '58', 'XX') OR SQLSTATE = '55P03' THEN
                RAISE;
            END IF;
            IF step > 1 THEN
                step := step / 16;
                CONTINUE;
            END IF;
            IF SQLSTATE <> 'EF001' THEN
                GET STACKED DIAGNOSTICS constraint_name = CONSTRAINT_NAME, column_name = COLUMN_NAME;
                INSERT INTO pg_temp.entityframes_tried (position, sqlstate, error, name)
                VALUES (lower, SQLSTATE, SQLERRM, coalesce(nullif(constraint_name, ''), nullif(column_name, '')));
            ELSIF other_id IS NOT NULL THEN
                INSERT INTO pg_temp.entityframes_tried (position, other_type, other_id) VALUES (lower, other_type, other_id);
            END IF;
            always := false;
            lower := lower + 1;
        END;
        step := CASE WHEN always THEN 1 WHEN lower % 256 = 0 THEN 256 WHEN lower % 16 = 0 THEN 16 ELSE 1 END;
    END LOOP;
END
$each$

-- name: set_batch
-- Passes to merge_each, which has no parameters, its batch, and whether only checked entities may be overwritten.
SELECT set_config('entityframes.batch_id', $1, true) AS batch_id, set_config('entityframes.expecting', $2, true) AS only

-- name: finish_each
-- Adds the ledger row and the embedding job for the rows that merge_each wrote, and returns the outcome of every row.
-- $1 batch, $2 run, $3 job, $4 whether to create a job
WITH written AS (
    SELECT t.created, coalesce(t.other_type, s.entity_type) AS entity_type, coalesce(t.other_id, s.id) AS id,
        s.differs AND s.content <> '' AND $4::boolean AS due
    FROM pg_temp.entityframes_tried AS t JOIN pg_temp.entityframes_staging AS s USING (position) WHERE t.created IS NOT NULL
), {ledger_and_job}
SELECT t.position, t.created, t.created IS NOT NULL AND s.differs AND s.content <> '' AND $4::boolean AS due,
    t.sqlstate, t.error, t.name, t.other_type, t.other_id
FROM pg_temp.entityframes_tried AS t JOIN pg_temp.entityframes_staging AS s USING (position)

-- name: recorded
-- Whether the ledger has the batch, that is, whether a COMMIT without a response succeeded.
SELECT count(*)::int4 FROM {schema}.batches WHERE batch_id = $1::uuid

-- name: not_recorded
-- The given batches that are not in the ledger. $1 batches
SELECT t.batch_id FROM unnest($1::text[]) AS t (batch_id)
WHERE NOT EXISTS (SELECT FROM {schema}.batches AS b WHERE b.batch_id = t.batch_id::uuid)

-- name: batches_between
-- The batches in the ledger whose id is in a range. $1 first, $2 last
SELECT batch_id::text AS batch_id FROM {schema}.batches WHERE batch_id BETWEEN $1::uuid AND $2::uuid

-- name: written_between
-- The given keys that were last written by such a batch, and whether it created them.
-- $1 first batch, $2 last batch, $3 entity_types, $4 ids
SELECT t.position::int4 - 1 AS position, e.batch_id::text AS batch_id, e.created_at = e.updated_at AS created
FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
WHERE e.batch_id BETWEEN $1::uuid AND $2::uuid

-- name: in_recovery
-- Whether the server is a standby, which is readable but may be behind.
SELECT pg_is_in_recovery()

-- name: wait_for_standby
-- Writes a dummy record: its COMMIT waits until a standby has it, and thus everything that was committed before.
SELECT pg_logical_emit_message(true, 'entityframes', '')::text

-- name: written_by
-- The given rows that the batch wrote, unless they have been written again since.
-- $1 batch, $2 entity_types, $3 ids
WITH members AS (
    SELECT DISTINCT m.entity_type, m.id
    FROM {schema}.embedding_jobs AS j CROSS JOIN unnest(j.entity_types, j.ids) AS m (entity_type, id)
    WHERE j.batch_id = $1::uuid
)
SELECT t.position::int4 - 1 AS position, e.created_at = e.updated_at AS created, m.id IS NOT NULL AS due
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id
LEFT JOIN members AS m ON m.entity_type = t.entity_type AND m.id = t.id
WHERE e.batch_id = $1::uuid

-- name: deleted_by
-- The number of entities that a batch deleted; null if it is not in the ledger. $1 batch
SELECT max(deleted)::int4 FROM {schema}.batches WHERE batch_id = $1::uuid

-- name: hashes
-- The hashes of the keys that are stored. $1 entity_types, $2 ids
SELECT t.position::int4 - 1 AS position, e.content_hash, e.metadata_hash
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id

-- name: stored
-- The metadata and the hashes of the keys that are stored. $1 entity_types, $2 ids
SELECT t.position::int4 - 1 AS position, e.metadata::text AS metadata, e.content_hash, e.metadata_hash
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id

-- name: existing
-- The ids of a type that are stored; each is looked up once. $1 entity_type, $2 ids
SELECT id FROM {schema}.entities WHERE entity_type = $1 AND id = ANY ($2::text[])

-- name: lookup
-- The stored entities of the given ids of a type. $1 entity_type, $2 ids
SELECT id, content, metadata::text AS metadata, encode(content_hash, 'hex') AS content_hash, created_at, updated_at
FROM {schema}.entities WHERE entity_type = $1 AND id = ANY ($2::text[])

-- name: existing_of_types
-- The positions of the keys that are stored. $1 entity_types, $2 ids
SELECT t.position::int4 - 1 AS position
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id

-- name: lookup_of_types
-- The entities of the keys that are stored, with the positions of the keys. $1 entity_types, $2 ids
SELECT t.position::int4 - 1 AS position, e.content, e.metadata::text AS metadata,
    encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (entity_type, id, position)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id

-- name: delete
-- Deletes the keys that are stored, in key order, with a ledger row. $1 batch, $2 run, $3 entity_types, $4 ids
WITH given AS (
    SELECT * FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS t (entity_type, id, position)
), locked AS (
    SELECT e.entity_type, e.id, g.position
    FROM given AS g JOIN {schema}.entities AS e ON e.entity_type = g.entity_type AND e.id = g.id
    ORDER BY e.entity_type, e.id FOR UPDATE OF e
), gone AS (
    DELETE FROM {schema}.entities AS e USING locked AS l
    WHERE e.entity_type = l.entity_type AND e.id = l.id RETURNING l.position, l.entity_type, l.id
), ledger AS (
    INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
    SELECT $1::uuid, $2::uuid, now(), 0, 0, count(*) FROM gone HAVING count(*) > 0
)
SELECT position::int4 - 1 AS position FROM gone

-- name: delete_unchanged
-- Deletes entities that have the given hashes, in key order, with a ledger row.
-- $1 batch, $2 run, $3 entity_types, $4 ids, $5 content hashes, $6 metadata hashes
WITH given AS (
    SELECT * FROM unnest($3::text[], $4::text[], $5::bytea[], $6::bytea[])
        WITH ORDINALITY AS t (entity_type, id, content_hash, metadata_hash, position)
), locked AS (
    SELECT e.entity_type, e.id, g.position
    FROM given AS g JOIN {schema}.entities AS e ON e.entity_type = g.entity_type AND e.id = g.id
        AND e.content_hash = g.content_hash AND e.metadata_hash = g.metadata_hash
    ORDER BY e.entity_type, e.id FOR UPDATE OF e
), gone AS (
    DELETE FROM {schema}.entities AS e USING locked AS l
    WHERE e.entity_type = l.entity_type AND e.id = l.id RETURNING l.position
), ledger AS (
    INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted)
    SELECT $1::uuid, $2::uuid, now(), 0, 0, count(*) FROM gone HAVING count(*) > 0
)
SELECT position::int4 - 1 AS position FROM gone

-- name: delete_passages
-- Deletes the passages of the keys; their vectors stay, for texts that are stored again. A separate statement, so that it
-- sees passages that a worker committed while the deletion waited for its locks. $1 entity_types, $2 ids
DELETE FROM {schema}.passages AS p USING unnest($1::text[], $2::text[]) AS g (entity_type, id)
WHERE p.entity_type = g.entity_type AND p.id = g.id

-- name: fields
-- The recorded metadata fields of the given types, in order of first occurrence. $1 entity_types
SELECT entity_type, field, dtype, declared FROM {schema}.metadata_fields
WHERE entity_type = ANY ($1::text[]) ORDER BY position

-- name: record_fields
-- Adds fields and updates inferred ones; updates declared ones only if their dtype is the given one, or if their type
-- has no entities. $1 entity_types, $2 fields, $3 dtypes, $4 declared, $5 previous dtypes
INSERT INTO {schema}.metadata_fields AS f (entity_type, field, dtype, declared)
SELECT entity_type, field, dtype, declared
FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[]) WITH ORDINALITY
    AS t (entity_type, field, dtype, declared, position)
ORDER BY position
ON CONFLICT (entity_type, field) DO UPDATE SET dtype = EXCLUDED.dtype, declared = EXCLUDED.declared
WHERE NOT f.declared OR f.dtype = '"Null"'
    OR (f.entity_type, f.field, f.dtype) IN (SELECT * FROM unnest($1::text[], $2::text[], $5::text[]))
    OR NOT EXISTS (SELECT FROM {schema}.entities AS e WHERE e.entity_type = f.entity_type)

-- name: is_empty
-- Whether a type has no entities; the ORDER BY keeps the planner from scanning the table for the first one.
-- $1 entity_type
SELECT (SELECT id FROM {schema}.entities WHERE entity_type = $1 ORDER BY id LIMIT 1) IS NULL

-- name: stats
-- One row per type: the number of entities, and how many are embedded, due and failed.
-- $1 space, null for the active one
WITH chosen AS (
    SELECT coalesce($1::text, (
        SELECT space FROM {schema}.spaces WHERE activated_at IS NOT NULL ORDER BY activated_at DESC LIMIT 1
    )) AS space
), {done}, {failing}, states AS (
    SELECT e.entity_type, e.content <> '' AS filled, coalesce(d.text, false) AS text,
        d.id IS NOT NULL AND coalesce(d.metadata_hash = e.metadata_hash, true) AS done, f.id IS NOT NULL AS failed
    FROM {schema}.entities AS e
    LEFT JOIN done AS d ON d.space = (SELECT space FROM chosen)
        AND d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    LEFT JOIN failing AS f ON f.space = (SELECT space FROM chosen)
        AND f.entity_type = e.entity_type AND f.id = e.id
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
SELECT run_id::text AS run_id, count(*) AS batches, sum(created) AS created, sum(updated) AS updated,
    sum(deleted) AS deleted, min(written_at) AS first_written_at, max(written_at) AS last_written_at
FROM {schema}.batches GROUP BY run_id ORDER BY max(written_at) DESC, run_id LIMIT $1::text::int8

-- name: size
-- The size of the tables of the store, with their indexes. $1 namespace
SELECT sum(pg_total_relation_size(c.oid))::int8
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r'

-- name: count
-- The number of entities of a type. $1 entity_type, or null for all
SELECT count(*) FROM {schema}.entities WHERE $1::text IS NULL OR entity_type = $1

-- name: select
-- The body of a scan; columns, condition and limit are rendered by predicates.py from validated parts.
SELECT {columns} FROM {schema}.entities WHERE {condition} {limit}
