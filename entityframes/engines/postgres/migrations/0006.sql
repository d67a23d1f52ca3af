-- Format 6: vectors belong to texts, by the SHA-256 of the text, and entities to the texts they are cut into. An entity
-- whose content is one passage has one row, from the first character to the last (end_char null). A content of white
-- space only has one row without a text. No vector is rewritten, and indexes of vectors stay.
ALTER TABLE {schema}.spaces ADD COLUMN passages text;
CREATE TABLE {schema}.passages (
    space         text COLLATE "C" NOT NULL,
    entity_type   text COLLATE "C" NOT NULL,
    id            text COLLATE "C" NOT NULL,
    content_hash  bytea NOT NULL,
    -- Only in spaces whose passages contain the title, which is in the metadata.
    metadata_hash bytea,
    position      int4 NOT NULL,
    start_char    int8 NOT NULL,
    end_char      int8,
    heading       text NOT NULL,
    text_hash     bytea,
    PRIMARY KEY (entity_type, id, space, position)
) PARTITION BY LIST (space);
CREATE INDEX passages_texts ON {schema}.passages (text_hash);
DO $$ DECLARE s record; BEGIN FOR s IN SELECT space, number FROM {schema}.spaces LOOP EXECUTE format('CREATE TABLE {schema}.%I PARTITION OF {schema}.passages FOR VALUES IN (%L)', 'passages_' || s.number, s.space); END LOOP; END $$;
INSERT INTO {schema}.passages
SELECT v.space, v.entity_type, v.id, v.content_hash, NULL, 0, 0, NULL, '', v.content_hash
FROM {schema}.embeddings AS v
JOIN {schema}.entities AS e ON e.entity_type = v.entity_type AND e.id = v.id AND e.content_hash = v.content_hash
JOIN {schema}.spaces AS s ON s.space = v.space;
DELETE FROM {schema}.embeddings AS v USING (
    SELECT space, entity_type, id,
        row_number() OVER (PARTITION BY space, content_hash ORDER BY error IS NOT NULL, entity_type, id) AS number
    FROM {schema}.embeddings
) AS d WHERE d.number > 1 AND v.space = d.space AND v.entity_type = d.entity_type AND v.id = d.id;
ALTER TABLE {schema}.embeddings DROP COLUMN entity_type, DROP COLUMN id;
ALTER TABLE {schema}.embeddings RENAME COLUMN content_hash TO text_hash;
ALTER TABLE {schema}.embeddings ADD PRIMARY KEY (text_hash, space);
CREATE INDEX embeddings_failed ON {schema}.embeddings (text_hash) WHERE error IS NOT NULL;
-- The words of texts follow new rules, so the index is made anew by the next search.
TRUNCATE {schema}.documents;
UPDATE {schema}.text_index SET batches = 0;
INSERT INTO {schema}.format (version) VALUES (6)
