"""Metadata: canonical JSON, the dtypes of its fields, and merging of fields that a frame does not contain."""
