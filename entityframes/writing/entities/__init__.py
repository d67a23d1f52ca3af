"""Entities as a target: their validation, and merging rows with the stored fields that they lack."""
