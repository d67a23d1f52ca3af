"""Values at the edge of what is kept: the last digit, the last byte, the last backslash, and the first value of a field."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from decimal import Decimal

import polars as pl

import entityframes as ef


def documents(texts: list[str], entity_type: str = "t") -> pl.DataFrame:
    """Entities with these metadata."""
    return pl.DataFrame(
        {"entity_type": entity_type, "id": [f"{n:04}" for n in range(len(texts))], "content": "x", "metadata": texts}
    )


def metadata(store: ef.EntityStore, entity_type: str = "t") -> list[str]:
    return store.scan().filter(pl.col("entity_type") == entity_type).collect().sort("id")["metadata"].to_list()


def numbers() -> Iterator[str]:
    """Numbers of 14 to 21 characters, with the point in each place, and some with an exponent."""
    chance = random.Random(15)
    for length in range(14, 22):
        for point in range(1, length - 1):
            for _ in range(4):
                digits = "".join(chance.choices("0123456789", k=length - 1))
                digits = chance.choice("123456789") + digits[1:-1] + chance.choice("123456789")
                sign = chance.choice(["", "-"])
                yield f"{sign}{digits[:point]}.{digits[point:]}"
                yield f"{sign}{digits[:1]}.{digits[1:-4]}e{chance.choice(['', '-', '+'])}{point}"
                yield f"0.{digits}"
    yield from ("8.000000000000001", "900719925474099.3", "9007199254740993.0", "0.30000000000000004", "1e-400",
                "1.23e-322", "4.9e-324", "2.2250738585072011e-308", "1e22", "1.0", "0.0", "-0.0", "1e308")  # fmt: skip


def test_no_digit_of_a_number_is_lost(store: ef.EntityStore) -> None:
    """Whatever its length: what is stored is the number that was given, and again the same when it comes back."""
    texts = list(numbers())
    given = documents([json.dumps({"n": None})[:-5] + f"{text}}}" for text in texts])
    assert store.upsert(given, progress=False).ok
    kept = metadata(store)
    wrong = [
        (text, found)
        for text, found in zip(texts, kept, strict=True)
        if json.loads(found, parse_float=Decimal, parse_int=Decimal) != {"n": Decimal(text)}
    ]
    assert not wrong
    assert store.upsert(documents(kept), progress=False).counts["unchanged"] == len(texts)
    assert store.upsert(given, progress=False).counts["unchanged"] == len(texts)
