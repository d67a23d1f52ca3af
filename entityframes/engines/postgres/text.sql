-- The statements for text search on PostgreSQL. Besides {schema}, only parts of the statement matching and rendered
-- predicates are substituted.

-- name: text_state
-- The state of the index, and whether this user may write it and can see all entities.
SELECT (SELECT count(*) FROM {schema}.batches) AS batches, (SELECT coalesce(max(batches), 0) FROM {schema}.text_index) AS indexed,
    NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'
    AND NOT row_security_active('{schema}.entities'::regclass)
    AND has_table_privilege('{schema}.documents'::regclass, 'INSERT')
    AND has_table_privilege('{schema}.documents'::regclass, 'UPDATE')
    AND has_table_privilege('{schema}.documents'::regclass, 'DELETE')
    AND has_table_privilege('{schema}.text_index'::regclass, 'INSERT')
    AND has_table_privilege('{schema}.text_index'::regclass, 'DELETE') AS writable

-- name: unindexed
-- The entities whose current version is not in the index.
SELECT e.entity_type, e.id, octet_length(e.content) AS bytes
FROM {schema}.entities AS e
LEFT JOIN {schema}.documents AS d ON d.entity_type = e.entity_type AND d.id = e.id
    AND d.content_hash = e.content_hash AND d.metadata_hash = e.metadata_hash
WHERE d.id IS NULL

-- name: texts
-- The searched fields of the entities of the given keys. $1 entity_types, $2 ids
SELECT e.entity_type, e.id, e.content, e.content_hash, e.metadata_hash,
    CASE WHEN json_typeof(e.metadata -> 'title') IN ('string', 'number') THEN e.metadata ->> 'title' END AS title
FROM unnest($1::text[], $2::text[]) AS t (entity_type, id)
JOIN {schema}.entities AS e ON e.entity_type = t.entity_type AND e.id = t.id

-- name: index_lock
-- A lock until the end of the transaction, which serializes the writers of the index. $1 namespace
SELECT pg_advisory_xact_lock(hashtextextended($1, 7043))

-- name: index_documents
-- Writes the words of entities, replacing older ones only if an entity has not changed since it was read.
-- $1 entity_types, $2 ids, $3 content hashes, $4 metadata hashes, $5 lengths, $6 words and $7 their frequencies, joined
-- by spaces
INSERT INTO {schema}.documents AS d (entity_type, id, content_hash, metadata_hash, length, words, frequencies)
SELECT entity_type, id, content_hash, metadata_hash, length,
    string_to_array(words, ' '), string_to_array(frequencies, ' ')::int4[]
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::int4[], $6::text[], $7::text[])
    AS t (entity_type, id, content_hash, metadata_hash, length, words, frequencies)
ON CONFLICT (entity_type, id) DO UPDATE SET content_hash = EXCLUDED.content_hash,
    metadata_hash = EXCLUDED.metadata_hash, length = EXCLUDED.length, words = EXCLUDED.words,
    frequencies = EXCLUDED.frequencies
WHERE EXISTS (
    SELECT FROM {schema}.entities AS e WHERE e.entity_type = d.entity_type AND e.id = d.id
        AND e.content_hash = EXCLUDED.content_hash AND e.metadata_hash = EXCLUDED.metadata_hash
)

-- name: drop_documents
-- Deletes documents of entities that no longer exist.
DELETE FROM {schema}.documents AS d
WHERE NOT EXISTS (SELECT FROM {schema}.entities AS e WHERE e.entity_type = d.entity_type AND e.id = d.id)

-- name: finish_index
-- Records the number of batches that the index covers. $1 number
WITH before AS (DELETE FROM {schema}.text_index)
INSERT INTO {schema}.text_index VALUES ($1::int8)

-- name: matching
-- Entities that contain a chain, ranked by BM25. The index finds the entities with each word; exact scores are computed
-- for those with the best scores at a frequency of one. OFFSET 0 keeps the lookup of each word in the index. Document
-- frequencies do not depend on the filter. Scores are summed in the order of the words, so that equal texts have
-- exactly equal scores.
-- $1 chains, $2 words, $3 points, $4 needed, $5 limit, $6 entity_type or null; of entities not in the index:
-- $7 entity_types, $8 ids, $9 lengths, $10 words, $11 frequencies, $12 their number, $13 their total number of words
WITH terms AS MATERIALIZED (
    SELECT chain, word COLLATE "C" AS word, points, needed
    FROM unnest($1::int4[], $2::text[], $3::int4[], $4::int4[]) AS t (chain, word, points, needed)
), corpus AS MATERIALIZED (
    SELECT entities, greatest(words / greatest(entities, 1), 1) AS length FROM (
        SELECT count(*)::float8 + $12::float8 AS entities, coalesce(sum(length), 0)::float8 + $13::float8 AS words
        FROM {schema}.documents AS d WHERE ($6::text IS NULL OR entity_type = $6) AND {counts}
    ) AS d
), hits AS MATERIALIZED (
    SELECT t.word, d.entity_type, d.id, d.length, NULL::int4 AS frequency
    FROM (SELECT DISTINCT word FROM terms) AS t CROSS JOIN LATERAL (
        SELECT entity_type, id, length FROM {schema}.documents AS d
        WHERE words @> ARRAY[t.word] AND ($6::text IS NULL OR entity_type = $6) AND {counts} OFFSET 0
    ) AS d
    UNION ALL
    SELECT word COLLATE "C", entity_type COLLATE "C", id COLLATE "C", length, frequency
    FROM unnest($10::text[], $7::text[], $8::text[], $9::int4[], $11::int4[])
        AS t (word, entity_type, id, length, frequency)
), weights AS MATERIALIZED (
    SELECT word, ln(1 + (c.entities - count(*) + 0.5) / (count(*) + 0.5)) AS weight
    FROM hits CROSS JOIN corpus AS c GROUP BY word, c.entities
), counted AS MATERIALIZED (
    {counted}
), best AS MATERIALIZED (
    SELECT h.entity_type, h.id, h.length FROM counted AS h JOIN weights AS w USING (word)
    WHERE {kept}
    GROUP BY h.entity_type, h.id, h.length
    ORDER BY sum(w.weight ORDER BY w.word) / (1 + 1.2 * h.length) DESC, h.entity_type, h.id LIMIT $5::int8 * 4 + 200
), scored AS (
    SELECT h.entity_type, h.id, sum(w.weight * f.frequency * 2.2 / (f.frequency + 1.2 * h.length) ORDER BY w.word) AS score
    FROM best AS b
    JOIN counted AS h ON h.entity_type = b.entity_type AND h.id = b.id
    JOIN weights AS w ON w.word = h.word
    LEFT JOIN {schema}.documents AS d ON d.entity_type = h.entity_type AND d.id = h.id
    CROSS JOIN LATERAL (
        SELECT coalesce(h.frequency, d.frequencies[array_position(d.words, h.word)])::float8 AS frequency
    ) AS f
    GROUP BY h.entity_type, h.id
)
SELECT s.score, e.entity_type, e.id, e.content, e.metadata::text AS metadata,
    encode(e.content_hash, 'hex') AS content_hash, e.created_at, e.updated_at
FROM scored AS s JOIN {schema}.entities AS e ON e.entity_type = s.entity_type AND e.id = s.id
ORDER BY s.score DESC, s.entity_type, s.id LIMIT $5::int8

-- name: kept
-- Part of matching: whether the entity satisfies a predicate.
EXISTS (
    SELECT FROM {schema}.entities AS e WHERE e.entity_type = h.entity_type AND e.id = h.id AND ({condition})
)

-- name: counts_as_stored
-- Part of matching: the documents that are up to date.
EXISTS (
    SELECT FROM {schema}.entities AS e
    WHERE e.entity_type = d.entity_type AND e.id = d.id
        AND e.content_hash = d.content_hash AND e.metadata_hash = d.metadata_hash
)

-- name: counted_words
-- Part of matching: the relevant words, if each of them is a chain.
SELECT h.word, h.entity_type, h.id, 0.25 + 0.75 * h.length / c.length AS length, h.frequency
FROM hits AS h CROSS JOIN corpus AS c

-- name: counted_chains
-- Part of matching: the relevant words, which belong to chains that the entity contains.
SELECT h.word, h.entity_type, h.id, 0.25 + 0.75 * h.length / c.length AS length, h.frequency
FROM hits AS h CROSS JOIN corpus AS c WHERE (h.word, h.entity_type, h.id) IN (
    SELECT t.word, m.entity_type, m.id
    FROM terms AS t JOIN (
        SELECT t.chain, h.entity_type, h.id FROM hits AS h JOIN terms AS t USING (word)
        GROUP BY t.chain, t.needed, h.entity_type, h.id HAVING sum(t.points) >= t.needed
    ) AS m USING (chain)
)
