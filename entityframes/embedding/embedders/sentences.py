"""SentenceTransformerEmbedder: any model that sentence-transformers can load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from entityframes.errors import EmbedderError

PREFIX = "sentence-transformers:"


class SentenceTransformerEmbedder:
    """A model of sentence-transformers. Needs the package sentence-transformers.

    Args:
        model: the name of a model on the Hugging Face Hub, which is downloaded if necessary, or a local folder.
        max_batch: the maximum number of texts in a call.
        options: further arguments of ``sentence_transformers.SentenceTransformer``, such as ``device``.
    """

    def __init__(self, model: str | os.PathLike[str], *, max_batch: int = 64, **options: Any) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise EmbedderError("sentence-transformers is not installed: pip install sentence-transformers") from error
        self._model = SentenceTransformer(os.fspath(model), **options)
        self.name = PREFIX + os.fspath(model)
        self.dim = int(self._model.get_sentence_embedding_dimension())
        self.max_batch = int(max_batch)

    @classmethod
    def from_model(cls, model: str) -> SentenceTransformerEmbedder | None:
        """The embedder for a name such as sentence-transformers:all-MiniLM-L6-v2, or None."""
        return cls(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else None

    def embed(self, texts: Sequence[str], /) -> Any:
        """float32 (texts, dim), in order."""
        return self._model.encode(
            list(texts), batch_size=self.max_batch, convert_to_numpy=True, show_progress_bar=False
        )
