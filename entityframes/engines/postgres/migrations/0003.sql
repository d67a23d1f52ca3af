-- Format 3: nothing here; on DuckDB entities have no index of their keys.
INSERT INTO {schema}.format (version) VALUES (3)
