"""Calls of an embedder: patient with a busy one, and one bad text does not fail its batch."""

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

#: Seconds before the second try; doubled for each further one.
BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
#: The longest wait that an embedder may ask for.
LONGEST_ASKED = 3600.0
#: When so many single texts have failed in a row, a text that is known to be harmless tells whether it is the texts.
HOPELESS = 8
HARMLESS = "text"


#: What an embedder raises that is asked again later.
_BUSY = (EmbedderBusyError, TimeoutError, ConnectionError)


class StoppedError(Exception):
    """The run was stopped while it waited."""


class Calls:
    """Calls one embedder for one run; may be used from several threads.

    Args:
        max_attempts: how often a call is tried while the embedder is busy.
        stopping: ends a wait when it is set.
        delayed: told the error and the number of tries before each wait.
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
        #: Texts that have failed in a row.
        self._failed = 0
        #: How often the embedder was called.
        self.count = 0

    def embed(self, texts: Sequence[str]) -> tuple[Array, list[str | None]]:
        """Vectors of length 1 and, for each text that cannot be embedded, why.

        A batch with one bad text costs at most 2 log2(batch) + 1 calls more than one without.

        Returns:
            float32 (texts, dim), and the error of each text or None.

        Raises:
            EmbedderBusyError: it was busy at every try.
            EmbedderError: it cannot work at all.
            StoppedError: the run was stopped during a wait.
        """
        vectors = np.zeros((len(texts), self._dim), np.float32)
        errors: list[str | None] = [None] * len(texts)
        if texts:
            self._resolve(texts, 0, len(texts), vectors, errors, None)
        vectors = _scaled(vectors, errors)
        if texts and (None not in errors or not vectors.any()):
            self.try_out(errors[0])
        return vectors, errors

    def try_out(self, why: str | None = None) -> None:
        """Embed a harmless text.

        Args:
            why: what went wrong with all others, if that is why it is tried.

        Raises:
            EmbedderError: it cannot be embedded either, so that it is not the texts; EmbedderBusyError and StoppedError
                as `embed`.
        """
        errors: list[str | None] = [None]
        try:
            vectors = _scaled(self._answer([HARMLESS]).copy(), errors)
        except (EmbedderError, StoppedError):
            raise
        except Exception as error:
            raise self._hopeless(f"{type(error).__name__}: {error}", why) from error
        if errors[0] is not None or not vectors.any():
            raise self._hopeless(errors[0] or "the vector is all zeros", why)

    def _hopeless(self, error: str, why: str | None) -> EmbedderError:
        every = f"every text fails: {why}" if why else f"it embeds not even a plain word: {error}"
        return EmbedderError(f"the embedder {self._embedder.name} cannot work: {every}")

    def _resolve(
        self, texts: Sequence[str], low: int, high: int, vectors: Array, errors: list[str | None], known: str | None
    ) -> bool:
        """Embed a range, halving it where that fails; whether all of it went well. `known`: why it will fail."""
        error = known
        if error is None:
            try:
                vectors[low:high] = self._answer(texts[low:high])
            except (EmbedderError, StoppedError):
                raise
            except Exception as refused:
                error = f"{type(refused).__name__}: {refused}"
            else:
                with self._lock:
                    self._failed = 0
                return True
        if high - low == 1:
            errors[low] = error[:500]
            self._despair(error)
            return False
        middle = (low + high) // 2
        left = self._resolve(texts, low, middle, vectors, errors, None)
        # If the left half is well the bad text is in the right one, which need not be called as a whole to know.
        inferred = error if left and high - middle > 1 else None
        return self._resolve(texts, middle, high, vectors, errors, inferred) and left

    def _despair(self, error: str) -> None:
        with self._lock:
            self._failed += 1
            doubtful = self._failed % HOPELESS == 0
        if doubtful:
            self.try_out(error)

    def _answer(self, texts: Sequence[str]) -> Array:
        """The vectors of texts, asked for again while the embedder is busy."""

        def ask() -> Array:
            with self._lock:
                self.count += 1
            return self._checked(self._embedder.embed(texts), len(texts))

        pauses = [partial(self._pause, tries) for tries in range(1, self._max_attempts)]
        try:
            return retry(ask, on=_BUSY, pauses=pauses, wait=self._wait, what=f"the embedder {self._embedder.name}")
        except _BUSY as busy:
            raise _as_busy(busy) from busy

    def _pause(self, tries: int, busy: BaseException) -> float:
        """Seconds until the next try: those that the embedder asks for, or more after each."""
        self._delayed(str(busy), tries)
        asked = getattr(busy, "retry_after", None)
        seconds: float = min(BACKOFF * 2 ** min(tries - 1, 10), LONGEST_BACKOFF) if asked is None else asked
        return min(seconds, LONGEST_ASKED)

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError

    def _checked(self, answer: Any, rows: int) -> Array:
        try:
            vectors = np.asarray(answer, np.float32)
        except (TypeError, ValueError) as error:
            raise EmbedderError(f"the embedder {self._embedder.name} gave no array of numbers: {error}") from error
        if vectors.shape != (rows, self._dim):
            raise EmbedderError(
                f"the embedder {self._embedder.name} gave an array of shape {vectors.shape} for {rows} texts: "
                f"it says that its dimension is {self._dim}"
            )
        return vectors


def _scaled(vectors: Array, errors: list[str | None]) -> Array:
    """Length 1, so that the inner product is the cosine; what is no vector becomes an error."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    for row in np.flatnonzero(~np.isfinite(lengths)):
        errors[row] = errors[row] or "the vector holds NaN or infinity"
    usable = np.isfinite(lengths) & (lengths > 0)
    vectors[~usable] = 0
    vectors[usable] /= lengths[usable, None]
    return vectors


def _as_busy(error: BaseException) -> EmbedderBusyError:
    if isinstance(error, EmbedderBusyError):
        return error
    return EmbedderBusyError(f"{type(error).__name__}: {error}")
