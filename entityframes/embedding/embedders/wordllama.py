"""WordLlamaEmbedder: a small static model whose weights are part of its package."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entityframes.errors import EmbedderError

NAME = "wordllama-l2-supercat-256"
#: Also limits memory: the model pads every text of a call to the length of the longest.
MAX_CHARS = 800


class WordLlamaEmbedder:
    """Averages of static word vectors that were distilled from large language models. It needs no download and no GPU.

    Needs the package wordllama (extra ``[embed]``), which includes the weights (l2_supercat, 16 MB). The model is
    loaded on first use.

    Args:
        max_batch: the maximum number of texts per call.
        max_chars: how many characters of a text are used, at least 1. The beginning usually says what a text is about,
            whereas the average of all words of a long text is close to everything.

    Attributes:
        name: ``wordllama-l2-supercat-256``, with ``@<max_chars>`` unless that is the default.
        dim: 256, the dimension of the vectors.

    Raises:
        ValueError: `max_chars` is less than 1.

    Examples:
        >>> embedder = ef.WordLlamaEmbedder()
        >>> embedder.name, embedder.dim
        ('wordllama-l2-supercat-256', 256)
    """

    dim = 256

    def __init__(self, *, max_batch: int = 256, max_chars: int = MAX_CHARS) -> None:
        if int(max_chars) < 1:
            raise ValueError(f"max_chars must be a positive integer, got {max_chars!r}")
        self.max_batch = int(max_batch)
        self._max_chars = int(max_chars)
        self.name = NAME if self._max_chars == MAX_CHARS else f"{NAME}@{self._max_chars}"
        self._model: Any = None
        self._loading = threading.Lock()

    @classmethod
    def from_model(cls, model: str) -> WordLlamaEmbedder | None:
        """The embedder of a model name such as ``wordllama-l2-supercat-256@2000``; None for other names.

        Examples:
            >>> ef.WordLlamaEmbedder.from_model("wordllama-l2-supercat-256@2000").name
            'wordllama-l2-supercat-256@2000'
        """
        match = re.fullmatch(rf"{NAME}(?:@(\d{{1,9}}))?", model)
        return cls(max_chars=int(match[1] or MAX_CHARS)) if match else None

    def embed(self, texts: Sequence[str], /) -> Any:
        """Embed texts.

        Returns:
            float32 array of shape (texts, 256), in the order of the texts; each vector has length 1.

        Raises:
            EmbedderError: wordllama is not installed.

        Examples:
            >>> ef.WordLlamaEmbedder().embed(["some text", "another one"]).shape
            (2, 256)
        """
        return self._loaded().embed([text[: self._max_chars] for text in texts], norm=True)

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                try:
                    import wordllama
                except ImportError as error:
                    raise EmbedderError("wordllama is not installed", advice="pip install wordllama") from error
                # With another cache folder it would download the tokenizer, which is part of the package.
                here = Path(wordllama.__file__).parent
                self._model = wordllama.WordLlama.load(dim=self.dim, cache_dir=here, disable_download=True)
        return self._model
