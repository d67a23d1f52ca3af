"""Embedding and search: embedders, the workers that keep spaces up to date, and the search itself."""

from entityframes.embedding.embedders.base import Embedder, embedder_of_model, load_embedder
from entityframes.embedding.embedders.hashing import HashingEmbedder
from entityframes.embedding.embedders.openai import OpenAIEmbedder
from entityframes.embedding.embedders.sentences import SentenceTransformerEmbedder
from entityframes.embedding.embedders.wordllama import WordLlamaEmbedder

__all__ = [
    "Embedder",
    "HashingEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformerEmbedder",
    "WordLlamaEmbedder",
    "embedder_of_model",
    "load_embedder",
]
