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
    """What turns texts into vectors; any object with these members is one. It may be used from several threads.

    A class may also have a class method ``from_model(name)``, which returns an embedder for a model name, or None if
    the name is not one of its models. This is how a search finds the embedder of a space.

    Examples:
        >>> class LengthEmbedder:
        ...     name, dim, max_batch = "length", 2, 100
        ...     def embed(self, texts):
        ...         return [[len(text), 1.0] for text in texts]
        >>> store.embed(LengthEmbedder()).counts["embedded"]
        3
    """

    @property
    def name(self) -> str:
        """The name of the model; vectors of different models are never mixed."""

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""

    @property
    def max_batch(self) -> int:
        """The maximum number of texts per call of `embed`."""

    def embed(self, texts: Sequence[str], /) -> Any:
        """Embed texts.

        Returns:
            An array of shape (texts, dim) that numpy can convert to float32, in the order of the texts. Vectors are
            scaled to length 1 when they are stored.

        Raises:
            EmbedderBusyError: try again later; TimeoutError and ConnectionError mean the same.
            EmbedderError: no text can be embedded.
            Exception: any other exception means that a text in the batch cannot be embedded.
        """


def load_embedder(name: str, **options: Any) -> Embedder:
    """Make an embedder by its name: hashing, wordllama, openai, sentence-transformers, or that of another package.

    Args:
        name: the name of an entry point in the group ``entityframes.embedders``.
        options: keyword arguments for its class.

    Raises:
        EmbedderError: there is no embedder of that name, or it cannot be made with these options.

    Examples:
        >>> from entityframes.embedding import load_embedder
        >>> load_embedder("hashing", dim=64).name
        'hashing-64'
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


def check_embedder(embedder: Any) -> None:
    """Check that an argument is an embedder.

    Raises:
        TypeError: it is not.
    """
    if isinstance(embedder, type):
        raise TypeError(f"the embedder is the class {embedder.__name__}: call it, as in {embedder.__name__}(...)")
    # Its other attributes may be looked up on a server.
    if not callable(getattr(embedder, "embed", None)):
        name = type(embedder).__name__
        raise TypeError(f"the embedder is {name}: pass an object such as entityframes.WordLlamaEmbedder()")


def load(embedder: Embedder) -> None:
    """Load the model of an embedder of this package; other embedders load theirs on creation or on the first call.

    Raises:
        EmbedderError: the package of the model is not installed.
    """
    loaded = getattr(embedder, "_loaded", None)
    if callable(loaded):
        loaded()


def embedder_of_model(model: str) -> Embedder | None:
    """Make the embedder of a model by its name, as in the column ``model`` of `EntityStore.spaces`.

    Args:
        model: the name of the model.

    Returns:
        The embedder, or None if no installed package knows the model.

    Examples:
        >>> from entityframes.embedding import embedder_of_model
        >>> embedder_of_model("hashing-64").dim
        64
    """
    for entry in metadata.entry_points(group=GROUP):
        try:
            kind = entry.load()
        except ImportError:
            continue
        embedder = kind.from_model(model) if hasattr(kind, "from_model") else None
        if isinstance(embedder, Embedder):
            return embedder
    return None
