"""Frames of any columns, dtypes and values, valid or not: both engines agree, and raise only errors of this package.

`python -m tests.test_any_frame COUNT [POSTGRESQL URL]` tries as many as wanted.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from polars.testing.parametric import series

import entityframes as ef
from entityframes.frames.schema import KEY
from entityframes.metadata import fields

TEXT = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "a", "A", "é", "e\u0301", "ｘ", "n\0", "\ufeff", "\U0010ffff", " ", "i" * 1024, "i" * 1025]),
)
KINDS = st.sampled_from(["note"] * 6 + ["task", "Note", "t" * 255]) | st.sampled_from(
    ["note", "note", "task", "", "n\0", "t" * 256, "é" * 128]
)
JSON_TEXT = st.one_of(
    st.sampled_from(
        [
            "{}", "[]", "1", "null", '"x"', "", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1e-999}',
            '{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": "\\ud800"}', '{"a": "\\ud83d\\ude00"}', '{"a": 1, "a": "x"}',
            '{"": 1}', '{"id": 7}', '{"a": 123456789012345678901234567890}', '{"a": 0.1234567890123456789}',
            '{"a": -0.0}', '{"a": 1.0}', '{"a": "\0"}', '{"a": "\\\\u0000"}', "[" * 200, '{"a":' * 200, "\ufeff{}",
            ' {"b" : 1 , "a" : [ ] } ', '{"a": 1} x', "{'a': 1}", '{"a": 01}', '{"a": true}', '{"%s": 1}' % ("k" * 300),
        ]
    ),
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
            max_leaves=4,
        ),
        max_size=3,
    ).map(json.dumps),
)  # fmt: skip
FIELD_NAMES = st.sampled_from(
    ["a", "b", "A", "é", "", "id", "content", "created_at", "metadata", "x y", "n\0", "k" * 300]
)


@st.composite
def any_series(draw: st.DrawFn, rows: int) -> pl.Series:
    """A column of any Polars dtype."""
    if draw(st.integers(0, 30)) == 0:
        return pl.Series([object()] * rows, dtype=pl.Object)
    if draw(st.integers(0, 15)) == 0:
        return pl.Series([None] * rows, dtype=pl.Null)
    return draw(series(min_size=rows, max_size=rows, allow_null=draw(st.booleans())))


def text_series(rows: int, values: st.SearchStrategy[str]) -> st.SearchStrategy[pl.Series]:
    full = st.lists(values, min_size=rows, max_size=rows)
    some_null = st.lists(values | st.none(), min_size=rows, max_size=rows)
    return (full | full | full | some_null).map(lambda texts: pl.Series(texts, dtype=pl.String))


@st.composite
def metadata(draw: st.DrawFn, rows: int) -> pl.Series:
    """JSON text, a Struct of any dtypes, or something that is neither."""
    what = draw(st.sampled_from(["json", "json", "struct", "struct", "struct", "any"]))
    if what == "json":
        return draw(text_series(rows, JSON_TEXT))
    if what == "any":
        return draw(any_series(rows))
    names = draw(st.lists(FIELD_NAMES, min_size=1, max_size=3, unique=True))
    columns = pl.DataFrame({name: draw(any_series(rows)) for name in names})
    if pl.Object in columns.dtypes:
        return columns.to_series().alias("metadata")
    return columns.to_struct("metadata")


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """An entity frame with any number of mistakes, most often none or one."""
    rows = draw(st.integers(0, 5))
    columns = {
        "entity_type": draw(text_series(rows, KINDS)),
        "id": draw(text_series(rows, TEXT)),
        "content": draw(text_series(rows, TEXT)),
    }
    if draw(st.integers(0, 3)):
        columns["metadata"] = draw(metadata(rows))
    wrong = draw(st.sampled_from(["nothing"] * 16 + ["dtype", "dtype", "name", "missing", "extra"]))
    name = draw(st.sampled_from(sorted(columns)))
    if wrong == "dtype":
        columns[name] = draw(any_series(rows))
    elif wrong == "name":
        columns[draw(st.sampled_from([name.upper(), name + " ", "", "Id", "row", "found"]))] = columns.pop(name)
    elif wrong == "missing":
        del columns[name]
    elif wrong == "extra":
        columns[draw(st.sampled_from(["title", "content_hash", "row", "created_at"]))] = draw(any_series(rows))
    return pl.DataFrame(columns)


def _pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """Python objects; some of the text cannot be encoded."""
    columns = {name: frame[name].to_list() for name in frame.columns}
    made = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    if "content" in columns and frame.height:
        made.loc[0, "content"] = "x\ud800"
    return made


def _broken_text(frame: pl.DataFrame) -> Any:
    """Unvalidated Arrow strings that are not UTF-8."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    if "id" not in table.column_names or not frame.height:
        return table
    texts = [b"\xff\xfe", *(b"k%d" % n for n in range(1, frame.height))]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    broken = pa.StringArray.from_buffers(
        len(texts), pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(b"".join(texts))
    )
    return table.set_column(table.column_names.index("id"), "id", broken)


def _twice(frame: pl.DataFrame) -> Any:
    """A table with duplicate column names."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.append_column(table.column_names[-1], table.column(0)) if table.num_columns else table


FORMS: dict[str, Callable[[pl.DataFrame], Any]] = {
    "polars": lambda frame: frame,
    "lazy": lambda frame: frame.lazy(),
    "iterator": lambda frame: iter([frame[:2], frame[2:]]),
    "arrow": lambda frame: frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
    "reader": lambda frame: pa.table(frame.to_arrow(compat_level=pl.CompatLevel.oldest())).to_reader(2),
    "broken text": _broken_text,
    "twice": _twice,
    "pandas": _pandas,
}
#: Forms that are read piece by piece, so that a wrong piece is met after the first was written.
STREAMS = ("lazy", "iterator", "reader")


class Given(NamedTuple):
    """A frame and the form in which it is passed; a stream can be read only once."""

    form: str
    frame: pl.DataFrame

    def __call__(self) -> Any:
        return FORMS[self.form](self.frame)

    def __repr__(self) -> str:
        return f"{self.form} {dict(self.frame.schema)} {self.frame.to_dict(as_series=False)}"


@st.composite
def given_frames(draw: st.DrawFn) -> Given:
    """A frame in one of its forms."""
    frame = draw(frames())
    form = draw(st.sampled_from(["polars"] * 6 + sorted(FORMS)))
    if pl.Object in frame.dtypes or "\\x00" in repr(frame.schema):
        # Polars panics when it exports such names.
        form = "polars"
    try:
        FORMS[form](frame)
    except (
        pa.ArrowException,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        TypeError,
        ValueError,
        OverflowError,
    ):
        # Polars does not support this form.
        form = "polars"
    return Given(form, frame)


class Twins:
    """Makes the same calls to an empty store on each engine."""

    def __init__(self, stores: list[ef.EntityStore]) -> None:
        self._stores = stores
        #: How often each verdict came out.
        self.seen: collections.Counter[str] = collections.Counter()

    def both(self, call: Callable[[ef.EntityStore], Any]) -> Any:
        """The outcome of a call on both engines: its result, or the error of this package that it raised."""
        verdicts = [self._verdict(call, store) for store in self._stores]
        assert verdicts[0] == verdicts[1], verdicts
        return verdicts[0]

    @staticmethod
    def _verdict(call: Callable[[ef.EntityStore], Any], store: ef.EntityStore) -> Any:
        try:
            return call(store)
        except ef.EntityFramesError as error:
            return type(error).__name__, str(error)

    def clear(self) -> None:
        """Reset both stores."""
        for store in self._stores:
            store.delete(store.scan().select(KEY).collect())
            store._engine.forget_fields(store._engine.all_fields())
            # The next run would rely on what this one has cached.
            fields._recent.pop(store._engine, None)


def outcomes(result: ef.UpsertResult) -> list[tuple[Any, ...]]:
    """The outcome of each row of an upsert, with all rows accounted for."""
    outcomes = result.outcomes
    assert sum(result.counts.values()) == outcomes.height
    assert not outcomes["error_kind"].is_in(["database", "connection"]).any(), outcomes.rows()
    return outcomes.select(
        "row", *KEY, pl.col("status", "error_kind").cast(pl.String), "error", pl.col("job_id").is_null()
    ).rows()


def try_frame(twins: Twins, build: Given, options: dict[str, Any]) -> None:
    """Plan, write, write again, read and delete."""
    whole = build.form not in STREAMS

    def plan(store: ef.EntityStore) -> list[tuple[Any, ...]]:
        return store.plan(build(), on_duplicate=options["on_duplicate"]).frame.drop("changes").rows()

    def upsert(store: ef.EntityStore) -> list[tuple[Any, ...]]:
        return outcomes(store.upsert(build(), progress=False, **options))

    def accounted(store: ef.EntityStore) -> list[tuple[Any, ...]]:
        return outcomes(store.last_result)

    planned = twins.both(plan)
    written = twins.both(upsert)
    if isinstance(written, tuple):
        twins.seen[written[0]] += 1
        twins.both(accounted)
        if whole and written[0] == "SchemaError":
            assert twins.both(lambda store: store.scan().collect().height) == 0
    else:
        twins.seen.update({f"row {row[3]}" for row in written} or {"no rows"})
        if whole and options["on_error"] == "isolate":
            words = {"create": "created", "invalid": "failed"}
            assert [words.get(row[3], row[3]) for row in planned] == [row[3] for row in written]
            again = twins.both(upsert)
            assert [row[3].replace("created", "unchanged") for row in written] == [row[3] for row in again]
    stored = twins.both(lambda store: store.scan().drop("created_at", "updated_at").collect().sort(KEY).rows())
    for kind in {row[0] for row in stored}:
        twins.both(lambda store, kind=kind: _values(store.read(kind).drop("created_at", "updated_at")))
    for call in (
        lambda store: store.exists(build()).rows(),
        # They are returned as given, also values that are not strings.
        lambda store: store.missing(build()).select(pl.col(KEY).cast(pl.Binary)).rows(),
        lambda store: store.get(build()).drop("created_at", "updated_at").rows(),
        lambda store: store.delete(build()).outcomes.drop("batch_id").rows(),
    ):
        if whole:
            twins.both(call)


def _values(frame: pl.DataFrame) -> tuple[Any, ...]:
    """Columns, dtypes and values; NaN equals NaN."""
    return list(frame.schema.items()), repr(frame.rows())


@pytest.fixture(scope="module")
def twins(postgres_server: str, postgres_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    from tests.conftest import execute, with_database

    name = f"entityframes_twin_{os.getpid()}"
    execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    with (
        ef.connect(tmp_path_factory.mktemp("twins") / "x.duckdb", workers=1) as one,
        ef.connect(with_database(postgres_server, name), workers=1) as other,
    ):
        yield Twins([one, other])
        assert one.verify().is_empty()
        assert other.verify().is_empty()
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def try_frames(twins: Twins, count: int) -> None:
    """Try a number of frames; the smallest one that fails is shown."""

    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        report_multiple_bugs=False,
    )
    @given(
        given_frames(),
        st.fixed_dictionaries(
            {
                "on_duplicate": st.sampled_from(["last", "last", "first", "error"]),
                "on_error": st.sampled_from(["isolate", "isolate", "isolate", "rollback", "raise"]),
                "batch_size": st.sampled_from([None, None, 1, 3]),
            }
        ),
    )
    def tried(given_frame: Given, options: dict[str, Any]) -> None:
        twins.clear()
        try_frame(twins, given_frame, options)

    tried()


@pytest.mark.slow
@pytest.mark.duckdb
def test_any_frame(twins: Twins) -> None:
    """Whatever is wrong with a frame, both engines report the same."""
    try_frames(twins, int(os.environ.get("ENTITYFRAMES_FRAMES", "60")))
    assert {"SchemaError", "row created", "row failed"} <= set(twins.seen)


def main(count: int, url: str | None) -> None:
    import tempfile

    from tests.faults.servers import Server

    server = None if url else Server()
    namespace = f"twins_{os.getpid()}"
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            ef.connect(f"{folder}/x.duckdb", workers=1) as one,
            ef.connect(url or server.url(), namespace=namespace, workers=1) as other,
        ):
            twins = Twins([one, other])
            try_frames(twins, count)
            assert one.verify().is_empty()
            assert other.verify().is_empty()
            other._engine.drop()
        print(f"{count} frames, the same verdict on both engines:", dict(twins.seen.most_common()))
    finally:
        if server:
            server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
