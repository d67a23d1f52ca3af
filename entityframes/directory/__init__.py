"""Folders of markdown files as entities."""

from entityframes.directory.sync import DirectorySync

__all__ = ["DirectorySync"]
