"""Tests of folders of markdown files as entities."""
