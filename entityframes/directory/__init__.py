"""Folders of markdown as entities."""

from entityframes.directory.sync import DirectorySync

__all__ = ["DirectorySync"]
