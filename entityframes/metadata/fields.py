"""The metadata fields of each entity type: recorded when written, so that `read` can give the dtypes back.

A field is *declared* when it came as a typed column and *inferred* when it came in JSON text. A declared dtype is
a promise and does not change; an inferred one is a description and widens as values arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.errors import SchemaError
from entityframes.metadata import dtypes
from entityframes.metadata.canonical_json import Inferred

if TYPE_CHECKING:
    from entityframes.engines.base import Engine


class Field(NamedTuple):
    """One metadata field of one entity type."""

    #: Its dtype; None for values that have none in common and come back as JSON text (String).
    dtype: pl.DataType | None
    #: Whether it came as a typed column.
    declared: bool

    @property
    def output(self) -> pl.DataType:
        """The dtype that the field has when it is read."""
        return pl.String() if self.dtype is None else self.dtype


#: A run may start with what an earlier one learned so many seconds ago, as a run itself relies on what it learned at
#: its start; calls for one entity after another then need not ask each time. Not for more types than MAX_RECENT.
RECENT_S = 1.0
MAX_RECENT = 100
_recent: WeakKeyDictionary[Engine, tuple[float, dict[str, dict[str, Field]]]] = WeakKeyDictionary()

#: More inferred fields than this are kept in the metadata but not offered as columns.
MAX_INFERRED = 1_000

#: Other writers that may widen a field while this one does.
_MAX_TRIES = 10

#: What is recorded for values that have no common dtype.
JSON_TEXT = "JSON"


class Fields:
    """What one run knows of the fields in the store; safe to share between its batches."""

    def __init__(self, engine: Engine, *, recent: bool = False) -> None:
        """Start with nothing known, or with what another run of this process asked for within the last `RECENT_S`."""
        self._engine = engine
        self._lock = threading.Lock()
        loaded_at, known = _recent.get(engine, (0.0, {})) if recent else (0.0, {})
        fresh = time.monotonic() - loaded_at < RECENT_S
        self._known: dict[str, dict[str, Field]] = {name: dict(known[name]) for name in known} if fresh else {}
        self._loaded_at = loaded_at if fresh else time.monotonic()
        #: Types that this run has declared; its own rows may still be on their way.
        self._ours: set[str] = set()
        #: Those of them that it has recorded something of, and has not written a row of since.
        self.unconfirmed: set[str] = set()

    def of(self, entity_type: str) -> dict[str, Field]:
        """The fields of a type in the order in which they first came."""
        with self._lock:
            return dict(self._load([entity_type])[entity_type])

    def declare(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """Record typed columns for each type before their rows are written.

        Raises:
            SchemaError: a field has another dtype already; nothing was recorded.
        """
        with self._lock:
            known = self._load(entity_types)
            for _ in range(_MAX_TRIES):
                new = {entity_type: self._declared(entity_type, known[entity_type], schema) for entity_type in known}
                if not any(new.values()):
                    break
                self._record({entity_type: fields for entity_type, fields in new.items() if fields})
                self.unconfirmed.update(entity_type for entity_type, fields in new.items() if fields)
                # Another writer may have made a field wider just now, which then has to hold both.
                known = self._load(known)
            self._ours.update(known)

    def confirm(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """Before the first rows of types that were declared: see that nobody has let them start anew since.

        Raises:
            SchemaError: a field has another dtype now.
        """
        with self._lock:
            asked = self.unconfirmed.intersection(entity_types)
            for entity_type in asked:
                self._known.pop(entity_type, None)
            for entity_type, fields in self._load(asked).items():
                _check_recorded(entity_type, fields, schema)
            self.unconfirmed -= asked

    def check(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """What `declare` would say, without recording anything.

        Raises:
            SchemaError: a field has another dtype already.
        """
        with self._lock:
            for entity_type, fields in self._load(entity_types).items():
                self._declared(entity_type, fields, schema)

    def infer(self, inferred: Mapping[str, Inferred]) -> None:
        """Widen the inferred fields of each type by those found in JSON text, and declared ones by what grew in it."""
        with self._lock:
            known = self._load(inferred)
            new: dict[str, dict[str, Field]] = {}
            for entity_type, fields in known.items():
                wider = {
                    name: Field(_wider(fields[name].dtype, dtype) if name in fields else dtype, False)
                    for name, dtype in inferred[entity_type].items()
                    if name not in fields or not fields[name].declared
                }
                grown = {
                    name: _grown(fields[name], dtype) for name, dtype in inferred[entity_type].items() if name in fields
                }
                wider |= {name: field for name, field in grown.items() if field is not None}
                room = MAX_INFERRED - len(fields)
                changed = {name: field for name, field in wider.items() if fields.get(name) != field}
                fresh = [name for name in changed if name not in fields]
                for name in fresh[max(room, 0) :]:
                    del changed[name]
                if changed:
                    new[entity_type] = changed
            self._record(new)

    def record_again(self) -> None:
        """Record what was known and is not in the store any more, because another server took over."""
        with self._lock:
            before, self._known = self._known, {}
            new: dict[str, dict[str, Field]] = {}
            for entity_type, stored in self._load(before).items():
                for name, field in before[entity_type].items():
                    now = stored.get(name)
                    wider = field if now is None or now.declared else Field(_wider(now.dtype, field.dtype), False)
                    if now is None or (not now.declared and (field.declared or wider != now)):
                        new.setdefault(entity_type, {})[name] = field if field.declared else wider
            self._record(new)

    def declared(self, entity_type: str) -> dict[str, pl.DataType]:
        """The typed columns of a type; values in JSON text have to conform to them."""
        return {name: field.output for name, field in self.of(entity_type).items() if field.declared}

    def names(self, entity_types: Iterable[str]) -> dict[str, frozenset[str]]:
        """The names of the fields of types, as far as this run knows them."""
        with self._lock:
            return {entity_type: frozenset(fields) for entity_type, fields in self._load(entity_types).items()}

    def recorded(self, entity_types: Iterable[str]) -> dict[str, frozenset[str]]:
        """The names of the fields of types as the store has them now."""
        with self._lock:
            for entity_type in entity_types:
                self._known.pop(entity_type, None)
        return self.names(entity_types)

    def _load(self, entity_types: Iterable[str]) -> dict[str, dict[str, Field]]:
        wanted = list(dict.fromkeys(entity_types))
        absent = [entity_type for entity_type in wanted if entity_type not in self._known]
        if absent:
            found = self._engine.fields(absent)
            self._known.update({entity_type: {} for entity_type in absent})
            for entity_type, name, dtype, declared in found.iter_rows():
                self._known[entity_type][name] = Field(_from_text(dtype), declared)
            if len(self._known) <= MAX_RECENT:
                _recent[self._engine] = (self._loaded_at, {name: dict(self._known[name]) for name in self._known})
        return {entity_type: self._known[entity_type] for entity_type in wanted}

    def _declared(
        self, entity_type: str, fields: Mapping[str, Field], schema: Mapping[str, pl.DataType]
    ) -> dict[str, Field]:
        try:
            fresh = _joining(entity_type, fields, schema)
        except SchemaError:
            if entity_type in self._ours or not self._engine.is_empty(entity_type):
                raise
            # No entity is left that could disagree: the type may start anew.
            return {
                name: Field(dtype, True) for name, dtype in schema.items() if fields.get(name) != Field(dtype, True)
            }
        inferred = {name for name in schema if name in fields and not fields[name].declared}
        return {
            name: Field(fresh.get(name, fields[name].output if name in fields else dtype), True)
            for name, dtype in schema.items()
            if name in fresh or name in inferred
        }

    def _record(self, new: Mapping[str, Mapping[str, Field]]) -> None:
        before = {entity_type: self._known[entity_type] for entity_type in new}
        rows = [
            (entity_type, name, _to_text(field.dtype), field.declared, _text_of(before[entity_type].get(name)))
            for entity_type, fields in new.items()
            for name, field in fields.items()
        ]
        if not rows:
            return
        texts = dict.fromkeys(["entity_type", "field", "dtype"], pl.String)
        columns = {**texts, "declared": pl.Boolean, "was": pl.String}
        self._engine.record_fields(pl.DataFrame(rows, columns, orient="row"))
        for entity_type in new:
            # Another writer may have been first: what counts is what the store now says.
            del self._known[entity_type]
        for entity_type, fields in self._load(new).items():
            declared = {name: field.output for name, field in new[entity_type].items() if field.declared}
            _check_recorded(entity_type, fields, declared)


def _check_recorded(entity_type: str, fields: Mapping[str, Field], schema: Mapping[str, pl.DataType]) -> None:
    """See that fields which were recorded are what they were recorded as, or hold that.

    Raises:
        SchemaError: one is not.
    """
    for name, dtype in schema.items():
        if name in fields and dtypes.widened(fields[name].output, dtype) is None:
            raise SchemaError(
                f"metadata column {name!r} of type {entity_type!r} was declared as {fields[name].output} by "
                f"another writer just now, and is {dtype} here: cast it, or use another type"
            )


def _joining(
    entity_type: str, fields: Mapping[str, Field], schema: Mapping[str, pl.DataType]
) -> dict[str, pl.DataType]:
    """The typed columns that a type does not have yet."""
    mixed = [name for name in schema if name in fields and fields[name].dtype is None]
    if mixed:
        raise SchemaError(
            f"metadata columns {', '.join(map(repr, mixed))} of type {entity_type!r} hold nested or mixed JSON: "
            "pass the metadata as JSON text, or write these entities under another type"
        )
    return dtypes.merge_fields(entity_type, {name: field.output for name, field in fields.items()}, schema)


def _wider(known: pl.DataType | None, incoming: pl.DataType | None) -> pl.DataType | None:
    if known == incoming or incoming == pl.Null:
        return known
    if known == pl.Null:
        return incoming
    return pl.Float64() if {known, incoming} == {pl.Int64(), pl.Float64()} else None


def _grown(field: Field, dtype: pl.DataType | None) -> Field | None:
    """A declared field that holds more than before, or None."""
    if not field.declared or dtype is None or field.dtype is None:
        return None
    wider = dtypes.widened(field.dtype, dtype)
    return None if wider is None or wider == field.dtype else Field(wider, True)


def _text_of(field: Field | None) -> str | None:
    return None if field is None else _to_text(field.dtype)


def _to_text(dtype: pl.DataType | None) -> str:
    return JSON_TEXT if dtype is None else dtypes.dtype_to_json(dtype)


def _from_text(text: str) -> pl.DataType | None:
    return None if text == JSON_TEXT else dtypes.dtype_from_json(text)
