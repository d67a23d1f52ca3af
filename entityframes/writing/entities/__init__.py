"""Entities as a target: their rules, and how a row that does not carry all of an entity keeps the rest."""
