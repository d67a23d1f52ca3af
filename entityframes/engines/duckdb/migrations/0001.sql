-- Format 1: entities, the ledger of batches, embedding jobs, spaces and vectors, and the dtypes of metadata fields.
CREATE TABLE {schema}.format (version INTEGER NOT NULL, since TIMESTAMPTZ NOT NULL DEFAULT now());
INSERT INTO {schema}.format (version) VALUES (1);
CREATE TABLE {schema}.entities (
    entity_type   VARCHAR NOT NULL,
    id            VARCHAR NOT NULL,
    content       VARCHAR NOT NULL,
    metadata      JSON NOT NULL,
    content_hash  BLOB NOT NULL,
    metadata_hash BLOB NOT NULL,
    batch_id      UUID NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL,
    updated_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (entity_type, id)
);
CREATE TABLE {schema}.batches (
    batch_id   UUID PRIMARY KEY,
    run_id     UUID NOT NULL,
    written_at TIMESTAMPTZ NOT NULL,
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL,
    deleted    INTEGER NOT NULL,
    -- How many keys the batch's embedding job lists.
    due        INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE {schema}.embedding_jobs (
    job_id       UUID PRIMARY KEY,
    batch_id     UUID,
    space        VARCHAR,
    state        VARCHAR NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    entity_types VARCHAR[] NOT NULL,
    ids          VARCHAR[] NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    rescues      INTEGER NOT NULL DEFAULT 0,
    fence        INTEGER NOT NULL DEFAULT 0,
    worker       VARCHAR,
    lease_until  TIMESTAMPTZ,
    error        VARCHAR,
    created_at   TIMESTAMPTZ NOT NULL,
    updated_at   TIMESTAMPTZ NOT NULL
);
CREATE TABLE {schema}.spaces (
    space        VARCHAR PRIMARY KEY,
    model        VARCHAR NOT NULL,
    dim          INTEGER NOT NULL,
    activated_at TIMESTAMPTZ,
    created_at   TIMESTAMPTZ NOT NULL
);
CREATE TABLE {schema}.embeddings (
    space        VARCHAR NOT NULL,
    entity_type  VARCHAR NOT NULL,
    id           VARCHAR NOT NULL,
    content_hash BLOB NOT NULL,
    error        VARCHAR,
    embedded_at  TIMESTAMPTZ NOT NULL
);
CREATE TABLE {schema}.metadata_fields (
    entity_type VARCHAR NOT NULL,
    field       VARCHAR NOT NULL,
    position    BIGINT NOT NULL,
    dtype       VARCHAR NOT NULL,
    declared    BOOLEAN NOT NULL,
    PRIMARY KEY (entity_type, field)
)
