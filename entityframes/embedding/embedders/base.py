"""The interface of embedders, and the lookup of an embedder by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from entityframes.errors import EmbedderError

#: The entry-point group under which packages register embedders: classes that are called with the options.
GROUP = "entityframes.embedders"


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. Must be thread-safe.

    A class may define ``from_model(name)``, which returns the embedder for the name of a model, or None if the model is
    not supported by this class. A search uses it to find the embedder of a space.
    """

    @property
    def name(self) -> str:
        """The name of the model, which keeps vectors of different models apart."""

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""

    @property
    def max_batch(self) -> int:
        """The maximum number of texts in a call."""

    def embed(self, texts: Sequence[str], /) -> Any:
        """Embed texts.

        Returns:
            An array (texts, dim) that numpy can convert to float32, in the order of the texts. Its vectors are scaled
            to length 1 when they are stored.

        Raises:
            EmbedderBusyError: retry later; TimeoutError and ConnectionError mean the same.
            EmbedderError: the embedder cannot embed any text.
            Exception: any other exception means that a text of the batch cannot be embedded.
        """


def load_embedder(name: str, **options: Any) -> Embedder:
    """Create the embedder that a package has registered under a name: hashing, wordllama, openai, ...

    Args:
        name: the name of the entry point.
        options: the arguments of the embedder's class.

    Raises:
        EmbedderError: no embedder has this name, or it cannot be created.
    """
    registered = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in registered:
        names = ", ".join(sorted(registered)) or "none"
        raise EmbedderError(f"no embedder named {name!r}; available embedders: {names}")
    try:
        embedder = registered[name].load()(**options)
    except (ImportError, TypeError, ValueError) as error:
        raise EmbedderError(f"cannot create the embedder {name}: {error}") from error
    if not isinstance(embedder, Embedder):
        raise EmbedderError(f"the embedder {name} must have the attributes name, dim, max_batch and embed")
    return embedder


def load(embedder: Embedder) -> None:
    """Load the model of an embedder of this package; other embedders load theirs on creation or on the first call.

    Raises:
        EmbedderError: the package of the model is not installed.
    """
    loaded = getattr(embedder, "_loaded", None)
    if callable(loaded):
        loaded()


def embedder_of_model(model: str) -> Embedder | None:
    """The embedder for the model of a space, or None if no package supports the model."""
    for entry in metadata.entry_points(group=GROUP):
        try:
            kind = entry.load()
        except ImportError:
            continue
        embedder = kind.from_model(model) if hasattr(kind, "from_model") else None
        if isinstance(embedder, Embedder):
            return embedder
    return None
