"""Errors say what happened and what to do next, separately and in one message."""

from __future__ import annotations

import copy
import pickle

import polars as pl
import pytest

import entityframes as ef
from entityframes.errors import DatabaseError, EmbedderBusyError, EntityFramesError


def test_the_message_ends_with_the_advice(store: ef.EntityStore) -> None:
    """If there is any."""
    with pytest.raises(ef.SchemaError) as caught:
        store.upsert(pl.DataFrame({"entity_type": ["t"], "id": [1]}))
    error = caught.value
    assert error.happened == "'id' is Int64; nothing was written"
    assert error.advice == "cast to pl.String, or create the frame with entityframes.entities()"
    assert str(error) == f"{error.happened}: {error.advice}"
    with pytest.raises(ef.SpaceError) as caught_too:
        store.search("text")
    assert caught_too.value.advice is not None
    assert caught_too.value.happened == "nothing is embedded yet"
    assert (str(EntityFramesError("it is so")), EntityFramesError("it is so").advice) == ("it is so", None)


@pytest.mark.parametrize(
    "error",
    [
        EntityFramesError("it is so", advice="wait"),
        DatabaseError("it is so", "40001", "serialization_failure", advice="wait"),
        EmbedderBusyError("it is so", 3.0),
    ],
)
def test_errors_are_copied_as_they_are(error: EntityFramesError) -> None:
    """Also from another process."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
