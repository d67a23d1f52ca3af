-- Format 5: an index of words, which text search fills, in place of one of the texts.
DROP INDEX IF EXISTS {schema}.content_words;
CREATE TABLE {schema}.documents (
    entity_type   text COLLATE "C" NOT NULL,
    id            text COLLATE "C" NOT NULL,
    content_hash  bytea NOT NULL,
    metadata_hash bytea NOT NULL,
    length        int4 NOT NULL,
    words         text[] COLLATE "C" NOT NULL,
    frequencies   int4[] NOT NULL,
    PRIMARY KEY (entity_type, id)
-- The arrays stand beside the table, which is read for each entity that has a word.
) WITH (toast_tuple_target = 128);
CREATE INDEX documents_words ON {schema}.documents USING gin (words);
CREATE TABLE {schema}.text_index (batches int8 NOT NULL);
INSERT INTO {schema}.text_index VALUES (0);
INSERT INTO {schema}.format (version) VALUES (5)
