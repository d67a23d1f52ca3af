-- Format 2: folders that are synced, what each file was when it was last in step with its entity, and former keys.
CREATE TABLE {schema}.folders (
    folder      VARCHAR PRIMARY KEY,
    holder      VARCHAR,
    lease_until TIMESTAMPTZ
);
CREATE TABLE {schema}.files (
    folder        VARCHAR NOT NULL,
    path          VARCHAR NOT NULL,
    entity_type   VARCHAR NOT NULL,
    id            VARCHAR NOT NULL,
    size          BIGINT NOT NULL,
    mtime_ns      BIGINT NOT NULL,
    file_hash     BLOB NOT NULL,
    content_hash  BLOB NOT NULL,
    metadata_hash BLOB NOT NULL,
    header        BLOB NOT NULL,
    synced_at     TIMESTAMPTZ NOT NULL
);
CREATE TABLE {schema}.renames (
    old_type   VARCHAR NOT NULL,
    old_id     VARCHAR NOT NULL,
    new_type   VARCHAR NOT NULL,
    new_id     VARCHAR NOT NULL,
    batch_id   UUID NOT NULL,
    renamed_at TIMESTAMPTZ NOT NULL
);
INSERT INTO {schema}.format (version) VALUES (2)
