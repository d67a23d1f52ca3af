"""Both engines against a model in plain Python: random operations on a store, compared row by row."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import entityframes as ef
from entityframes.frames.schema import KEY
from tests.conftest import engine_and_keys

engine = engine_and_keys

_namespaces = itertools.count()

TYPES = st.sampled_from(["note", "task"])
IDS = st.sampled_from(["a", "b", "A", "é", "e\u0301", "1", "x/y", "ｘ", "", None, "n\0", "i" * 1025])
CONTENTS = st.sampled_from(["", "one", "two", "é", "bad\0", None])
METADATA = st.sampled_from(
    [None, "{}", '{"a": 1}', '{"a":1.0}', '{"b": [1, "x"], "a": null}', '{"a": NaN}', "[]", '{"a": "\\u0000"}']
)
ROWS = st.lists(st.tuples(TYPES, IDS, CONTENTS, METADATA), max_size=12)
SCHEMA = dict.fromkeys(["entity_type", "id", "content", "metadata"], pl.String)


def valid(row: tuple) -> bool:
    """The validation rules, implemented independently."""
    _, id, content, metadata = row
    if not id or "\0" in id or len(id.encode()) > 1024 or content is None or "\0" in content:
        return False
    if metadata is None:
        return True
    return metadata not in ('{"a": NaN}', "[]", '{"a": "\\u0000"}')


class Model:
    """The expected behavior of a store, row by row."""

    def __init__(self) -> None:
        self.entities: dict[tuple[str, str], tuple[str, Any]] = {}

    def upsert(self, rows: list[tuple], policy: str, absent: str) -> list[str]:
        good = [place for place, row in enumerate(rows) if valid(row)]
        chosen: dict[tuple, int] = {}
        for place in good:
            if policy == "last" or rows[place][:2] not in chosen:
                chosen[rows[place][:2]] = place
        expected = []
        for place, (kind, id, content, metadata) in enumerate(rows):
            if place not in good:
                expected.append("failed")
            elif chosen[kind, id] != place:
                expected.append("duplicate")
            else:
                fields = json.loads(metadata or "{}")
                if absent == "keep" and (kind, id) in self.entities:
                    fields = self.entities[kind, id][1] | fields
                expected.append(self._write((kind, id), (content, fields)))
        return expected

    def _write(self, key: tuple[str, str], value: tuple[str, Any]) -> str:
        known = self.entities.get(key)
        self.entities[key] = value
        return "created" if known is None else "unchanged" if known == value else "updated"


class Life(RuleBasedStateMachine):
    """Upsert, get, exists, delete and read, on shared keys, with duplicates, failures and re-runs."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.store = ef.connect(self.url, namespace=f"life_{os.getpid()}_{next(_namespaces)}")

    def teardown(self) -> None:
        self.store.close()

    @initialize(rows=ROWS)
    def begin(self, rows: list[tuple]) -> None:
        self.upsert(rows, "last", None, False, "keep")

    @rule(
        rows=ROWS,
        policy=st.sampled_from(["last", "first"]),
        batch_size=st.sampled_from([None, 1, 3]),
        again=st.booleans(),
        absent=st.sampled_from(["keep", "clear"]),
    )
    def upsert(self, rows: list[tuple], policy: str, batch_size: int | None, again: bool, absent: str) -> None:
        frame = pl.DataFrame(rows, SCHEMA, orient="row")
        if frame.height and any(frame[name].null_count() == frame.height for name in (*KEY, "content")):
            with pytest.raises(ef.SchemaError):
                self.store.upsert(frame, progress=False)
            return
        for _ in range(2 if again else 1):
            result = self.store.upsert(frame, absent=absent, on_duplicate=policy, batch_size=batch_size, progress=False)
            outcomes = result.outcomes
            assert outcomes["status"].to_list() == self.model.upsert(rows, policy, absent)
            assert outcomes["id"].to_list() == frame["id"].to_list()
            wrote_text = outcomes["job_id"].is_not_null()
            assert (~wrote_text | outcomes["status"].is_in(["created", "updated"])).all()
            assert result.counts == {
                **result.counts,
                **dict(outcomes["status"].cast(pl.String).value_counts().iter_rows()),
            }

    @rule(keys=st.lists(st.tuples(TYPES, IDS), max_size=8))
    def delete(self, keys: list[tuple]) -> None:
        frame = pl.DataFrame(keys, dict.fromkeys(KEY, pl.String), orient="row")
        expected, seen = [], set()
        for key in keys:
            possible = key[1] is not None and "\0" not in key[1]
            expected.append(
                "duplicate" if key in seen and possible else "deleted" if key in self.model.entities else "missing"
            )
            if expected[-1] == "deleted":
                del self.model.entities[key]
            seen.add(key)
        assert self.store.delete(frame).outcomes["status"].to_list() == expected

    @rule(keys=st.lists(st.tuples(TYPES, IDS), max_size=8))
    def read(self, keys: list[tuple]) -> None:
        frame = pl.DataFrame(keys, dict.fromkeys(KEY, pl.String), orient="row")
        present = [key in self.model.entities for key in keys]
        assert self.store.exists(frame)["exists"].to_list() == present
        got = self.store.get(frame)
        assert got["found"].to_list() == present
        assert got["content"].to_list() == [
            self.model.entities[key][0] if key in self.model.entities else None for key in keys
        ]
        assert self.store.missing(frame).rows() == [key for key in keys if key not in self.model.entities]

    @invariant()
    def the_store_is_the_model(self) -> None:
        stored = self.store.scan().collect()
        assert {
            (row["entity_type"], row["id"]): (row["content"], json.loads(row["metadata"]))
            for row in stored.iter_rows(named=True)
        } == self.model.entities
        for kind in ("note", "task"):
            ids = sorted(id for of, id in self.model.entities if of == kind)
            assert sorted(self.store.read(kind)["id"]) == ids


# At first the entity types do not exist yet.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no entities of type:UserWarning")
def test_a_random_life(engine: str, request: pytest.FixtureRequest) -> None:
    """The store and its outcomes equal the model's after every step."""

    class OnEngine(Life):
        url = ":memory:" if engine == "duckdb" else request.getfixturevalue("postgres_url")

    profile = settings(
        max_examples=int(os.environ.get("ENTITYFRAMES_LIVES", "15")),
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnEngine, settings=profile)
