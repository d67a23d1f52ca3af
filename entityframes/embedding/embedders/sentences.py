"""SentenceTransformerEmbedder: any model that sentence-transformers can load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from entityframes.errors import EmbedderError

PREFIX = "sentence-transformers:"


class SentenceTransformerEmbedder:
    """A model of the package sentence-transformers, which has to be installed separately.

    Args:
        model: the name of a model on the Hugging Face Hub, or the path of a local folder.
        max_batch: the maximum number of texts per call.
        options: further keyword arguments for ``sentence_transformers.SentenceTransformer``, such as ``device``.

    Attributes:
        name: ``sentence-transformers:<model>``.
        dim: the dimension of the vectors.

    Raises:
        EmbedderError: sentence-transformers is not installed.

    Examples:
        >>> embedder = ef.SentenceTransformerEmbedder("all-MiniLM-L6-v2", device="cpu")  # doctest: +SKIP
        >>> embedder.dim  # doctest: +SKIP
        384
    """

    def __init__(self, model: str | os.PathLike[str], *, max_batch: int = 64, **options: Any) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise EmbedderError(
                "sentence-transformers is not installed", advice="pip install sentence-transformers"
            ) from error
        self._model = SentenceTransformer(os.fspath(model), **options)
        self.name = PREFIX + os.fspath(model)
        self.dim = int(self._model.get_sentence_embedding_dimension())
        self.max_batch = int(max_batch)

    @classmethod
    def from_model(cls, model: str) -> SentenceTransformerEmbedder | None:
        """The embedder of a model name such as ``sentence-transformers:all-MiniLM-L6-v2``; None for other names.

        Examples:
            >>> ef.SentenceTransformerEmbedder.from_model("hashing-64") is None
            True
        """
        return cls(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else None

    def embed(self, texts: Sequence[str], /) -> Any:
        """Embed texts.

        Returns:
            float32 array of shape (texts, dim), in the order of the texts.

        Examples:
            >>> embedder = ef.SentenceTransformerEmbedder("all-MiniLM-L6-v2")  # doctest: +SKIP
            >>> embedder.embed(["some text"]).shape  # doctest: +SKIP
            (1, 384)
        """
        return self._model.encode(
            list(texts), batch_size=self.max_batch, convert_to_numpy=True, show_progress_bar=False
        )
