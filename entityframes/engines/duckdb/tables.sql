-- The statements for tables of the user on DuckDB. {table} is the table, t in a statement; given, s in a statement, is
-- the registered frame of a batch, in key order. The placeholders are rendered by tables.py.

-- name: relation
-- A table or view by its name, which DuckDB compares case-insensitively. $1 schema, or null for the search path, $2 name
SELECT database_name AS catalog, schema_name AS schema, table_name AS name, 'table' AS kind FROM duckdb_tables()
WHERE lower(table_name) = lower($2) AND (
    lower(schema_name) = lower($1) OR ($1 IS NULL AND list_contains(current_schemas(true), schema_name))
) AND (database_name = current_database() OR temporary)
UNION ALL
SELECT database_name, schema_name, view_name, 'view' FROM duckdb_views()
WHERE lower(view_name) = lower($2) AND NOT internal AND (
    lower(schema_name) = lower($1) OR ($1 IS NULL AND list_contains(current_schemas(true), schema_name))
) AND (database_name = current_database() OR temporary)

-- name: table_columns
-- The columns of a table. $1 catalog, $2 schema, $3 name
SELECT c.column_name AS name, c.data_type AS sql_type, NOT c.is_nullable AS required, c.column_default AS default
FROM duckdb_columns() AS c WHERE c.database_name = $1 AND c.schema_name = $2 AND c.table_name = $3
ORDER BY c.column_index

-- name: table_definition
-- The CREATE TABLE of a table. $1 catalog, $2 schema, $3 name
SELECT sql FROM duckdb_tables() WHERE database_name = $1 AND schema_name = $2 AND table_name = $3

-- name: table_constraints
-- The constraints of a table. $1 catalog, $2 schema, $3 name
SELECT constraint_type AS kind, constraint_column_names AS columns, expression, constraint_name AS name,
    referenced_table, referenced_column_names AS referenced
FROM duckdb_constraints() WHERE database_name = $1 AND schema_name = $2 AND table_name = $3
ORDER BY constraint_type <> 'PRIMARY KEY', constraint_index

-- name: table_indexes
-- The unique indexes of a table. $1 catalog, $2 schema, $3 name
SELECT sql FROM duckdb_indexes()
WHERE database_name = $1 AND schema_name = $2 AND table_name = $3 AND is_unique

-- name: tables
-- The tables with their primary keys, and their rows as DuckDB estimates them, which counts any table quickly.
SELECT t.schema_name || '.' || t.table_name AS table, c.constraint_column_names AS key, t.estimated_size AS rows,
    format('"{}"."{}"', replace(t.schema_name, '"', '""'), replace(t.table_name, '"', '""')) AS name, true AS small
FROM duckdb_tables() AS t LEFT JOIN duckdb_constraints() AS c
    ON c.database_name = t.database_name AND c.schema_name = t.schema_name AND c.table_name = t.table_name
    AND c.constraint_type = 'PRIMARY KEY'
WHERE NOT t.internal AND t.database_name = current_database() AND t.schema_name NOT IN (
    SELECT schema_name FROM duckdb_columns() WHERE table_name = 'metadata_fields' AND column_name = 'entity_type'
)
ORDER BY t.schema_name, t.table_name

-- name: table_count
-- The number of rows.
SELECT count(*) FROM {table}

-- name: table_counts
-- The numbers of rows of several tables, which are numbered in the placeholder.
SELECT * FROM ({counts}) AS counted (position, rows)

-- name: table_probe
-- The given rows that are new or differ, and the place of the stored row.
SELECT s.position, t.rowid IS NULL AS created, t.rowid AS place
FROM given AS s LEFT JOIN {table} AS t ON {matches}
WHERE t.rowid IS NULL OR {differs}

-- name: table_ambiguous
-- The given rows whose key is stored more than once, in a table without a unique key.
SELECT s.position FROM given AS s JOIN {table} AS t ON {matches} GROUP BY s.position HAVING count(*) > 1

-- name: table_conflicts
-- The given rows whose stored row is neither as expected nor as it would be written.
SELECT s.position FROM given AS s LEFT JOIN {table} AS t ON {matches}
WHERE (t.rowid IS NULL OR {differs}) AND ((t.rowid IS NULL) = s.stored OR t.rowid IS NOT NULL AND ({unexpected}))

-- name: table_same_keys
-- For each given key the position of the first one that is equal to the database.
SELECT s.position, min(s.position) OVER (PARTITION BY {cast_key}) AS same FROM given AS s

-- name: table_update
-- Updates the stored rows that differ.
UPDATE {table} AS t SET {assignments} FROM changed AS s WHERE t.rowid = s.place

-- name: table_differing
-- Whether each column differs in one of the changed rows.
SELECT {changes} FROM changed AS s JOIN {table} AS t ON t.rowid = s.place

-- name: table_insert
-- Inserts the new rows.
INSERT INTO {table} ({names}) SELECT {values} FROM fresh AS s

-- name: table_invalid
-- The given rows with values that are none of the types of their columns, with the number of the first such column.
SELECT position, number FROM (SELECT s.position, CASE {whens} END AS number FROM given AS s) AS s
WHERE number IS NOT NULL

-- name: table_rejected
-- The given rows that violate a condition, with the error.
SELECT s.position, {error} AS error FROM given AS s WHERE {condition}

-- name: table_compare
-- The given rows that are new or differ, with the stored and the new value of each column as text.
SELECT s.position, t.rowid IS NULL AS created {texts}
FROM given AS s LEFT JOIN {table} AS t ON {matches}
WHERE t.rowid IS NULL OR {differs}

-- name: table_existing
-- The positions of the keys that are stored.
SELECT DISTINCT s.position FROM given AS s JOIN {table} AS t ON {matches}

-- name: table_lookup
-- The given columns of the keys that are stored.
SELECT s.position, {columns} FROM given AS s JOIN {table} AS t ON {matches}

-- name: table_deletable
-- The positions of the keys that are stored as expected.
SELECT DISTINCT s.position FROM given AS s JOIN {table} AS t ON {matches} WHERE {condition}

-- name: table_delete
-- Deletes the rows of the keys that are stored as expected.
DELETE FROM {table} AS t USING given AS s WHERE {matches} AND {condition}

-- name: table_soft_delete
-- Marks them as deleted instead.
UPDATE {table} AS t SET {column} = {value} FROM given AS s WHERE {matches} AND {condition}

-- name: table_unmatched
-- The given columns of the stored rows, and whether none of the given keys is theirs.
SELECT {columns}, NOT EXISTS (SELECT 1 FROM given AS s WHERE {matches}) AS absent FROM {table} AS t {where}

-- name: table_select
-- The given columns of the rows that satisfy a condition.
SELECT {columns} FROM {table} AS t {where}

-- name: table_create
-- Creates a table.
CREATE TABLE {table} ({columns}, PRIMARY KEY ({key}))

-- name: table_add_column
-- Adds a column to a table.
ALTER TABLE {table} ADD COLUMN {column}

-- name: table_check_update
-- Fails for a generated column, which cannot be updated.
EXPLAIN UPDATE {table} SET {column} = {column}
