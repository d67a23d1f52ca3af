"""Tables of the user as targets of the write path."""
