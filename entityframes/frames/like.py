"""The types of what callers hand in as frames, for editors and type checkers; `sources` reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import polars as pl


class ArrowStream(Protocol):
    """A frame or reader of pandas, PyArrow and others, or a relation of DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Attrs(Protocol):
    """An instance of a class made by attrs."""

    __attrs_attrs__: ClassVar[Any]


class Model(Protocol):
    """A model of pydantic or SQLModel."""

    def model_dump(self) -> dict[str, Any]:
        """Its fields."""


class NamedTuple(Protocol):
    """A named tuple, or a row of SQLAlchemy."""

    def _asdict(self) -> Mapping[str, Any]: ...


class Row(Protocol):
    """A row of a database cursor."""

    def keys(self) -> Iterable[Any]:
        """The names of its columns."""

    def __getitem__(self, key: Any, /) -> Any: ...


Record: TypeAlias = Mapping[str, Any] | Dataclass | Attrs | Model | NamedTuple | Row

#: A frame, a dict of columns, or records or frames one after the other. A string is none: its items are strings.
NotLazy: TypeAlias = (
    pl.DataFrame | ArrowStream | Mapping[str, Any] | Iterable[Record | Sequence[Record] | ArrowStream | pl.LazyFrame]
)
FrameLike: TypeAlias = NotLazy | pl.LazyFrame

#: A frame of keys, or the values of a key of one column.
KeysLike: TypeAlias = FrameLike | pl.Series | list[Any] | tuple[Any, ...]
