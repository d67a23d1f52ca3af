"""WordLlamaEmbedder: a small static model whose weights come with its package."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entityframes.errors import EmbedderError

NAME = "wordllama-l2-supercat-256"
#: Also bounds memory: the model fills every text of a call up to the longest.
MAX_CHARS = 800


class WordLlamaEmbedder:
    """Averages of word vectors that were distilled from a large language model: 256 dimensions, no download, no GPU.

    Needs the package wordllama (``pip install wordllama``). The weights (l2_supercat, 16 MB) are part of it.

    Args:
        max_batch: how many texts a call may have.
        max_chars: how many characters of a text count. What a text is about stands at its beginning; the average of
            all words of a long one is near to everything. Part of the model's name where it is not the default.
    """

    dim = 256

    def __init__(self, *, max_batch: int = 256, max_chars: int = MAX_CHARS) -> None:
        if int(max_chars) < 1:
            raise ValueError(f"max_chars is {max_chars!r}: it is a number of characters, at least 1")
        self.max_batch = int(max_batch)
        self._max_chars = int(max_chars)
        self.name = NAME if self._max_chars == MAX_CHARS else f"{NAME}@{self._max_chars}"
        self._model: Any = None
        self._loading = threading.Lock()

    @classmethod
    def from_model(cls, model: str) -> WordLlamaEmbedder | None:
        """The embedder, if the name is its own."""
        match = re.fullmatch(rf"{NAME}(?:@(\d{{1,9}}))?", model)
        return cls(max_chars=int(match[1] or MAX_CHARS)) if match else None

    def embed(self, texts: Sequence[str], /) -> Any:
        """float32 (texts, 256), in order."""
        return self._loaded().embed([text[: self._max_chars] for text in texts], norm=True)

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                try:
                    import wordllama
                except ImportError as error:
                    raise EmbedderError("wordllama is not installed: pip install wordllama") from error
                # Its own folder as the cache: it would download the tokenizer that lies there.
                here = Path(wordllama.__file__).parent
                self._model = wordllama.WordLlama.load(dim=self.dim, cache_dir=here, disable_download=True)
        return self._model
