"""WordLlamaEmbedder: a small static model whose weights come with its package."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entityframes.errors import EmbedderError

NAME = "wordllama-l2-supercat-256"


class WordLlamaEmbedder:
    """Averages of word vectors that were distilled from a large language model: 256 dimensions, no download, no GPU.

    Needs the extra ``entityframes[embed]``. The weights (l2_supercat, 16 MB) are part of the wordllama package.

    Args:
        max_batch: how many texts a call may have.
    """

    name = NAME
    dim = 256

    def __init__(self, *, max_batch: int = 256) -> None:
        self.max_batch = int(max_batch)
        self._model: Any = None
        self._loading = threading.Lock()

    @classmethod
    def from_model(cls, model: str) -> WordLlamaEmbedder | None:
        """The embedder, if the name is its own."""
        return cls() if model == NAME else None

    def embed(self, texts: Sequence[str], /) -> Any:
        """float32 (texts, 256), in order."""
        return self._loaded().embed(list(texts), norm=True)

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                try:
                    import wordllama
                except ImportError as error:
                    raise EmbedderError("wordllama is not installed: pip install 'entityframes[embed]'") from error
                # Its own folder as the cache: it would download the tokenizer that lies there.
                here = Path(wordllama.__file__).parent
                self._model = wordllama.WordLlama.load(dim=self.dim, cache_dir=here, disable_download=True)
        return self._model
