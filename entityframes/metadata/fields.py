"""The metadata fields of each entity type, recorded on write so that `read` can restore the dtypes.

A field is *declared* if it was written as a typed column, and *inferred* if it was written as JSON text. A declared
dtype is a promise and does not change; an inferred dtype is a description and widens as values arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.errors import SchemaError
from entityframes.metadata import dtypes
from entityframes.metadata.canonical_json import Inferred, Shape, inferred


class FieldStore(Protocol):
    """What records fields: an `Engine`, whose methods of these names say more."""

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        """The recorded fields of some types."""

    def record_fields(self, fields: pl.DataFrame) -> None:
        """Add or widen fields."""

    def is_empty(self, entity_type: str) -> bool:
        """Whether the type has no entities."""


class Field(NamedTuple):
    """One metadata field of one entity type."""

    #: The dtype; None for values without a common dtype, which are read as JSON text (String).
    dtype: pl.DataType | None
    #: Whether it was written as a typed column.
    declared: bool

    @property
    def output(self) -> pl.DataType:
        """The dtype of the field when read."""
        return pl.String() if self.dtype is None else self.dtype


#: A run may reuse fields that an earlier run loaded within this many seconds, just as it relies on the fields that it
#: loaded at its own start. This saves repeated calls for single entities a query each. At most MAX_RECENT types are
#: cached.
RECENT_S = 1.0
MAX_RECENT = 100
_recent: WeakKeyDictionary[FieldStore, tuple[float, dict[str, dict[str, Field]]]] = WeakKeyDictionary()

#: The maximum number of fields of a type up to which inferred fields are recorded. Further ones stay in the metadata,
#: but are not available as columns.
MAX_INFERRED = 1_000

#: How often a declaration is repeated because other writers widened a field at the same time.
_MAX_TRIES = 10

#: The dtype that is recorded for values without a common dtype.
JSON_TEXT = "JSON"


class Fields:
    """The fields in the store, as far as one run has loaded them; thread-safe, shared by the batches of the run."""

    def __init__(self, engine: FieldStore, *, recent: bool = False) -> None:
        """Start empty, or with the fields that another run of this process loaded in the last `RECENT_S` seconds."""
        self._engine = engine
        self._lock = threading.Lock()
        loaded_at, known = _recent.get(engine, (0.0, {})) if recent else (0.0, {})
        fresh = time.monotonic() - loaded_at < RECENT_S
        self._known: dict[str, dict[str, Field]] = {name: dict(known[name]) for name in known} if fresh else {}
        self._loaded_at = loaded_at if fresh else time.monotonic()
        #: The types that this run has declared, whose rows may not be written yet.
        self._ours: set[str] = set()
        #: The types that had entities when this run asked.
        self._in_use: set[str] = set()
        #: The types for which this run has recorded fields but has not written a row yet.
        self.unconfirmed: set[str] = set()

    def of(self, entity_type: str) -> dict[str, Field]:
        """The fields of a type, in order of first occurrence."""
        with self._lock:
            return dict(self._load([entity_type])[entity_type])

    def expected(self, entity_types: Iterable[str]) -> dict[str, pl.DataType | None]:
        """The dtypes that typed columns of these types must have; for a field of several types, that of the first.

        The dtype is None for a field without a common dtype. Types without entities are left out, since their fields
        may be declared with other dtypes.
        """
        found: dict[str, pl.DataType | None] = {}
        with self._lock:
            for entity_type, fields in self._load(entity_types).items():
                if fields and entity_type not in self._in_use and entity_type not in self._ours:
                    if self._engine.is_empty(entity_type):
                        continue
                    self._in_use.add(entity_type)
                for name, field in fields.items():
                    found.setdefault(name, field.dtype)
        return found

    def declare(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """Record typed columns for each type before their rows are written.

        Raises:
            SchemaError: a field already has another dtype; nothing was recorded.
        """
        with self._lock:
            known = self._load(entity_types)
            for _ in range(_MAX_TRIES):
                new = {entity_type: self._declared(entity_type, known[entity_type], schema) for entity_type in known}
                if not any(new.values()):
                    break
                self._record({entity_type: fields for entity_type, fields in new.items() if fields})
                self.unconfirmed.update(entity_type for entity_type, fields in new.items() if fields)
                # A concurrent writer may have widened a field, which then has to hold both dtypes.
                known = self._load(known)
            self._ours.update(known)

    def confirm(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """Check, before the first rows of declared types are written, that no other writer has redeclared their fields.

        Raises:
            SchemaError: a field now has another dtype.
        """
        with self._lock:
            pending = self.unconfirmed.intersection(entity_types)
            for entity_type in pending:
                self._known.pop(entity_type, None)
            for entity_type, fields in self._load(pending).items():
                _check_recorded(entity_type, fields, schema)
            self.unconfirmed -= pending

    def check(self, entity_types: Iterable[str], schema: Mapping[str, pl.DataType]) -> None:
        """Raise what `declare` would raise, without recording anything.

        Raises:
            SchemaError: a field already has another dtype.
        """
        with self._lock:
            for entity_type, fields in self._load(entity_types).items():
                self._declared(entity_type, fields, schema)

    def infer(self, inferred: Mapping[str, Inferred]) -> None:
        """Widen the fields of each type by those found in JSON text; declared fields only as `widened` allows."""
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
        """Record known fields that are missing from the store again, after a failover to another server."""
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

    def match(self, entity_type: str, shape: Shape) -> bool:
        """Whether metadata in JSON text has exactly the fields of a type, with values that fit them as they are."""
        fields, found = self.of(entity_type), inferred([shape])
        return (
            len(fields) < MAX_INFERRED
            and fields.keys() == found.keys()
            and all(_fits(field, found[name]) for name, field in fields.items())
        )

    def declared(self, entity_type: str) -> dict[str, pl.DataType]:
        """The declared fields of a type; values in JSON text have to conform to them."""
        return {name: field.output for name, field in self.of(entity_type).items() if field.declared}

    def names(self, entity_types: Iterable[str]) -> dict[str, frozenset[str]]:
        """The names of the fields of each type, as known to this run."""
        with self._lock:
            return {entity_type: frozenset(fields) for entity_type, fields in self._load(entity_types).items()}

    def recorded(self, entity_types: Iterable[str]) -> dict[str, frozenset[str]]:
        """The names of the fields of each type, loaded from the store again."""
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
            # The type has no entities left, so its fields may be declared with other dtypes.
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
            # A concurrent writer may have been first: reload what the store contains now.
            del self._known[entity_type]
        for entity_type, fields in self._load(new).items():
            declared = {name: field.output for name, field in new[entity_type].items() if field.declared}
            _check_recorded(entity_type, fields, declared)


def _check_recorded(entity_type: str, fields: Mapping[str, Field], schema: Mapping[str, pl.DataType]) -> None:
    """Check that recorded fields have the dtypes of a schema, or wider ones.

    Raises:
        SchemaError: a field has an incompatible dtype.
    """
    for name, dtype in schema.items():
        if name in fields and dtypes.widened(fields[name].output, dtype) is None:
            raise SchemaError(
                f"metadata column {name!r} of type {entity_type!r} was declared as {fields[name].output} by a "
                f"concurrent writer, but is {dtype} here",
                advice="cast it, or use another type",
            )


def _joining(
    entity_type: str, fields: Mapping[str, Field], schema: Mapping[str, pl.DataType]
) -> dict[str, pl.DataType]:
    """The typed columns that are new to a type, or wider than its fields."""
    mixed = [name for name in schema if name in fields and fields[name].dtype is None]
    if mixed:
        raise SchemaError(
            f"metadata columns {', '.join(map(repr, mixed))} of type {entity_type!r} contain nested or mixed JSON",
            advice="pass the metadata as JSON text, or write these entities under another type",
        )
    return dtypes.merge_fields(entity_type, {name: field.output for name, field in fields.items()}, schema)


def _wider(known: pl.DataType | None, incoming: pl.DataType | None) -> pl.DataType | None:
    if known == incoming or incoming == pl.Null:
        return known
    if known == pl.Null:
        return incoming
    return pl.Float64() if {known, incoming} == {pl.Int64(), pl.Float64()} else None


def _fits(field: Field, dtype: pl.DataType | None) -> bool:
    """Whether values of a dtype in JSON text certainly fit a field, which stays as it is."""
    if field.declared:
        return dtype is not None and dtype in (field.dtype, pl.Null)
    return _wider(field.dtype, dtype) == field.dtype


def _grown(field: Field, dtype: pl.DataType | None) -> Field | None:
    """A declared field, widened by a dtype; None if it stays the same."""
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
