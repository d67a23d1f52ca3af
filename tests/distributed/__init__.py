"""Runs that are spread over processes."""
