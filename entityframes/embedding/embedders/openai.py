"""OpenAIEmbedder: OpenAI, and every server with a compatible /embeddings endpoint: vLLM, Ollama, llama.cpp, TEI, ..."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from entityframes.errors import EmbedderBusyError, EmbedderError

PREFIX = "openai:"
#: The limits of OpenAI's server.
MAX_ITEMS = 2_048
MAX_TOKENS = 300_000
#: English text has about four bytes per token; with three a request stays below the limit for most texts.
BYTES_PER_TOKEN = 3

#: HTTP statuses that call for a retry, and those that do not depend on the text.
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_REJECTED = {401, 402, 403, 404, 405}


class OpenAIEmbedder:
    """OpenAI, or any server with an OpenAI-compatible ``/embeddings`` endpoint. Needs the extra ``[openai]``.

    Args:
        model: the name of the model on the server.
        dim: the dimension to request; None takes that of the model, which costs one call to find out.
        base_url: the address of the server; None for $OPENAI_BASE_URL, or else OpenAI.
        api_key: None for $OPENAI_API_KEY. It never appears in a message.
        max_batch: the maximum number of texts per request, at most 2,048.
        max_tokens: the maximum number of tokens per request, estimated from bytes; a call is split into requests.
        timeout: seconds per request.

    Attributes:
        name: ``openai:<model>``, with ``@<dim>`` if a dimension was requested.

    Raises:
        EmbedderError: httpx is not installed.

    Examples:
        >>> embedder = ef.OpenAIEmbedder("text-embedding-3-small", dim=256, api_key="...")
        >>> embedder.name
        'openai:text-embedding-3-small@256'
    """

    def __init__(
        self,
        model: str = "text-embedding-3-small",
        *,
        dim: int | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        max_batch: int = 256,
        max_tokens: int = MAX_TOKENS,
        timeout: float = 60.0,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise EmbedderError("httpx is not installed", advice="pip install httpx") from error
        key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY")
        base = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._client = httpx.Client(
            base_url=base.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=float(timeout),
        )
        self._model = model
        self._asked_dim = None if dim is None else int(dim)
        self._dim = self._asked_dim
        self.name = PREFIX + model + ("" if dim is None else f"@{dim}")
        self.max_batch = min(int(max_batch), MAX_ITEMS)
        self._max_bytes = int(max_tokens) * BYTES_PER_TOKEN

    @classmethod
    def from_model(cls, model: str) -> OpenAIEmbedder | None:
        """The embedder of a model name such as ``openai:text-embedding-3-small@256``; None for other names.

        The address of the server and the key are those of the environment.

        Examples:
            >>> ef.OpenAIEmbedder.from_model("openai:text-embedding-3-large@1024").dim
            1024
        """
        if not model.startswith(PREFIX):
            return None
        name, _, dim = model.removeprefix(PREFIX).partition("@")
        return cls(name, dim=int(dim) if dim else None)

    @property
    def dim(self) -> int:
        """The dimension of the vectors. If none was requested, the first access asks the server.

        Raises:
            EmbedderError, EmbedderBusyError, ValueError: as for `embed`.

        Examples:
            >>> ef.OpenAIEmbedder(dim=256).dim
            256
        """
        if self._dim is None:
            self._dim = self._request(["dimension"]).shape[1]
        return self._dim

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        """Embed texts, in one or more requests.

        Returns:
            float32 array of shape (texts, dim), in the order of the texts.

        Raises:
            EmbedderBusyError: rate limit, overload or no answer; with the seconds of Retry-After.
            EmbedderError: the server refused the credentials or the model, or its answer is not a list of vectors.
            ValueError: the server refused the texts.

        Examples:
            >>> ef.OpenAIEmbedder("text-embedding-3-small").embed(["some text"]).shape  # doctest: +SKIP
            (1, 1536)
            >>> ef.OpenAIEmbedder("text-embedding-3-small", dim=256).embed([]).shape
            (0, 256)
        """
        parts = [self._request(part) for part in self._parts(texts)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _parts(self, texts: Sequence[str]) -> Iterator[list[str]]:
        part: list[str] = []
        size = 0
        for text in texts:
            bytes_ = len(text.encode("utf-8", "replace"))
            if part and (len(part) == self.max_batch or size + bytes_ > self._max_bytes):
                yield part
                part, size = [], 0
            part.append(text)
            size += bytes_
        if part:
            yield part

    def _request(self, texts: list[str]) -> np.ndarray[Any, Any]:
        import httpx

        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._asked_dim is not None:
            body["dimensions"] = self._asked_dim
        try:
            response = self._client.post("embeddings", json=body)
        except httpx.TransportError as error:
            raise EmbedderBusyError(f"the embedding server did not respond: {type(error).__name__}: {error}") from error
        if response.status_code in _BUSY:
            raise EmbedderBusyError(f"the embedding server is busy: {_reason(response)}", _retry_after(response))
        if response.status_code in _REJECTED:
            raise EmbedderError(f"the embedding server rejected the request: {_reason(response)}")
        if response.status_code >= 400:
            raise ValueError(f"the embedding server rejected the text: {_reason(response)}")
        try:
            data = sorted(response.json()["data"], key=lambda item: item["index"])
            vectors = np.array([item["embedding"] for item in data], np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise EmbedderError(f"the response of the embedding server is not a list of vectors: {error!r}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise EmbedderError(f"the embedding server returned {len(vectors)} vectors for {len(texts)} texts")
        return vectors


def _reason(response: Any) -> str:
    """The status and the message of the server, which may not be JSON."""
    try:
        error = response.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code} {' '.join(str(message).split())[:200]}".strip()


def _retry_after(response: Any) -> float | None:
    """The seconds of the Retry-After header, which is a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
