"""Values at the limits: the last digit, the last byte, the last backslash, and the first value of a field."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from decimal import Decimal

import polars as pl
import pytest

import entityframes as ef


def documents(texts: list[str], entity_type: str = "t") -> pl.DataFrame:
    """Entities with these metadata."""
    return pl.DataFrame(
        {"entity_type": entity_type, "id": [f"{n:04}" for n in range(len(texts))], "content": "x", "metadata": texts}
    )


def metadata(store: ef.EntityStore, entity_type: str = "t") -> list[str]:
    return store.scan().filter(pl.col("entity_type") == entity_type).collect().sort("id")["metadata"].to_list()


def numbers() -> Iterator[str]:
    """Numbers of 14 to 21 characters, with the decimal point in each position, and some with an exponent."""
    rng = random.Random(15)
    for length in range(14, 22):
        for point in range(1, length - 1):
            for _ in range(4):
                digits = "".join(rng.choices("0123456789", k=length - 1))
                digits = rng.choice("123456789") + digits[1:-1] + rng.choice("123456789")
                sign = rng.choice(["", "-"])
                yield f"{sign}{digits[:point]}.{digits[point:]}"
                yield f"{sign}{digits[:1]}.{digits[1:-4]}e{rng.choice(['', '-', '+'])}{point}"
                yield f"0.{digits}"
    yield from ("8.000000000000001", "900719925474099.3", "9007199254740993.0", "0.30000000000000004", "1e-400",
                "1.23e-322", "4.9e-324", "2.2250738585072011e-308", "1e22", "1.0", "0.0", "-0.0", "1e308")  # fmt: skip


def test_no_digit_of_a_number_is_lost(store: ef.EntityStore) -> None:
    """Whatever its length, the given number is stored exactly, and writing back what was read changes nothing."""
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


@pytest.mark.parametrize("sign", ["\ue000\ue001", r"\ue000\ue001", r"\uE000\uE001"])
def test_a_text_is_never_taken_for_a_number(store: ef.EntityStore, sign: str) -> None:
    """Signs that this package uses itself, however they are spelled, beside a number that is kept digit by digit."""
    texts = [f'{{"a":"{sign}number:5","b":0.12345678901234567890123}}', f'{{"a":"{sign}5"}}']
    result = store.upsert(documents(texts), progress=False)
    assert result.failed["row"].to_list() == [0]
    assert result.failed["error"].str.contains("contains both U\\+E000").fill_null(False).all()
    assert [json.loads(kept) for kept in metadata(store)] == [{"a": "\ue000\ue0015"}]


WHOLE = [
    (["1", "9223372036854775807"], pl.Int64),
    (["-9223372036854775808", "5"], pl.Int64),
    (["1234567890123456", "12345678901234567", "123456789012345678"], pl.Int64),
    (["9223372036854775808"], pl.String),
    (["1", "9223372036854775808"], pl.String),
    (["-9223372036854775809", "1"], pl.String),
    (["18446744073709551616", "12345678901234567890"], pl.String),
]


@pytest.mark.parametrize(("values", "dtype"), WHOLE, ids=lambda value: "" if isinstance(value, list) else str(value))
@pytest.mark.parametrize("at_once", [False, True])
def test_whole_numbers_around_64_bits(
    store: ef.EntityStore, values: list[str], dtype: pl.DataType, at_once: bool
) -> None:
    """Up to 2**63 - 1 they are read as integers; a field with a larger one is read as JSON text, with all digits."""
    given = documents([f'{{"n":{value}}}' for value in values])
    for piece in [given] if at_once else given.iter_slices(1):
        assert store.upsert(piece, progress=False).ok
    assert metadata(store) == given["metadata"].to_list()
    found = store.read("t")["n"]
    assert found.dtype == dtype
    assert found.cast(pl.String).to_list() == values
    assert store.verify().is_empty()


def test_a_long_number_next_to_other_fields(store: ef.EntityStore) -> None:
    """Only the field with the number is read as JSON text; a string with as many digits remains a string."""
    store.upsert(
        documents(['{"n":12345678901234567890,"s":"12345678901234567890","i":1234567890123456789,"f":1.5,"b":true}']),
        progress=False,
    )
    found = store.read("t").select("n", "s", "i", "f", "b")
    assert found.dtypes == [pl.String, pl.String, pl.Int64, pl.Float64, pl.Boolean]
    assert found.row(0) == ("12345678901234567890", "12345678901234567890", 1234567890123456789, 1.5, True)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("where", ["alone", "before", "after"])
def test_backslashes_before_u0000(store: ef.EntityStore, typed: bool, where: str) -> None:
    """An even number of backslashes stands for literal backslashes; after an odd number, \u0000 is a NUL."""
    before, after = {"alone": ("", ""), "before": ("", "\\end"), "after": ('a"\\', "")}[where]
    texts = [before + "\\" * count + text + after for count in range(4) for text in ("u0000", "\0")]
    rows = documents([json.dumps({"k": text}) for text in texts])
    if typed:
        rows = rows.with_columns(metadata=pl.struct(k=pl.Series(texts)))
    result = store.upsert(rows, progress=False)
    assert result.outcomes["status"].to_list() == ["created", "failed"] * 4
    assert result.failed["error"].str.contains("metadata contains a NUL").fill_null(False).all()
    assert store.read("t")["k"].to_list() == texts[::2]


def test_text_of_exactly_the_limit_next_to_a_bad_row(store: ef.EntityStore) -> None:
    """They are not considered too long when a bad row causes each of them to be checked."""
    rows = pl.DataFrame(
        [("t" * 255, "i" * 1024, "x"), ("é" * 127, "é" * 512, "x"), ("t", "", "bad"), ("t" * 256, "i", "bad"),
         ("t", "i" * 1025, "bad"), ("t", "é" * 513, "bad"), ("t", "i", "")],
        ["entity_type", "id", "content"], orient="row",
    )  # fmt: skip
    result = store.upsert(rows, progress=False)
    assert result.outcomes["status"].to_list() == ["created"] * 2 + ["failed"] * 4 + ["created"]
    assert store.get(rows)["content"].to_list() == ["x", "x", None, None, None, None, ""]
    assert store.upsert(rows[:2], progress=False).counts["unchanged"] == 2


NULL_FIRST = [
    ("1", pl.Int64, 1), ("1.5", pl.Float64, 1.5), ('"a"', pl.String, "a"), ("true", pl.Boolean, True),
    ("[1]", pl.String, "[1]"), ('{"a":1}', pl.String, '{"a":1}'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "dtype", "value"), NULL_FIRST, ids=[case[0] for case in NULL_FIRST])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_field_that_is_null_at_first(
    store: ef.EntityStore, text: str, dtype: pl.DataType, value: object, at_once: bool
) -> None:
    """In JSON text: a column of nulls gets the dtype of the first value, and later nulls do not change it."""
    given = documents(['{"n":null}', f'{{"n":{text}}}', '{"n":null}', '{"other":1}'])
    for piece in [given] if at_once else given.iter_slices(1):
        assert store.upsert(piece, progress=False).ok
        if piece["id"].to_list() == ["0000"]:
            assert store.read("t")["n"].to_list() == [None]
    found = store.read("t")["n"]
    assert found.dtype == dtype
    assert found.to_list() == [None, value, None, None]
    assert store.scan("t").filter(pl.col("n").is_not_null()).collect()["id"].to_list() == ["0001"]
    assert store.verify().is_empty()


def test_a_column_of_nulls_and_later_json_text(store: ef.EntityStore) -> None:
    """A typed column of nulls gets the dtype of later JSON text or of a later typed column."""
    nulls = pl.DataFrame({"k": ["a"], "n": pl.Series([None], dtype=pl.Null), "m": pl.Series([None], dtype=pl.Null)})
    assert store.upsert(ef.entities(nulls, "t", id="k"), progress=False).ok
    assert store.upsert(documents(['{"n":7}']), progress=False).ok
    assert store.read("t").select("n", "m").schema == {"n": pl.Int64, "m": pl.Null}
    typed = pl.DataFrame({"k": ["b"], "m": pl.Series([2.5], dtype=pl.Float32)})
    assert store.upsert(ef.entities(typed, "t", id="k"), progress=False).ok
    assert store.read("t").select("n", "m").rows() == [(7, None), (None, None), (None, 2.5)]
    assert store.read("t").schema["m"] == pl.Float32
    result = store.upsert(documents(['{"n":"seven"}']), progress=False)
    assert result.counts["failed"] == 1
    assert store.verify().is_empty()


def test_two_writers_declare_one_field(store: ef.EntityStore, connect) -> None:
    """One declares it between the other's read and its declaration: the other is refused, and writes nothing."""
    other = connect()

    def frames() -> Iterator[pl.DataFrame]:
        yield ef.entities(pl.DataFrame({"k": ["mine"], "a": [1]}), "t", id="k")
        assert other.upsert(ef.entities(pl.DataFrame({"k": ["theirs"], "n": [1]}), "t", id="k"), progress=False).ok
        yield ef.entities(pl.DataFrame({"k": ["refused"], "n": ["text"]}), "t", id="k")

    with pytest.raises(ef.SchemaError, match="'n' of type 't' was declared as Int64"):
        store.upsert(frames(), batch_size=1, progress=False)
    for each in (store, other, connect()):
        found = each.read("t")
        assert found.schema["n"] == pl.Int64
        assert found.select("id", "a", "n").rows() == [("mine", 1, None), ("theirs", None, 1)]
    assert store.verify().is_empty()


@pytest.mark.parametrize(("mine", "theirs"), [(1, "text"), ("text", 1), (1.5, True)])
def test_a_type_that_is_redeclared_while_rows_are_in_flight(
    store: ef.EntityStore, connect, mine: object, theirs: object
) -> None:
    """No entity of the type is stored yet, so another writer may declare other dtypes; then this writer is refused."""
    other = connect()

    def frames() -> Iterator[pl.DataFrame]:
        yield ef.entities(pl.DataFrame({"k": ["mine"], "n": [mine]}), "t", id="k")
        assert other.upsert(ef.entities(pl.DataFrame({"k": ["theirs"], "n": [theirs]}), "t", id="k"), progress=False).ok
        yield ef.entities(pl.DataFrame({"k": ["mine too"], "n": [mine]}), "t", id="k")

    # One batch of both frames.
    with pytest.raises(ef.SchemaError, match="'n' of type 't' was declared as"):
        store.upsert(frames(), progress=False)
    assert store.last_result.counts["created"] == 0
    for each in (store, other, connect()):
        assert each.read("t").select("id", "n").rows() == [("theirs", theirs)]
    assert store.verify().is_empty()


def test_two_writers_widen_one_field(store: ef.EntityStore, connect) -> None:
    """Each adds a field to a struct, one between the other's read and its declaration: both are kept."""
    other = connect()
    assert store.upsert(struct("first", a=1), progress=False).ok

    def frames() -> Iterator[pl.DataFrame]:
        yield struct("mine", a=2)
        assert other.upsert(struct("theirs", a=3, b="b"), progress=False).ok
        yield struct("mine too", a=4, c=0.5)

    assert store.upsert(frames(), batch_size=1, progress=False).ok
    for each in (store, other, connect()):
        found = each.read("t")["s"]
        assert found.struct.unnest().select("a", "b", "c").rows() == [
            (1, None, None), (2, None, None), (4, None, 0.5), (3, "b", None)
        ]  # fmt: skip
    assert store.verify().is_empty()


def struct(id: str, **fields: object) -> pl.DataFrame:
    return ef.entities(pl.DataFrame({"k": [id], "s": [fields]}), "t", id="k")


def test_two_writers_infer_one_field(store: ef.EntityStore, connect) -> None:
    """From JSON text, a number and a string concurrently: the field is read with a dtype for both."""
    other = connect()

    def frames() -> Iterator[pl.DataFrame]:
        yield documents(['{"a":1}']).with_columns(id=pl.lit("1"))
        assert other.upsert(documents(['{"n":1}']).with_columns(id=pl.lit("2")), progress=False).ok
        yield documents(['{"n":2.5}']).with_columns(id=pl.lit("3"))

    assert store.upsert(frames(), batch_size=1, progress=False).ok
    for each in (store, other, connect()):
        assert each.read("t")["n"].to_list() == [None, 1.0, 2.5]
        assert each.read("t").schema["n"] == pl.Float64
    assert store.verify().is_empty()
