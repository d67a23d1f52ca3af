"""Writing: from the caller's frame to the outcome of every row."""
