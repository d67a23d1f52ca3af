-- Format 6: vectors belong to texts, by the SHA-256 of the text, and entities to the texts they are cut into. An entity
-- whose content is one passage has one row, from the first character to the last (end_char null). A content of white
-- space only has one row without a text.
ALTER TABLE {schema}.spaces ADD COLUMN passages VARCHAR;
CREATE TABLE {schema}.passages (
    space         VARCHAR NOT NULL,
    entity_type   VARCHAR NOT NULL,
    id            VARCHAR NOT NULL,
    content_hash  BLOB NOT NULL USING COMPRESSION uncompressed,
    -- Only in spaces whose passages contain the title, which is in the metadata.
    metadata_hash BLOB USING COMPRESSION uncompressed,
    position      INTEGER NOT NULL,
    start_char    BIGINT NOT NULL,
    end_char      BIGINT,
    heading       VARCHAR NOT NULL,
    text_hash     BLOB USING COMPRESSION uncompressed
);
INSERT INTO {schema}.passages
SELECT v.space, v.entity_type, v.id, v.content_hash, NULL, 0, 0, NULL, '', v.content_hash
FROM {schema}.embeddings AS v
JOIN {schema}.entities AS e ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
JOIN {schema}.spaces AS s ON s.space = v.space
ORDER BY v.space, v.entity_type, v.id;
DELETE FROM {schema}.embeddings WHERE rowid IN (
    SELECT rowid FROM {schema}.embeddings
    QUALIFY row_number() OVER (PARTITION BY space, content_hash ORDER BY error IS NOT NULL, rowid) > 1
);
ALTER TABLE {schema}.embeddings DROP COLUMN entity_type;
ALTER TABLE {schema}.embeddings DROP COLUMN id;
ALTER TABLE {schema}.embeddings RENAME COLUMN content_hash TO text_hash;
-- The words of texts follow new rules, so the index is made anew by the next search.
DELETE FROM {schema}.documents;
DELETE FROM {schema}.postings;
UPDATE {schema}.text_index SET batches = 0;
INSERT INTO {schema}.format (version) VALUES (6)
