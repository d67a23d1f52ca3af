"""Embedders, one module for each model or service."""
