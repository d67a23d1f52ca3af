"""Bad rows are in `failed` with a reason; the others are committed."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import entityframes as ef

MIB = 1 << 20


def outcomes_of(store: ef.EntityStore, rows: pl.DataFrame, **options) -> list[tuple[str, str | None]]:
    """(status, error) of each row; exactly the rows that did not fail must be stored."""
    result = store.upsert(rows, **options)
    outcomes = result.outcomes
    assert outcomes.height == rows.height
    failed = outcomes["status"] == "failed"
    assert (outcomes["error_kind"].is_not_null() == failed).all()
    assert (outcomes["error"].is_not_null() == failed).all()
    assert (store.exists(outcomes)["exists"] == ~failed).all()
    return outcomes.select(pl.col("status").cast(pl.String), "error").rows()


GOOD = ("note", "good", "text", '{"a": 1}')
RANDOM = "".join(map(chr, np.random.default_rng(1).integers(33, 127, 4096)))

BAD_ROWS = [
    pytest.param(("no\0te", "a", "x", "{}"), "entity_type contains a NUL", id="NUL in entity_type"),
    pytest.param(("note", "a\0", "x", "{}"), "id contains a NUL", id="NUL in id"),
    pytest.param(("note", "a", "\0", "{}"), "content contains a NUL", id="NUL in content"),
    pytest.param(("note", "a", "x", '{"k": "\\u0000"}'), "metadata contains a NUL", id="escaped NUL in metadata"),
    pytest.param(("note", "a", "x", '{"\\u0000": 1}'), "metadata contains a NUL", id="escaped NUL in a key"),
    pytest.param(("note", "a", "x", '{"k": "\0"}'), "metadata is not valid JSON", id="NUL in metadata"),
    pytest.param(("note", "a", "x", '{"k": "\\ud800"}'), "surrogate", id="surrogate escape"),
    pytest.param(("note", "a", "x", '{"k": NaN}'), "NaN", id="NaN"),
    pytest.param(("note", "a", "x", '{"k": [1, -Infinity]}'), "Infinity", id="Infinity"),
    pytest.param(("note", "a", "x", '{"k": 1e999}'), "range of a double", id="beyond a double"),
    pytest.param(("note", "a", "x", '{"k": 1'), "not valid JSON", id="broken JSON"),
    pytest.param(("note", "a", "x", "[1]"), "not a JSON object but an array", id="JSON array"),
    pytest.param(("note", "a", "x", "[" * 100_000), "nested too deeply", id="deep JSON"),
    pytest.param((None, "a", "x", "{}"), "entity_type is null", id="null type"),
    pytest.param(("", "a", "x", "{}"), "entity_type is empty", id="empty type"),
    pytest.param(("note", None, "x", "{}"), "id is null", id="null id"),
    pytest.param(("note", "", "x", "{}"), "id is empty", id="empty id"),
    pytest.param(("note", "a", None, "{}"), "content is null", id="null content"),
    pytest.param(("n" * 256, "a", "x", "{}"), "256 bytes long, over the limit of 255", id="long type"),
    pytest.param(("note", "i" * 1025, "x", "{}"), "1025 bytes long, over the limit of 1024", id="long id"),
    pytest.param(("note", "é" * 513, "x", "{}"), "1026 bytes long", id="long id in bytes"),
    pytest.param(("note", RANDOM[:1025], "x", "{}"), "1025 bytes long", id="long id, incompressible"),
    pytest.param(("note", RANDOM, "x", "{}"), "4096 bytes long", id="id beyond an index entry"),
    pytest.param(("note", "a", "x" * (64 * MIB + 1), "{}"), "over the limit of 64 MiB", id="large content"),
    pytest.param(("note", "a", "x", '{"k": "' + "x" * (64 * MIB) + '"}'), "over 64 MiB", id="large metadata"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_fails_alone_with_a_reason(store: ef.EntityStore, row: tuple, reason: str) -> None:
    """The other rows of the frame are stored."""
    schema = dict.fromkeys(["entity_type", "id", "content", "metadata"], pl.String)
    rows = pl.DataFrame([GOOD, row, ("note", "after", "", None)], schema=schema, orient="row")
    first, bad, last = outcomes_of(store, rows)
    assert first == last == ("created", None)
    assert bad[0] == "failed"
    assert reason in bad[1]


def test_every_kind_of_bad_row_in_one_frame(store: ef.EntityStore) -> None:
    """All good rows are stored, each bad row is listed with its own reason, and corrected rows are accepted."""
    # The two large ones are tested with good rows above.
    bad = [case.values for case in BAD_ROWS if "large" not in case.id]
    good = [("note", f"good {n}", "text", None) for n in range(len(bad))]
    mixed = [row for pair in zip(good, (row for row, _ in bad), strict=True) for row in pair]
    schema = dict.fromkeys(["entity_type", "id", "content", "metadata"], pl.String)
    rows = pl.DataFrame(mixed, schema=schema, orient="row")
    found = outcomes_of(store, rows)
    assert found[::2] == [("created", None)] * len(good)
    for (status, error), (_, reason) in zip(found[1::2], bad, strict=True):
        assert status == "failed"
        assert reason in error
    corrected = store.last_result.failed.select(
        entity_type=pl.lit("note"), id=pl.format("corrected {}", "row"), content=pl.lit("x")
    )
    assert store.upsert(corrected).counts["created"] == len(bad)


def test_bad_rows_with_typed_metadata(store: ef.EntityStore) -> None:
    """Typed columns can contain a NUL too, in a string or nested; NaN and infinity are kept."""
    metadata = [
        {"s": "fine", "x": float("nan"), "l": [{"t": "fine"}]},
        {"s": "a\0b", "x": 1.0, "l": []},
        {"s": "\\u0000", "x": float("inf"), "l": None},
        {"s": None, "x": None, "l": [{"t": "fine"}, {"t": "\0"}]},
    ]
    rows = pl.DataFrame({"entity_type": ["t"] * 4, "id": list("abcd"), "content": ["x"] * 4, "metadata": metadata})
    (fine, nul, text, deep) = outcomes_of(store, rows)
    assert fine == text == ("created", None)
    assert nul == deep == ("failed", "metadata contains a NUL character (U+0000)")
    assert store.read("t")["s"].to_list() == ["fine", "\\u0000"]
    assert repr(store.read("t")["x"].to_list()) == "[nan, inf]"


def test_ids_at_the_limit_are_stored(store: ef.EntityStore) -> None:
    """1,024 bytes fit into an index entry, compressible or not."""
    ids = ["i" * 1024, RANDOM[:1024], "€" * 341]
    rows = pl.DataFrame({"entity_type": ["t" * 255] * 3, "id": ids, "content": ["x"] * 3})
    assert [status for status, _ in outcomes_of(store, rows)] == ["created"] * 3


def test_an_escaped_backslash_before_u0000_is_not_a_nul(store: ef.EntityStore) -> None:
    """An escaped backslash before u0000 is a literal backslash."""
    rows = pl.DataFrame({"entity_type": ["t"], "id": ["a"], "content": ["x"], "metadata": ['{"k": "\\\\u0000"}']})
    assert outcomes_of(store, rows) == [("created", None)]
    assert store.get_entity("t", "a")["metadata"] == {"k": "\\u0000"}


def test_invalid_utf8_in_an_arrow_buffer(store: ef.EntityStore) -> None:
    """Arrow does not check its strings; the row is found before anything reads it."""
    text = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 4, 5], dtype=np.int32)), pa.py_buffer(b"a\xff\xfeyc")
    )
    fine = pa.array(["x", "y", "z"])
    kinds = pa.array(["t"] * 3)
    for columns in ({"id": text, "content": fine}, {"id": fine, "content": text}):
        result = store.upsert(pa.table({"entity_type": kinds, **columns}))
        assert result.outcomes["status"].to_list() == ["created", "failed", "created"]
        assert "is not valid UTF-8" in result.outcomes["error"][1]
    result = store.upsert(
        pa.table(
            {"entity_type": kinds, "id": fine, "content": fine, "metadata": pa.StructArray.from_arrays([text], ["s"])}
        )
    )
    assert result.outcomes["status"].to_list() == ["updated", "failed", "updated"]


def test_lone_surrogates_from_python(store: ef.EntityStore) -> None:
    """pandas can hold strings that cannot be encoded; the single-entity call validates in the same way."""
    rows = pd.DataFrame({"entity_type": "t", "id": ["a", "b\ud800"], "content": "x"}, dtype=object)
    result = store.upsert(rows)
    assert result.outcomes["status"].to_list() == ["created", "failed"]
    assert "UTF-8" in result.failed["error"][0]
    with pytest.raises(ef.ValidationError, match="UTF-8"):
        store.upsert_entity("t", "b\ud800", "x")


def test_timestamps_at_the_ends_of_the_range(store: ef.EntityStore) -> None:
    """They are kept."""
    ends = pl.Series("at", [-(2**63) + 1, 0, 2**63 - 1], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"k": ["a", "b", "c"]}).with_columns(ends)
    assert store.upsert(ef.entities(rows, "t", id="k")).ok
    assert store.read("t")["at"].equals(ends)


def test_json_text_must_fit_the_declared_dtypes(store: ef.EntityStore) -> None:
    """A type with typed columns does not accept JSON text that would not be restored with the same dtypes."""
    typed = pl.DataFrame({"k": ["a"], "n": [1], "day": [dt.date(2026, 1, 2)]})
    store.upsert(ef.entities(typed, "t", id="k"))
    rows = pl.DataFrame(
        {
            "entity_type": ["t"] * 3,
            "id": ["b", "c", "d"],
            "content": ["x"] * 3,
            "metadata": ['{"n": 2, "day": "2026-02-03"}', '{"n": "two"}', '{"day": "yesterday", "new": true}'],
        }
    )
    (good, _), (two, why), (yesterday, why_too) = outcomes_of(store, rows)
    assert (good, two, yesterday) == ("created", "failed", "failed")
    assert "'n'" in why or "n: " in why
    assert "yesterday" in why_too
    assert store.read("t")["day"].to_list() == [dt.date(2026, 1, 2), dt.date(2026, 2, 3)]


def test_a_typed_column_declares_a_field_that_json_text_had_inferred(store: ef.EntityStore) -> None:
    """From then on JSON text that does not fit fails its row, instead of widening the dtype."""

    def text(id: str, n: str) -> pl.DataFrame:
        return pl.DataFrame({"entity_type": ["t"], "id": [id], "content": [""], "metadata": [f'{{"n": {n}}}']})

    store.upsert(text("a", "1"))
    store.upsert(ef.entities(pl.DataFrame({"k": ["b"], "n": [2]}), "t", id="k"))
    assert outcomes_of(store, text("c", '"x"'))[0][0] == "failed"
    assert store.read("t")["n"].to_list() == [1, 2]


def test_numbers_beyond_double_precision_keep_their_digits(store: ef.EntityStore) -> None:
    """A number in JSON text is not rounded to a double."""
    digits = "12345678901234567890.12345"
    store.upsert(pl.DataFrame({"entity_type": ["t"], "id": ["a"], "content": [""], "metadata": [f'{{"n": {digits}}}']}))
    assert store.get(ef.ids("t", ["a"]))["metadata"].to_list() == [f'{{"n":{digits}}}']


@pytest.mark.parametrize("on_error", ["rollback", "raise"])
def test_a_bad_row_can_fail_its_batch(store: ef.EntityStore, on_error: str) -> None:
    """rollback fails the whole batch and continues; raise ends the run. The other batches are kept."""
    rows = pl.DataFrame(
        {"entity_type": "t", "id": [f"{n}" for n in range(6)], "content": ["x", "x", "x", "bad\0", "x", "x"]}
    )
    if on_error == "raise":
        with pytest.raises(ef.ValidationError, match="NUL"):
            store.upsert(rows, batch_size=2, on_error=on_error)
        result = store.last_result
    else:
        result = store.upsert(rows, batch_size=2, on_error=on_error)
        assert result.outcomes["status"].to_list() == ["created"] * 2 + ["failed"] * 2 + ["created"] * 2
    assert "rolled back" in result.outcomes["error"][2]
    assert "row 3" in result.outcomes["error"][2]
    assert (store.exists(rows)["exists"] == (result.outcomes["status"] == "created")).all()
    assert sum(result.counts.values()) == 6
