"""HashingEmbedder: words, word pairs and letter trigrams, hashed into a vector. No model, no download."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: The maximum length of a text in bytes; the rest is ignored.
TEXT_BYTES = 32_768
#: How many bytes are processed at once, so that the arrays fit into the CPU cache.
PIECE_BYTES = 1 << 17

#: The bytes that words consist of: letters, digits and everything that is not ASCII.
_IN_WORD = np.array([chr(byte).isalnum() or byte >= 128 for byte in range(256)])
#: An odd base has an inverse modulo 2**64, which makes the hash of a word independent of its position.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)

#: The weight of a word by its length: short words are mostly function words.
_WORD_WEIGHT = np.clip(np.arange(64) - 1, 0.25, 7) / 4
_PAIR_WEIGHT = 0.5
_LETTERS_WEIGHT = 0.2


class HashingEmbedder:
    """Hashes words, pairs of words and letter trigrams into vectors. It needs no model and no download.

    Equal texts have equal vectors, and texts with common words have similar ones; it knows nothing about meaning. It is
    meant for tests, for finding near duplicates, and for trying things out. The vectors are the same in every process
    and on every machine. Case is ignored, and only the first 32,768 bytes of a text are used.

    Args:
        dim: the dimension of the vectors, from 8 to 16,384.
        max_batch: the maximum number of texts per call.

    Attributes:
        name: ``hashing-<dim>``.

    Raises:
        ValueError: `dim` is out of range.

    Examples:
        >>> embedder = ef.HashingEmbedder(64)
        >>> embedder.name, embedder.dim
        ('hashing-64', 64)
    """

    def __init__(self, dim: int = 256, *, max_batch: int = 1024) -> None:
        if not 8 <= int(dim) <= 16_384:
            raise ValueError(f"dim must be between 8 and 16,384, got {dim!r}")
        self.dim = int(dim)
        self.max_batch = int(max_batch)
        self.name = f"hashing-{self.dim}"

    @classmethod
    def from_model(cls, model: str) -> HashingEmbedder | None:
        """The embedder of a model name such as ``hashing-256``; None for other names.

        Examples:
            >>> ef.HashingEmbedder.from_model("hashing-128").dim
            128
        """
        match = re.fullmatch(r"hashing-(\d{1,5})", model)
        return cls(int(match[1])) if match else None

    def embed(self, texts: Sequence[str], /) -> Array:
        """Embed texts.

        Returns:
            float32 array of shape (texts, dim), in the order of the texts; each vector has length 1.

        Examples:
            >>> vectors = ef.HashingEmbedder(64).embed(["one text", "One Text"])
            >>> vectors.shape, bool((vectors[0] == vectors[1]).all())
            ((2, 64), True)
        """
        data = [text.lower().encode("utf-8", "replace")[:TEXT_BYTES] for text in texts]
        pieces = [self._embed(piece) for piece in _pieces(data)]
        return np.concatenate(pieces) if pieces else np.zeros((0, self.dim), np.float32)

    def _embed(self, data: Sequence[bytes]) -> Array:
        # A space before, between and after the texts, so that no word or trigram spans two of them.
        letters = np.frombuffer(b" " + b" ".join(data) + b" ", np.uint8)
        lengths = np.fromiter(map(len, data), np.int64, len(data))
        row = np.repeat(np.arange(len(data), dtype=np.int32), lengths + 1)
        row = np.append(np.int32(0), row)
        inside = _IN_WORD[letters]
        sums = np.zeros(len(data) * self.dim)
        self._add_words(sums, letters, inside, row)
        self._add_letters(sums, letters, inside, row)
        vectors = sums.reshape(len(data), self.dim)
        # A text without words gets a fixed vector, because a zero vector has no direction.
        vectors[~vectors.any(axis=1), 0] = 1.0
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        return vectors.astype(np.float32)

    def _add_words(self, sums: Array, letters: Array, inside: Array, row: Array) -> None:
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        start, end = edges[::2], edges[1::2]
        powers, inverses = _powers(_BASE, len(letters)), _powers(_INVERSE, len(letters))
        # The sum of byte * base**position over a word, normalized to position 0.
        before = np.concatenate([np.zeros(1, np.uint64), np.cumsum((letters.astype(np.uint64) + 1) * powers)])
        words = _mixed((before[end] - before[start]) * inverses[start])
        weight = _WORD_WEIGHT[np.minimum(end - start, 63)]
        self._add(sums, words, row[start], weight)
        together = row[start[1:]] == row[start[:-1]]
        pairs = _mixed(words[:-1][together] * np.uint64(31) + words[1:][together])
        self._add(sums, pairs, row[start[1:]][together], np.full(len(pairs), _PAIR_WEIGHT))

    def _add_letters(self, sums: Array, letters: Array, inside: Array, row: Array) -> None:
        """Add the byte trigrams of words, including their boundaries: inflected forms of a word share most of them."""
        at = np.flatnonzero(inside[1:-1]).astype(np.int32)
        wide = letters.astype(np.uint32)
        code = (wide[:-2] | wide[1:-1] << np.uint32(8) | wide[2:] << np.uint32(16))[at]
        code = code * np.uint32(0x9E3779B1)
        code ^= code >> np.uint32(15)
        code *= np.uint32(0x85EBCA77)
        bucket = ((code >> np.uint32(1)).astype(np.uint64) * np.uint64(self.dim)) >> np.uint64(31)
        weight = np.where(code & np.uint32(1), _LETTERS_WEIGHT, -_LETTERS_WEIGHT)
        place = row[at + 1] * np.int64(self.dim) + bucket.view(np.int64)
        sums += np.bincount(place, weight, len(sums))

    def _add(self, sums: Array, hashes: Array, rows: Array, weight: Array) -> None:
        bucket = ((hashes >> np.uint64(33)) * np.uint64(self.dim)) >> np.uint64(31)
        signed = np.where(hashes & np.uint64(1), weight, -weight)
        sums += np.bincount(rows * np.int64(self.dim) + bucket.view(np.int64), signed, len(sums))


def _pieces(data: list[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for text in data:
        piece.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


_cached_powers: dict[int, Array] = {}


def _powers(base: int, count: int) -> Array:
    """base**0, base**1, ... modulo 2**64."""
    powers: Array | None = _cached_powers.get(base)
    if powers is None or len(powers) < count:
        powers = np.full(count + count // 4 + 1, base, np.uint64)
        powers[0] = 1
        powers = _cached_powers[base] = np.cumprod(powers)
    return powers[:count]


def _mixed(hashes: Array) -> Array:
    """Mix the bits of hashes (the finalizer of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes
