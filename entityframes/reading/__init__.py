"""Reading: by ids, by type, lazily, and the checks of `verify`."""
