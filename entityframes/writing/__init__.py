"""Writing: the way of a batch from the caller's frame to the outcome of every row."""
