"""Embedding and search: embedders, the workers that fill spaces with vectors, and search."""

from entityframes.embedding.embedders.base import Embedder, embedder_of_model, load_embedder
from entityframes.embedding.embedders.hashing import HashingEmbedder
from entityframes.embedding.embedders.openai import OpenAIEmbedder
from entityframes.embedding.embedders.sentences import SentenceTransformerEmbedder
from entityframes.embedding.embedders.wordllama import WordLlamaEmbedder
from entityframes.embedding.passages import Passages

__all__ = [
    "Embedder",
    "HashingEmbedder",
    "OpenAIEmbedder",
    "Passages",
    "SentenceTransformerEmbedder",
    "WordLlamaEmbedder",
    "embedder_of_model",
    "load_embedder",
]


def __dir__() -> list[str]:
    """The public names and no modules: what completion offers."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
