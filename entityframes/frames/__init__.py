"""Input frames: reading them, checking their columns and keys, and splitting them into batches."""
