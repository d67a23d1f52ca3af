"""Embedding and search: embedders, the workers that keep spaces up to date, and what searches them."""

from entityframes.embedding.embedder import Embedder, embedder_of_model, load_embedder
from entityframes.embedding.hashing import HashingEmbedder
from entityframes.embedding.openai import OpenAIEmbedder
from entityframes.embedding.sentences import SentenceTransformerEmbedder
from entityframes.embedding.wordllama import WordLlamaEmbedder

__all__ = [
    "Embedder",
    "HashingEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformerEmbedder",
    "WordLlamaEmbedder",
    "embedder_of_model",
    "load_embedder",
]
