-- The statements for syncing folders on PostgreSQL. {schema} is the quoted namespace; nothing else is substituted.

-- name: lock_folder
-- Acquires the lock on a folder if it is free, if its lease has expired, or if this holder has it already.
-- $1 folder, $2 holder, $3 seconds
INSERT INTO {schema}.folders AS f (folder, holder, lease_until)
VALUES ($1, $2, now() + make_interval(secs => $3::float8))
ON CONFLICT (folder) DO UPDATE SET holder = EXCLUDED.holder, lease_until = EXCLUDED.lease_until
WHERE f.holder IS NULL OR f.holder = EXCLUDED.holder OR f.lease_until < now()
RETURNING holder

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
LEFT JOIN LATERAL (
    SELECT content_hash, metadata_hash FROM {schema}.entities
    WHERE entity_type = f.entity_type AND id = f.id OFFSET 0
) AS e ON true
WHERE f.folder = $1

-- name: unfiled
-- Entities without a file in a folder. $1 folder, $2 entity_types, or null for all
SELECT e.entity_type, e.id, e.content_hash, e.metadata_hash
FROM {schema}.entities AS e
WHERE ($2::text[] IS NULL OR e.entity_type = ANY ($2::text[])) AND NOT EXISTS (
    SELECT FROM {schema}.files AS f WHERE f.folder = $1 AND f.entity_type = e.entity_type AND f.id = e.id
)

-- name: origins
-- The latest file of each key, in any folder. $1 entity_types, $2 ids
SELECT t.position::int4 - 1 AS position, f.path, f.metadata_hash, f.header
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (entity_type, id, position)
CROSS JOIN LATERAL (
    SELECT path, metadata_hash, header FROM {schema}.files
    WHERE entity_type = t.entity_type AND id = t.id ORDER BY synced_at DESC, folder, path LIMIT 1
) AS f

-- name: record_files
-- Deletes paths of a folder and saves the state of files, if this holder still has the lock, which cannot be taken over
-- before the statement ends. No path may be in both.
-- $1 folder, $2 holder, $3 paths to delete, then of the files: $4 paths, $5 entity_types, $6 ids, $7 sizes, $8 marks,
-- $9 hashes of the bytes, $10 of the content, $11 of the metadata, $12 headers
WITH held AS MATERIALIZED (
    SELECT holder FROM {schema}.folders WHERE folder = $1 AND holder = $2 FOR UPDATE
), forgotten AS (
    DELETE FROM {schema}.files USING held WHERE folder = $1 AND path = ANY ($3::text[])
), recorded AS (
    INSERT INTO {schema}.files AS f (
        folder, path, entity_type, id, size, mtime_ns, file_hash, content_hash, metadata_hash, header, synced_at
    )
    SELECT $1, t.*, now() FROM held CROSS JOIN unnest($4::text[], $5::text[], $6::text[], $7::text[]::int8[],
        $8::text[]::int8[], $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[]) AS t
    ON CONFLICT (folder, path) DO UPDATE SET
        entity_type = EXCLUDED.entity_type, id = EXCLUDED.id, size = EXCLUDED.size, mtime_ns = EXCLUDED.mtime_ns,
        file_hash = EXCLUDED.file_hash, content_hash = EXCLUDED.content_hash, metadata_hash = EXCLUDED.metadata_hash,
        header = EXCLUDED.header, synced_at = EXCLUDED.synced_at
)
SELECT holder FROM held

-- name: rename
-- Changes the keys of entities if the new keys are free, and records the batch, the former keys, and a job for those
-- that are due in any space under their new key.
-- $1 batch, $2 run, $3 job, $4 old types, $5 old ids, $6 new types, $7 new ids
WITH {done}, given AS (
    SELECT * FROM unnest($4::text[], $5::text[], $6::text[], $7::text[])
        WITH ORDINALITY AS t (old_type, old_id, new_type, new_id, position)
), renamed AS (
    UPDATE {schema}.entities AS e SET entity_type = g.new_type, id = g.new_id
    FROM given AS g
    WHERE e.entity_type = g.old_type AND e.id = g.old_id AND NOT EXISTS (
        SELECT FROM {schema}.entities AS other WHERE other.entity_type = g.new_type AND other.id = g.new_id
    )
    RETURNING g.position, g.old_type, g.old_id, g.new_type, g.new_id, e.content, e.content_hash,
        e.metadata_hash
), moved AS (
    UPDATE {schema}.passages AS p SET entity_type = r.new_type, id = r.new_id
    FROM renamed AS r WHERE p.entity_type = r.old_type AND p.id = r.old_id
), due AS (
    SELECT new_type, new_id FROM renamed AS r
    WHERE r.content <> '' AND (NOT EXISTS (SELECT FROM {schema}.spaces) OR EXISTS (
        SELECT FROM {schema}.spaces AS s WHERE NOT EXISTS (
            SELECT FROM done AS d WHERE d.space = s.space
                AND d.entity_type = r.old_type AND d.id = r.old_id AND d.content_hash = r.content_hash
                AND coalesce(d.metadata_hash = r.metadata_hash, true)
        )
    ))
), former AS (
    INSERT INTO {schema}.renames (old_type, old_id, new_type, new_id, batch_id, renamed_at)
    SELECT old_type, old_id, new_type, new_id, $1::uuid, now() FROM renamed
), ledger AS (
    INSERT INTO {schema}.batches (batch_id, run_id, written_at, created, updated, deleted, due)
    SELECT $1::uuid, $2::uuid, now(), 0, count(*), 0, (SELECT count(*) FROM due) FROM renamed HAVING count(*) > 0
), job AS (
    INSERT INTO {schema}.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at)
    SELECT $3::uuid, $1::uuid, array_agg(new_type), array_agg(new_id), now(), now() FROM due HAVING count(*) > 0
)
SELECT position::int4 - 1 AS position FROM renamed

-- name: renamed_by
-- The given pairs of keys that a batch renamed. $1 batch, $2 old types, $3 old ids, $4 new types, $5 new ids
SELECT t.position::int4 - 1 AS position
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS t (old_type, old_id, new_type, new_id, position)
JOIN {schema}.renames AS r USING (old_type, old_id, new_type, new_id) WHERE r.batch_id = $1::uuid
