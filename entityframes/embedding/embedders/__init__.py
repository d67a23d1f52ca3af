"""What turns texts into vectors: one file for each model or service."""
