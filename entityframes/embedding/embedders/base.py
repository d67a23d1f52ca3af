"""What an embedder is, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from entityframes.errors import EmbedderError

#: Packages offer embedders under this entry-point group: a class that is called with the options.
GROUP = "entityframes.embedders"


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. May be used from several threads.

    A class may have ``from_model(name)``, which makes the embedder of a model's name, or None if it is not its own:
    that is how a search finds the embedder of a space.
    """

    @property
    def name(self) -> str:
        """The model, so that vectors of two models are never mixed."""

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""

    @property
    def max_batch(self) -> int:
        """How many texts a call may have."""

    def embed(self, texts: Sequence[str], /) -> Any:
        """The vectors of some texts.

        Returns:
            An array (texts, dim) that numpy can make float32, in the order of the texts. Its vectors are scaled to
            length 1 when they are stored.

        Raises:
            EmbedderBusyError: try again later; TimeoutError and ConnectionError mean the same.
            EmbedderError: no text can be embedded.
            Exception: any other one means that a text in the batch cannot be embedded.
        """


def load_embedder(name: str, **options: Any) -> Embedder:
    """The embedder that a package offers under a name: hashing, wordllama, openai, sentence-transformers, ...

    Args:
        options: what its class is called with.

    Raises:
        EmbedderError: there is none of that name, or it cannot be made.
    """
    offered = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in offered:
        raise EmbedderError(f"no embedder is called {name!r}: there are {', '.join(sorted(offered)) or 'none'}")
    try:
        embedder = offered[name].load()(**options)
    except (ImportError, TypeError, ValueError) as error:
        raise EmbedderError(f"the embedder {name} cannot be made: {error}") from error
    if not isinstance(embedder, Embedder):
        raise EmbedderError(f"the embedder {name} lacks one of name, dim, max_batch and embed")
    return embedder


def load(embedder: Embedder) -> None:
    """Have an embedder of this package load its model; others do so when they are made, or with their first call.

    Raises:
        EmbedderError: it is not installed.
    """
    loaded = getattr(embedder, "_loaded", None)
    if callable(loaded):
        loaded()


def embedder_of_model(model: str) -> Embedder | None:
    """The embedder of a space's model, if a package knows it."""
    for entry in metadata.entry_points(group=GROUP):
        try:
            kind = entry.load()
        except ImportError:
            continue
        embedder = kind.from_model(model) if hasattr(kind, "from_model") else None
        if isinstance(embedder, Embedder):
            return embedder
    return None
