-- The statements for syncing folders on DuckDB. {schema} is the quoted namespace; {found} is the part that looks up
-- keys. given and pairs are frames registered on the connection.

-- name: lock_folder
-- Acquires the lock on a folder if it is free, if its lease has expired, or if this holder has it already.
-- $1 folder, $2 holder, $3 seconds
INSERT INTO {schema}.folders AS f (folder, holder, lease_until)
VALUES ($1, $2, now() + to_milliseconds(($3 * 1000)::BIGINT))
ON CONFLICT (folder) DO UPDATE SET holder = EXCLUDED.holder, lease_until = EXCLUDED.lease_until
WHERE f.holder IS NULL OR f.holder = EXCLUDED.holder OR f.lease_until < now()

-- name: folder_holder
-- The holder of the lock on a folder. $1 folder
SELECT holder FROM {schema}.folders WHERE folder = $1 AND holder IS NOT NULL

-- name: unlock_folder
-- Releases the lock. $1 folder, $2 holder
UPDATE {schema}.folders SET holder = NULL, lease_until = NULL WHERE folder = $1 AND holder = $2

-- name: filed
-- The files of a folder and the current hashes of their entities. $1 folder
SELECT f.path, f.entity_type, f.id, f.size, f.mtime_ns AS mark, f.file_hash, f.content_hash, f.metadata_hash,
    e.content_hash AS stored_content, e.metadata_hash AS stored_metadata
FROM {schema}.files AS f
LEFT JOIN {schema}.entities AS e ON e.entity_type = f.entity_type AND e.id = f.id
WHERE f.folder = $1

-- name: unfiled
-- Entities without a file in a folder. $1 folder, $2 entity_types, or null for all
SELECT e.entity_type, e.id, e.content_hash, e.metadata_hash
FROM {schema}.entities AS e
ANTI JOIN (SELECT entity_type, id FROM {schema}.files WHERE folder = $1) AS f
    ON f.entity_type = e.entity_type AND f.id = e.id
WHERE $2::VARCHAR[] IS NULL OR list_contains($2::VARCHAR[], e.entity_type)

-- name: origins
-- The latest file of each given key, in any folder.
SELECT t.position, f.path, f.metadata_hash, f.header
FROM given AS t JOIN {schema}.files AS f ON f.entity_type = t.entity_type AND f.id = t.id
QUALIFY row_number() OVER (PARTITION BY t.position ORDER BY f.synced_at DESC, f.folder, f.path) = 1

-- name: forget_files
-- Deletes the given paths of a folder. $1 folder
DELETE FROM {schema}.files AS f USING given AS t WHERE f.folder = $1 AND f.path = t.path

-- name: record_files
-- Saves the state of the given files of a folder. $1 folder
INSERT INTO {schema}.files (
    folder, path, entity_type, id, size, mtime_ns, file_hash, content_hash, metadata_hash, header, synced_at
)
SELECT $1, path, entity_type, id, size, mark, file_hash, content_hash, metadata_hash, header, now() FROM given

-- name: renamable
-- The given pairs that can be renamed, the location of their entity, and whether it is due in any space.
WITH given AS (SELECT position, old_type AS entity_type, old_id AS id FROM pairs), {found}, {done}, covered AS (
    SELECT e.position, count(*) AS spaces
    FROM found AS e
    JOIN done AS d ON d.entity_type = e.entity_type AND d.id = e.id AND d.content_hash = e.content_hash
    WHERE coalesce(d.metadata_hash = e.metadata_hash, true)
    GROUP BY e.position
)
SELECT t.position, e.place, e.content_hash <> unhex(sha256(''))
    AND coalesce(c.spaces, 0) < (SELECT greatest(count(*), 1) FROM {schema}.spaces) AS due
FROM pairs AS t
JOIN found AS e ON e.position = t.position
LEFT JOIN covered AS c ON c.position = t.position
ANTI JOIN {schema}.entities AS other ON other.key_hash = hash(t.new_type, t.new_id)
    AND other.entity_type = t.new_type AND other.id = t.new_id

-- name: rename
-- Changes the keys of the entities of the given pairs.
UPDATE {schema}.entities AS e
SET entity_type = t.new_type, id = t.new_id, key_hash = hash(t.new_type, t.new_id)
FROM pairs AS t WHERE e.rowid = t.place AND e.entity_type = t.old_type AND e.id = t.old_id

-- name: rename_passages
-- Moves their passages to the new keys.
UPDATE {schema}.passages AS p SET entity_type = t.new_type, id = t.new_id
FROM pairs AS t WHERE p.entity_type = t.old_type AND p.id = t.old_id

-- name: record_renames
-- Records the former keys. $1 batch
INSERT INTO {schema}.renames (old_type, old_id, new_type, new_id, batch_id, renamed_at)
SELECT old_type, old_id, new_type, new_id, $1::UUID, now() FROM pairs

-- name: keys_of_renamed
-- Adds the new keys of those that are due to a job. $1 job
INSERT INTO {schema}.job_keys SELECT $1::UUID, new_type, new_id FROM pairs WHERE due

-- name: renamed_by
-- The given pairs of keys that a batch renamed. $1 batch
SELECT t.position FROM pairs AS t JOIN {schema}.renames AS r USING (old_type, old_id, new_type, new_id)
WHERE r.batch_id = $1::UUID
