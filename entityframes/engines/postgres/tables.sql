-- The statements for tables of the user on PostgreSQL. {table} is the table, t in a statement; entityframes_rows, s in a
-- statement, are the staged rows of a batch, in key order. The placeholders are rendered by tables.py.

-- name: relation
-- A table by its name as given, or else folded to lower case as in SQL: whether triggers, also of its partitions, or
-- policies may skip rows, whether it has rules for writing, and whether rows of child tables belong to it.
-- $1 and $2 both names as SQL identifiers
SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
    row_security_active(c.oid) OR EXISTS (
        SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 3 = 3
            AND tgrelid IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_tree(c.oid))
    ) AS may_skip,
    EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_type IN ('2', '3')) AS has_rules,
    c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS inherited
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = coalesce(to_regclass($1), to_regclass($2))

-- name: table_columns
-- The columns of a table; domains are replaced by their base types. The exact type is that without the length or digits
-- to which a cast cuts values. $1 oid
WITH RECURSIVE types AS (
    SELECT a.attnum, a.atttypid AS type, a.atttypmod AS typmod, a.attnotnull AS required
    FROM pg_attribute AS a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT s.attnum, t.typbasetype, t.typtypmod, s.required OR t.typnotnull
    FROM types AS s JOIN pg_type AS t ON t.oid = s.type WHERE t.typtype = 'd'
)
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS sql_type, s.required,
    pg_get_expr(d.adbin, d.adrelid) AS default, a.attidentity::text AS identity, a.attgenerated::text AS generated,
    b.typname::text AS type, b.typtype::text AS kind, s.typmod::int4 AS typmod, b.oid <> a.atttypid AS domain,
    e.typname::text AS element, e.typtype::text AS element_kind, format_type(e.oid, s.typmod) AS element_sql_type,
    CASE WHEN s.typmod >= 0 AND coalesce(e.typname, b.typname) IN ('bit', 'varbit', 'interval', 'timetz')
        THEN format_type(b.oid, -1) END AS exact,
    NOT coalesce(l.collisdeterministic, true) AS nondeterministic,
    CASE WHEN a.attcollation NOT IN (0, 100) THEN format('%I.%I', ln.nspname, l.collname) END AS collation,
    (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid IN (b.oid, e.oid)) AS labels
FROM types AS s
JOIN pg_type AS b ON b.oid = s.type AND b.typtype <> 'd'
JOIN pg_attribute AS a ON a.attrelid = $1::oid AND a.attnum = s.attnum
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_type AS e ON e.oid = b.typelem AND b.typcategory = 'A'
LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
LEFT JOIN pg_namespace AS ln ON ln.oid = l.collnamespace
ORDER BY a.attnum

-- name: table_keys
-- The unique indexes of a table, the primary key first, with their columns; null if ON CONFLICT cannot use the index.
-- $1 oid
SELECT pg_get_indexdef(i.indexrelid) || CASE
        WHEN NOT i.indimmediate THEN ' (deferrable)' WHEN NOT i.indisvalid THEN ' (invalid)' ELSE ''
    END AS definition, CASE
    WHEN i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate AND i.indisvalid AND NOT i.indisexclusion THEN (
        SELECT array_agg(a.attname::text ORDER BY k.position)
        FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.position <= i.indnkeyatts
    ) END AS columns
FROM pg_index AS i WHERE i.indrelid = $1::oid AND i.indisunique
ORDER BY i.indisprimary DESC, i.indexrelid

-- name: tables
-- The tables that this user can read, with their primary keys, their rows at the last ANALYZE, and whether they seem to
-- be small; before the first ANALYZE the server has counted what was written. Nothing here waits for a lock.
SELECT format('%s.%s', n.nspname, c.relname) AS table, (
        SELECT array_agg(a.attname::text ORDER BY k.position)
        FROM pg_index AS i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND k.position <= i.indnkeyatts
    ) AS key, nullif(c.reltuples, -1)::int8 AS rows, format('%I.%I', n.nspname, c.relname) AS name,
    greatest(c.reltuples, pg_stat_get_live_tuples(c.oid)) < 100000 AS small
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname <> 'information_schema'
    AND n.nspname !~ '^pg_' AND has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
    AND NOT EXISTS (
        SELECT FROM pg_class AS f JOIN pg_attribute AS a ON a.attrelid = f.oid
        WHERE f.relnamespace = n.oid AND f.relname = 'metadata_fields' AND a.attname = 'entity_type'
    )
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"

-- name: table_count
-- The number of rows that this user sees.
SELECT count(*) FROM {table}

-- name: table_counts
-- The numbers of rows of several tables, which are numbered in the placeholder.
SELECT * FROM ({counts}) AS counted (position, rows)

-- name: table_counts_timeouts
-- Tables that are locked, or larger than they seem, are not counted.
SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '2s'

-- name: table_is_empty
-- Whether the table has no rows that this user sees.
SELECT NOT EXISTS (SELECT FROM {table})

-- name: table_staging
-- The staging table for the rows of a batch; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_rows (position int4, {columns}) ON COMMIT DROP

-- name: table_analyze_staging
-- Informs the planner about the staged rows.
ANALYZE pg_temp.entityframes_rows

-- part: believed
DECLARE
    believed float8;
BEGIN
    WITH RECURSIVE parts AS (
        SELECT {table_name}::regclass::oid AS oid
        UNION ALL SELECT i.inhrelid FROM pg_inherits AS i JOIN parts AS p ON p.oid = i.inhparent
    )
    SELECT sum(pg_relation_size(c.oid) / current_setting('block_size')::int4
        * CASE WHEN c.relpages > 0 THEN c.reltuples / c.relpages ELSE 30 END)
    INTO believed FROM parts AS p JOIN pg_class AS c ON c.oid = p.oid;

-- name: table_joins
-- Until the end of the transaction: look up each staged key in the index if the planner takes the table for larger than
-- the batch. Otherwise hash joins, because nested loops are slow if the table is larger than that: the planner takes it
-- for empty if its statistics are from a time when all rows were deleted.
DO {tag}
{believed}
    IF believed > {height} THEN
        SET LOCAL enable_hashjoin = off;
        SET LOCAL enable_mergejoin = off;
        SET LOCAL enable_bitmapscan = off;
    ELSE
        SET LOCAL enable_nestloop = off;
    END IF;
END
{tag}

-- name: table_joins_of_slices
-- Likewise for slices of the staged rows, about which the planner is informed.
DO {tag}
{believed}
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on;
    SET LOCAL enable_bitmapscan = on;
    IF believed > 100 THEN
        SET LOCAL enable_nestloop = on;
    END IF;
END
{tag}

-- name: any_joins
-- Undoes table_joins for a statement that reads the whole table.
DO 'BEGIN SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_bitmapscan = on; END'

-- name: table_probe
-- The staged rows that are new or differ.
SELECT s.position, t.{first} IS NULL AS created
FROM pg_temp.entityframes_rows AS s LEFT JOIN {table} AS t ON {matches}
WHERE t.{first} IS NULL OR {differs}

-- name: table_ambiguous
-- The staged rows whose key is stored more than once, in the table and in child tables.
SELECT s.position FROM pg_temp.entityframes_rows AS s JOIN {table} AS t ON {matches}
GROUP BY s.position HAVING count(*) > 1

-- name: table_lock
-- Locks the stored rows of the staged keys, in key order.
SELECT count(*) FROM (
    SELECT FROM pg_temp.entityframes_rows AS s JOIN {table} AS t ON {matches} ORDER BY s.position FOR UPDATE OF t
) AS locked

-- name: table_lock_changed
-- Locks the stored rows that differ in key order, so that concurrent transactions cannot deadlock. An update that looks
-- up each staged key in the index does so itself.
DO {tag}
BEGIN
    IF {always} OR current_setting('enable_nestloop') = 'off' THEN
        PERFORM FROM pg_temp.entityframes_rows AS s JOIN {table} AS t ON {matches}
        WHERE {differs} ORDER BY s.position FOR NO KEY UPDATE OF t;
    END IF;
END
{tag}

-- name: table_conflicts
-- The staged rows whose stored row is neither as expected nor as it would be written.
SELECT s.position FROM pg_temp.entityframes_rows AS s LEFT JOIN {table} AS t ON {matches}
WHERE (t.{first} IS NULL OR {differs}) AND ((t.{first} IS NULL) = s.stored OR t.{first} IS NOT NULL AND ({unexpected}))

-- name: table_same_keys
-- For each staged key the position of the first one that is equal to the database.
SELECT s.position, min(s.position) OVER (PARTITION BY {cast_key}) AS same FROM pg_temp.entityframes_rows AS s

-- name: table_inexact
-- Staged rows with values that a cast to the type of their column would change, with the number of the column.
SELECT position, number FROM (
    SELECT s.position, CASE {inexact} END AS number FROM pg_temp.entityframes_rows AS s
) AS s WHERE number IS NOT NULL

-- name: table_unstage
-- Removes staged rows. $1 positions
DELETE FROM pg_temp.entityframes_rows WHERE position = ANY ($1::int4[])

-- name: table_update
-- Updates the stored rows that differ, and returns the staged rows that were written.
UPDATE {table} AS t SET {assignments} FROM pg_temp.entityframes_rows AS s
WHERE {matches} AND ({differs}) RETURNING s.position

-- name: table_update_some
-- Likewise, only some of the staged rows. $1 positions
UPDATE {table} AS t SET {assignments} FROM pg_temp.entityframes_rows AS s
WHERE s.position = ANY ($1::int4[]) AND {matches} AND ({differs}) RETURNING s.position

-- name: table_insert
-- Inserts staged rows unless a concurrent transaction has inserted their keys, and returns how many were inserted.
WITH inserted AS (
    INSERT INTO {table} AS t ({names}) SELECT {values} FROM pg_temp.entityframes_rows AS s {some}
    ORDER BY s.position ON CONFLICT ({key}) DO NOTHING RETURNING 1
)
SELECT count(*) FROM inserted

-- name: table_insert_each
-- Likewise, and returns the rows that were inserted; null for a row whose key a trigger has changed.
WITH inserted AS (
    INSERT INTO {table} AS t ({names}) SELECT {values} FROM pg_temp.entityframes_rows AS s {some}
    ORDER BY s.position ON CONFLICT ({key}) DO NOTHING RETURNING {returned}
)
SELECT s.position FROM inserted AS t LEFT JOIN pg_temp.entityframes_rows AS s ON {matches}

-- name: table_tried
-- The outcomes of staged rows that are written one by one; dropped at the end of the transaction.
CREATE TEMPORARY TABLE pg_temp.entityframes_outcomes (
    position int4, created boolean, sqlstate text, error text, name text
) ON COMMIT DROP

-- name: table_index_staging
-- Makes slices accessible without a scan of all rows.
CREATE INDEX ON pg_temp.entityframes_rows (position)

-- name: table_merge_each
-- Writes staged rows in slices, each in a subtransaction: 4,096 rows; if these are rejected 256 and 16 rows, and then
-- single rows. Records the error of each rejected row. Rows that reference rows which come later are repeated at the end.
-- Columns of the table may have the names of the variables.
DO {tag}
#variable_conflict use_column
<<entityframes>>
DECLARE
    lower int4 := 0;
    step int4 := 4096;
    top int4 := (SELECT max(position) FROM pg_temp.entityframes_rows);
    again int4[];
    before int8;
    written int8;
    strange int8;
    constraint_name text;
    column_name text;
    detail text;
BEGIN
    WHILE lower <= top LOOP
        BEGIN
            {update_slice}
            WITH inserted AS (
                INSERT INTO {table} AS t ({names}) SELECT {values}
                FROM pg_temp.entityframes_rows AS s WHERE s.position >= entityframes.lower AND s.position < entityframes.lower + entityframes.step
                    AND NOT EXISTS (SELECT FROM {table} AS t WHERE {matches})
                ORDER BY s.position ON CONFLICT ({key}) DO NOTHING RETURNING {returned}
            ), found AS (
                SELECT s.position FROM inserted AS t LEFT JOIN pg_temp.entityframes_rows AS s
                    ON {matches} AND s.position >= entityframes.lower AND s.position < entityframes.lower + entityframes.step
            ), kept AS (
                INSERT INTO pg_temp.entityframes_outcomes (position, created)
                SELECT position, true FROM found WHERE position IS NOT NULL
            )
            SELECT count(*) FILTER (WHERE position IS NULL) INTO strange FROM found;
            IF strange > 0 THEN
                RAISE 'a trigger stores it under another key' USING ERRCODE = 'EF002';
            END IF;
            lower := lower + step;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            -- Errors that are not caused by a row end the batch.
            IF substr(SQLSTATE, 1, 2) IN ('08', '25', '40', '53', '57', '58', 'XX') OR SQLSTATE = '55P03' THEN
                RAISE;
            END IF;
            IF step > 1 THEN
                step := step / 16;
                CONTINUE;
            END IF;
            GET STACKED DIAGNOSTICS
                constraint_name = CONSTRAINT_NAME, column_name = COLUMN_NAME, detail = PG_EXCEPTION_DETAIL;
            -- The detail of these errors is the value of the key of this row.
            detail := CASE WHEN SQLSTATE IN ('23503', '23505') AND detail <> '' THEN ': ' || detail ELSE '' END;
            INSERT INTO pg_temp.entityframes_outcomes (position, sqlstate, error, name) VALUES (
                lower, SQLSTATE, SQLERRM || detail, coalesce(nullif(constraint_name, ''), nullif(column_name, ''))
            );
            lower := lower + 1;
        END;
        IF again IS NULL THEN
            step := CASE WHEN lower % 4096 = 0 THEN 4096 WHEN lower % 256 = 0 THEN 256 WHEN lower % 16 = 0 THEN 16 ELSE 1 END;
            IF lower <= top THEN
                CONTINUE;
            END IF;
        ELSIF cardinality(again) > 0 THEN
            lower := again[1];
            again := again[2:];
            step := 1;
            CONTINUE;
        END IF;
        -- Repeat the rows that lacked a referenced row, as long as this writes further ones.
        SELECT count(*) INTO written FROM pg_temp.entityframes_outcomes WHERE created IS NOT NULL;
        EXIT WHEN written = before;
        before := written;
        WITH missed AS (
            DELETE FROM pg_temp.entityframes_outcomes WHERE sqlstate = '23503' RETURNING position
        )
        SELECT array_agg(position ORDER BY position) INTO again FROM missed;
        EXIT WHEN again IS NULL;
        lower := again[1];
        again := again[2:];
        step := 1;
    END LOOP;
END
{tag}

-- name: table_update_slice
-- The update of a slice in table_merge_each.
WITH updated AS (
    UPDATE {table} AS t SET {assignments} FROM pg_temp.entityframes_rows AS s
    WHERE s.position >= entityframes.lower AND s.position < entityframes.lower + entityframes.step AND {matches} AND ({differs}) RETURNING s.position
)
INSERT INTO pg_temp.entityframes_outcomes (position, created) SELECT position, false FROM updated;

-- name: table_check_each
-- Converts the staged texts of slices of rows, in subtransactions as in table_merge_each, and records the errors.
-- An internal error is one of the value: some types report a wrong text like this.
DO {tag}
#variable_conflict use_column
<<entityframes>>
DECLARE
    lower int4 := 0;
    step int4 := 4096;
    top int4 := (SELECT max(position) FROM pg_temp.entityframes_rows);
BEGIN
    WHILE lower <= top LOOP
        BEGIN
            PERFORM count(ROW({checks})) FROM (
                SELECT * FROM pg_temp.entityframes_rows AS s
                WHERE s.position >= entityframes.lower AND s.position < entityframes.lower + entityframes.step OFFSET 0
            ) AS s;
            lower := lower + step;
        EXCEPTION WHEN OTHERS THEN
            IF substr(SQLSTATE, 1, 2) IN ('08', '25', '40', '53', '57', '58') OR SQLSTATE = '55P03' THEN
                RAISE;
            END IF;
            IF step > 1 THEN
                step := step / 16;
                CONTINUE;
            END IF;
            INSERT INTO pg_temp.entityframes_outcomes (position, sqlstate, error) VALUES (lower, SQLSTATE, SQLERRM);
            lower := lower + 1;
        END;
        step := CASE WHEN lower % 4096 = 0 THEN 4096 WHEN lower % 256 = 0 THEN 256 WHEN lower % 16 = 0 THEN 16 ELSE 1 END;
    END LOOP;
END
{tag}

-- name: table_forget_outcomes
-- Empties the outcomes for the next step.
DELETE FROM pg_temp.entityframes_outcomes

-- name: table_outcomes
-- The outcomes of table_merge_each.
SELECT position, created, sqlstate, error, name FROM pg_temp.entityframes_outcomes

-- name: transaction
-- The id of the transaction; the timeline of the server, which changes if a standby takes over; when its statistics were
-- reset, as by the recovery after a crash; and whether COMMIT waits until the transaction is on the disk.
SELECT pg_current_xact_id()::text AS id, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) AS timeline,
    pg_stat_get_bgwriter_stat_reset_time()::text AS reset,
    (current_setting('synchronous_commit') <> 'off')::text AS durable

-- name: transaction_status
-- What became of a transaction on this timeline, null on another one; and whether the server may have crashed since. The
-- recovery after a crash may give the id of a transaction that left no trace to another one. $1 id, $2 timeline, $3 reset
SELECT CASE
    WHEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) <> $2 THEN NULL
    WHEN $1::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) THEN 'aborted'
    ELSE pg_xact_status($1::xid8) END AS status, pg_stat_get_bgwriter_stat_reset_time()::text IS DISTINCT FROM $3 AS crashed

-- name: table_may_write
-- Whether this user has the privileges on the table, so that an error is caused by a row. $1 table
SELECT bool_and(has_any_column_privilege($1::regclass, privilege))
FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege

-- name: table_compare
-- The staged rows that are new or differ, with the stored and the new values as text.
SELECT s.position, t.{first} IS NULL AS created, ARRAY[{old_texts}]::text[] AS old, ARRAY[{new_texts}]::text[] AS new
FROM pg_temp.entityframes_rows AS s LEFT JOIN {table} AS t ON {matches}
WHERE t.{first} IS NULL OR {differs}

-- name: table_existing
-- The positions of the keys that are stored. The parameters are the columns of the key
SELECT s.position::int4 - 1 AS position
FROM unnest({arrays}) WITH ORDINALITY AS s ({keys}, position)
CROSS JOIN LATERAL (SELECT FROM {table} AS t WHERE {matches} LIMIT 1) AS t

-- name: table_lookup
-- The given columns of the keys that are stored. The parameters are the columns of the key
SELECT s.position::int4 - 1 AS position, t.*
FROM unnest({arrays}) WITH ORDINALITY AS s ({keys}, position)
CROSS JOIN LATERAL (SELECT {columns} FROM {table} AS t WHERE {matches} LIMIT 1) AS t

-- part: locked_keys
-- The given keys whose rows are stored as expected, which are locked in key order.
WITH given AS (
    SELECT * FROM unnest({arrays}) WITH ORDINALITY AS s ({keys}, position)
), locked AS (
    SELECT s.* FROM given AS s JOIN {table} AS t ON {matches} WHERE {condition} ORDER BY s.position FOR UPDATE OF t
)

-- name: table_delete
-- Deletes the rows of the keys that are stored. The parameters are the columns of the key, and expected values
{locked_keys}
DELETE FROM {table} AS t USING locked AS s WHERE {matches} RETURNING s.position::int4 - 1 AS position

-- name: table_soft_delete
-- Marks the rows of the keys that are stored as deleted. The parameters are the columns of the key, and expected values
{locked_keys}
UPDATE {table} AS t SET {column} = {value} FROM locked AS s WHERE {matches}
RETURNING s.position::int4 - 1 AS position

-- name: table_unmatched
-- The given columns of the stored rows, and whether none of the staged keys is theirs.
SELECT {columns}, NOT EXISTS (SELECT FROM pg_temp.entityframes_rows AS s WHERE {matches}) AS absent
FROM {table} AS t {where}

-- name: table_select
-- The given columns of the rows that satisfy a condition.
SELECT {columns} FROM {table} AS t {where}

-- name: table_create
-- Creates a table.
CREATE TABLE {table} ({columns}, PRIMARY KEY ({key}))

-- name: table_add_columns
-- Adds columns to a table.
ALTER TABLE {table} {columns}
