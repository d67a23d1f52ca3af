-- The statements for text search on DuckDB. Besides {schema}, only the part that looks up keys, parts of the statement
-- matching, and rendered predicates are substituted. given, terms and beside (the words of entities that are not in the
-- index) are frames registered on the connection.

-- name: text_state
-- The state of the index.
SELECT (SELECT count(*) FROM {schema}.batches) AS batches, (SELECT coalesce(max(batches), 0) FROM {schema}.text_index) AS indexed

-- name: unindexed
-- The entities whose current version is not in the index. Reads the content of these only.
WITH due AS MATERIALIZED (
    SELECT e.rowid AS place FROM {schema}.entities AS e
    ANTI JOIN {schema}.documents AS d ON d.entity_type = e.entity_type AND d.id = e.id
        AND d.content_hash = e.content_hash AND d.metadata_hash = e.metadata_hash
)
SELECT e.entity_type, e.id, strlen(e.content) AS bytes
FROM due AS d JOIN {schema}.entities AS e ON e.rowid = d.place

-- name: texts
-- The searched fields of the entities of the given keys.
WITH {found}
SELECT entity_type, id, content, content_hash, metadata_hash,
    CASE WHEN json_type(metadata, '$.title') IN ('VARCHAR', 'UBIGINT', 'BIGINT', 'DOUBLE', 'HUGEINT')
        THEN metadata ->> '$.title' END AS title
FROM found

-- name: drop_replaced
-- Deletes the documents of the given entities that have not changed since they were read.
DELETE FROM {schema}.documents AS d USING given AS t, {schema}.entities AS e
WHERE d.entity_type = t.entity_type AND d.id = t.id AND e.entity_type = t.entity_type AND e.id = t.id
    AND e.content_hash = t.content_hash AND e.metadata_hash = t.metadata_hash

-- name: drop_postings
-- Deletes postings without a document.
DELETE FROM {schema}.postings WHERE document NOT IN (SELECT document FROM {schema}.documents)

-- name: index_documents
-- Adds the given entities that are not in the index.
INSERT INTO {schema}.documents
SELECT t.document, t.entity_type, t.id, t.content_hash, t.metadata_hash, t.length
FROM given AS t ANTI JOIN {schema}.documents AS d ON d.entity_type = t.entity_type AND d.id = t.id
ORDER BY t.document

-- name: index_words
-- Adds their words, sorted by word, so that a search reads a small part of them.
INSERT INTO {schema}.postings
SELECT word, document, frequency FROM (
    SELECT t.document, unnest(t.words) AS word, unnest(t.frequencies) AS frequency
    FROM given AS t SEMI JOIN {schema}.documents AS d ON d.document = t.document
) ORDER BY word, document

-- name: last_document
-- The highest number of a document.
SELECT coalesce(max(document), 0) FROM {schema}.documents

-- name: drop_documents
-- Deletes documents of entities that no longer exist.
DELETE FROM {schema}.documents AS d
WHERE NOT EXISTS (FROM {schema}.entities AS e WHERE e.entity_type = d.entity_type AND e.id = d.id)

-- name: forget_state
-- Deletes the number of batches that the index covers.
DELETE FROM {schema}.text_index

-- name: finish_index
-- Records the number of batches that the index covers. $1 number
INSERT INTO {schema}.text_index VALUES ($1)

-- name: matching
-- Entities that contain a chain, ranked by BM25. Document frequencies do not depend on the filter. Scores are summed in
-- the order of the words, so that equal texts have exactly equal scores.
-- $1 limit, $2 entity_type or null; of entities not in the index: $3 their number, and $4 their total number of words
WITH counting AS MATERIALIZED (
    SELECT * FROM {documents} AS d WHERE $2::VARCHAR IS NULL OR d.entity_type = $2
), corpus AS MATERIALIZED (
    SELECT count(*) + $3::DOUBLE AS entities,
        greatest((coalesce(sum(length), 0) + $4::DOUBLE) / greatest(count(*) + $3::DOUBLE, 1), 1) AS length
    FROM counting
), hits AS MATERIALIZED (
    SELECT p.word, d.entity_type, d.id, d.length, p.frequency
    FROM {schema}.postings AS p JOIN counting AS d ON d.document = p.document
    WHERE p.word IN (SELECT word FROM terms)
    UNION ALL
    SELECT word, entity_type, id, length, frequency FROM beside
), weights AS MATERIALIZED (
    SELECT word, ln(1 + (c.entities - count(*) + 0.5) / (count(*) + 0.5)) AS weight
    FROM hits CROSS JOIN corpus AS c GROUP BY word, c.entities
), counted AS MATERIALIZED (
    {counted}
), best AS MATERIALIZED (
    SELECT h.entity_type, h.id,
        sum(w.weight * h.frequency * 2.2 / (h.frequency + 1.2 * h.length) ORDER BY h.word) AS score
    FROM counted AS h JOIN weights AS w USING (word) {kept}
    GROUP BY h.entity_type, h.id ORDER BY score DESC, h.entity_type, h.id LIMIT $1
), given AS (SELECT entity_type, id, NULL AS position FROM best), {found}, placed AS MATERIALIZED (
    SELECT b.score, f.place FROM best AS b JOIN found AS f ON f.entity_type = b.entity_type AND f.id = b.id
)
SELECT b.score, e.entity_type, e.id, e.content, e.metadata::VARCHAR AS metadata,
    lower(hex(e.content_hash)) AS content_hash, e.created_at, e.updated_at
FROM placed AS b JOIN {schema}.entities AS e ON e.rowid = b.place
ORDER BY b.score DESC, e.entity_type, e.id

-- name: counted_words
-- Part of matching: the relevant words, if each of them is a chain.
SELECT h.word, h.entity_type, h.id, 0.25 + 0.75 * h.length / c.length AS length, h.frequency::DOUBLE AS frequency
FROM hits AS h CROSS JOIN corpus AS c

-- name: counted_chains
-- Part of matching: the relevant words, which belong to chains that the entity contains.
SELECT h.word, h.entity_type, h.id, 0.25 + 0.75 * h.length / c.length AS length, h.frequency::DOUBLE AS frequency
FROM hits AS h CROSS JOIN corpus AS c SEMI JOIN (
    SELECT t.word, m.entity_type, m.id
    FROM terms AS t JOIN (
        SELECT t.chain, h.entity_type, h.id FROM hits AS h JOIN terms AS t USING (word)
        GROUP BY t.chain, t.needed, h.entity_type, h.id HAVING sum(t.points) >= t.needed
    ) AS m USING (chain)
) AS m ON m.word = h.word AND m.entity_type = h.entity_type AND m.id = h.id

-- name: kept
-- Part of matching: the entities that satisfy a predicate.
SEMI JOIN (SELECT entity_type, id FROM {schema}.entities WHERE {condition}) AS e
    ON e.entity_type = h.entity_type AND e.id = h.id

-- name: counts_as_stored
-- Part of matching: the documents that are up to date.
(
    SELECT d.* FROM {schema}.documents AS d
    SEMI JOIN {schema}.entities AS e ON e.entity_type = d.entity_type AND e.id = d.id
        AND e.content_hash = d.content_hash AND e.metadata_hash = d.metadata_hash
)

-- name: counts_everything
-- Part of matching: all documents.
{schema}.documents
