-- Format 4: nothing here; before it, stores of one format that have different tables are repaired (earlier.py).
INSERT INTO {schema}.format (version) VALUES (4)
