"""Metadata: canonical JSON, the dtypes of its fields, and what becomes of a field that a frame does not carry."""
