-- Format 5: an index of words, which text search fills.
CREATE TABLE {schema}.documents (
    document      BIGINT NOT NULL,
    entity_type   VARCHAR NOT NULL,
    id            VARCHAR NOT NULL,
    content_hash  BLOB NOT NULL,
    metadata_hash BLOB NOT NULL,
    length        INTEGER NOT NULL
);
CREATE TABLE {schema}.postings (
    word      VARCHAR NOT NULL,
    document  BIGINT NOT NULL,
    frequency INTEGER NOT NULL
);
CREATE TABLE {schema}.text_index (batches BIGINT NOT NULL);
INSERT INTO {schema}.text_index VALUES (0);
INSERT INTO {schema}.format (version) VALUES (5)
