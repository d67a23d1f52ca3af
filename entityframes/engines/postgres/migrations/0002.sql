-- Format 2: folders that are synced, what each file was when it was last in step with its entity, and former keys.
CREATE TABLE {schema}.folders (
    folder      text COLLATE "C" PRIMARY KEY,
    holder      text,
    lease_until timestamptz
);
CREATE TABLE {schema}.files (
    folder        text COLLATE "C" NOT NULL,
    path          text COLLATE "C" NOT NULL,
    entity_type   text COLLATE "C" NOT NULL,
    id            text COLLATE "C" NOT NULL,
    size          int8 NOT NULL,
    mtime_ns      int8 NOT NULL,
    file_hash     bytea NOT NULL,
    content_hash  bytea NOT NULL,
    metadata_hash bytea NOT NULL,
    header        bytea NOT NULL,
    synced_at     timestamptz NOT NULL,
    PRIMARY KEY (folder, path)
);
CREATE INDEX files_of_entities ON {schema}.files (entity_type, id);
CREATE TABLE {schema}.renames (
    old_type   text COLLATE "C" NOT NULL,
    old_id     text COLLATE "C" NOT NULL,
    new_type   text COLLATE "C" NOT NULL,
    new_id     text COLLATE "C" NOT NULL,
    batch_id   uuid NOT NULL,
    renamed_at timestamptz NOT NULL
);
ALTER TABLE {schema}.embeddings ALTER COLUMN embedded_at SET DEFAULT now();
INSERT INTO {schema}.format (version) VALUES (2)
