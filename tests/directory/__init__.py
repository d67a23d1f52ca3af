"""Folders of markdown as entities."""
