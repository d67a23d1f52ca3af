"""Calls of an embedder: retries while it is busy, and isolates a text that it cannot embed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from entityframes.embedding.embedders.base import Embedder
from entityframes.errors import EmbedderBusyError, EmbedderError
from entityframes.retry import retry

Array = np.ndarray[Any, Any]

#: Seconds before the first retry; doubled for each further retry.
BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
#: The longest wait that an embedder may request.
LONGEST_REQUESTED = 3600.0
#: After this many consecutive failures of single texts, a plain text is embedded, to find out if the embedder works.
FAILURES_BEFORE_PROBE = 8
PROBE_TEXT = "text"


#: Exceptions of an embedder after which the call is retried.
_BUSY = (EmbedderBusyError, TimeoutError, ConnectionError)


class StoppedError(Exception):
    """The run was stopped while it waited."""


class Calls:
    """Calls one embedder for one run; may be used from several threads.

    Args:
        max_attempts: the maximum number of attempts of a call while the embedder is busy.
        stopping: an event that ends a wait.
        delayed: called with the error and the number of attempts before each wait.
    """

    def __init__(
        self,
        embedder: Embedder,
        max_attempts: int = 3,
        stopping: threading.Event | None = None,
        delayed: Callable[[str, int], None] = lambda error, tries: None,
    ) -> None:
        self._embedder = embedder
        self._dim = embedder.dim
        self._max_attempts = max_attempts
        self._stopping = stopping or threading.Event()
        self._delayed = delayed
        self._lock = threading.Lock()
        #: The number of consecutive failures of single texts.
        self._failed = 0
        #: The number of calls of the embedder.
        self.count = 0

    def embed(self, texts: Sequence[str]) -> tuple[Array, list[str | None]]:
        """Embed texts as vectors of length 1, with an error for each text that cannot be embedded.

        A batch with one invalid text costs at most 2 log2(batch) + 1 additional calls.

        Returns:
            float32 (texts, dim), and for each text its error or None.

        Raises:
            EmbedderBusyError: the embedder was busy at every attempt.
            EmbedderError: the embedder cannot embed any text.
            StoppedError: the run was stopped during a wait.
        """
        vectors = np.zeros((len(texts), self._dim), np.float32)
        errors: list[str | None] = [None] * len(texts)
        if texts:
            self._resolve(texts, 0, len(texts), vectors, errors, None)
        vectors = _normalized(vectors, errors)
        if texts and (None not in errors or not vectors.any()):
            self.probe(errors[0])
        return vectors, errors

    def probe(self, last_error: str | None = None) -> None:
        """Embed a plain text, to find out whether the embedder works.

        Args:
            last_error: the error of the texts that failed before, if any did.

        Raises:
            EmbedderError: the plain text cannot be embedded either; EmbedderBusyError and StoppedError as in `embed`.
        """
        errors: list[str | None] = [None]
        try:
            vectors = _normalized(self._call([PROBE_TEXT]).copy(), errors)
        except (EmbedderError, StoppedError):
            raise
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}", last_error) from error
        if errors[0] is not None or not vectors.any():
            raise self._failure(errors[0] or "the vector is all zeros", last_error)

    def _failure(self, error: str, last_error: str | None) -> EmbedderError:
        reason = f"every text fails: {last_error}" if last_error else f"it cannot embed a plain word: {error}"
        return EmbedderError(f"the embedder {self._embedder.name} does not work: {reason}")

    def _resolve(
        self, texts: Sequence[str], low: int, high: int, vectors: Array, errors: list[str | None], known: str | None
    ) -> bool:
        """Embed a range of the texts, and bisect it on failure.

        Args:
            known: the error of a range that is known to fail, which is not called as a whole.

        Returns:
            Whether every text of the range was embedded.
        """
        error = known
        if error is None:
            try:
                vectors[low:high] = self._call(texts[low:high])
            except (EmbedderError, StoppedError):
                raise
            except Exception as rejected:
                error = f"{type(rejected).__name__}: {rejected}"
            else:
                with self._lock:
                    self._failed = 0
                return True
        if high - low == 1:
            errors[low] = error[:500]
            self._count_failure(error)
            return False
        middle = (low + high) // 2
        left = self._resolve(texts, low, middle, vectors, errors, None)
        # If the left half succeeded, the invalid text is in the right half: calling that as a whole would fail.
        inferred = error if left and high - middle > 1 else None
        return self._resolve(texts, middle, high, vectors, errors, inferred) and left

    def _count_failure(self, error: str) -> None:
        with self._lock:
            self._failed += 1
            probe = self._failed % FAILURES_BEFORE_PROBE == 0
        if probe:
            self.probe(error)

    def _call(self, texts: Sequence[str]) -> Array:
        """Call the embedder, with retries while it is busy."""

        def call() -> Array:
            with self._lock:
                self.count += 1
            return self._checked(self._embedder.embed(texts), len(texts))

        pauses = [partial(self._pause, attempts) for attempts in range(1, self._max_attempts)]
        try:
            return retry(call, on=_BUSY, pauses=pauses, wait=self._wait, what=f"the embedder {self._embedder.name}")
        except _BUSY as busy:
            raise _as_busy(busy) from busy

    def _pause(self, attempts: int, busy: BaseException) -> float:
        """Seconds until the next attempt: as requested by the embedder, else with exponential backoff."""
        self._delayed(str(busy), attempts)
        requested = getattr(busy, "retry_after", None)
        backoff = min(BACKOFF * 2 ** min(attempts - 1, 10), LONGEST_BACKOFF)
        seconds: float = backoff if requested is None else requested
        return min(seconds, LONGEST_REQUESTED)

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError

    def _checked(self, result: Any, rows: int) -> Array:
        try:
            vectors = np.asarray(result, np.float32)
        except (TypeError, ValueError) as error:
            raise EmbedderError(
                f"the embedder {self._embedder.name} did not return an array of numbers: {error}"
            ) from error
        if vectors.shape != (rows, self._dim):
            raise EmbedderError(
                f"the embedder {self._embedder.name} returned an array of shape {vectors.shape}, "
                f"expected {(rows, self._dim)}"
            )
        return vectors


def _normalized(vectors: Array, errors: list[str | None]) -> Array:
    """Vectors of length 1, whose inner product is the cosine; a vector that is not finite becomes an error."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    for row in np.flatnonzero(~np.isfinite(lengths)):
        errors[row] = errors[row] or "the vector contains NaN or infinity"
    usable = np.isfinite(lengths) & (lengths > 0)
    vectors[~usable] = 0
    vectors[usable] /= lengths[usable, None]
    return vectors


def _as_busy(error: BaseException) -> EmbedderBusyError:
    if isinstance(error, EmbedderBusyError):
        return error
    return EmbedderBusyError(f"{type(error).__name__}: {error}")
