"""Runs that are spread over a real cluster of Ray."""
