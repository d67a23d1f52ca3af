"""Frames as callers hand them in: what counts as one, which columns it has, its keys, and its batches."""
