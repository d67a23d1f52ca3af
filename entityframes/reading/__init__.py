"""Reading: by ids, by type, lazily, and what `verify` recomputes."""
