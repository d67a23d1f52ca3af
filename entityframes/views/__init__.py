"""What notebooks show: HTML without scripts and style sheets, for light and dark themes.

A view is made from plain values, which the objects collect that it shows; `parts` has what all of them are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from entityframes.views import parts
from entityframes.views.parts import MOST, Html, bar, bold, box, code, dot, escaped, faint, line, size, status, table

__all__ = [
    "MOST", "TO_DO", "Reason", "changes", "hits", "jobs", "plan", "result", "shown", "size", "status", "store",
    "user_table", "verification",
]  # fmt: skip

#: The labels of the actions of plans.
TO_DO = {
    "create": "to create", "update": "to update", "delete": "to delete", "rename": "to rename", "export": "to export",
    "conflict": "in conflict",
}  # fmt: skip


def shown(frame: pl.DataFrame, view: Callable[[pl.DataFrame], str]) -> pl.DataFrame:
    """Let a notebook show a frame with a view.

    It stays a plain DataFrame, unlike an instance of a subclass, which some tools do not recognize. Frames that are
    derived from it are shown as usual, and so is the frame itself if its columns are changed in place.
    """
    columns = frame.columns

    def as_html() -> str:
        return view(frame) if frame.columns == columns else pl.DataFrame._repr_html_(frame)

    frame._repr_html_ = as_html  # type: ignore[assignment]
    return frame


@dataclass(frozen=True)
class Reason:
    """Rows of a result that have the same status for the same reason."""

    status: str
    rule: str | None
    rows: int
    #: The first of these rows, and the error of the first one.
    first: Sequence[str]
    error: str | None


def result(
    name: str,
    counts: Mapping[str, int],
    lines: Iterable[str],
    reasons: Sequence[Reason],
    changes: tuple[Sequence[str], Iterable[Sequence[object]], int] | None = None,
) -> str:
    """A result: counts as a bar, lines of text, reasons of failures, and the changed files of a sync.

    Args:
        name: its class.
        counts: the number of rows by status.
        lines: text below the bar.
        reasons: why rows are not stored.
        changes: the header and the first rows of a table, and how many rows there are.
    """
    pieces = [line(bold(name)), bar(counts), *(line(faint(text)) for text in lines)]
    if reasons:
        grouped = [(status(one.status, one.rule), one.rows, "; ".join(one.first), one.error) for one in reasons[:MOST]]
        pieces += [table(["reason", "rows", "the first of them", "error of the first"], grouped)]
        failed = any(one.status == "failed" for one in reasons)
        rest = "result.failed" if failed else f'result.outcomes.filter(status="{reasons[0].status}")'
        pieces += [line(faint("all of them: "), code(rest))]
    if changes is not None:
        header, listed, rows_in_all = changes
        rows = list(listed)
        if rows:
            pieces += [table(header, rows), _rest(rows_in_all - len(rows), "result.outcomes")]
    return box(*pieces)


def plan(
    name: str,
    counts: Mapping[str, int],
    lines: Iterable[str],
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    rest: int,
) -> str:
    """A plan: counts as a bar, lines of text, and the first rows that are not as they should be.

    Args:
        name: its class.
        counts: the number of rows by action.
        lines: text below the bar.
        header, rows: a table of the first changes.
        rest: how many further rows there are.
    """
    pieces = [line(bold(name)), bar(counts, TO_DO), *(line(faint(text)) for text in lines)]
    if rows:
        pieces += [table(header, rows), _rest(rest, "plan.frame")]
    return box(*pieces, line(faint("nothing is written yet: "), code("plan.apply()"), faint(" carries it out")))


def changes(fields: Sequence[tuple[str, str | None, str | None]], *, content: bool, most: int = 5) -> Html:
    """The fields of a row that change, with their old and new values, and whether its content changes."""
    # A column of a deleted row may have been null before.
    fields = [one for one in fields if one[1] != one[2]]
    listed = [
        line(bold(field), " ", escaped(old, most=80), " → ", escaped(new, most=80)) for field, old, new in fields[:most]
    ]
    more = [line(faint(f"and {len(fields) - most:,} more"))] if len(fields) > most else []
    return Html("".join([*([line(bold("content"), " changes")] if content else []), *listed, *more]))


def store(where: str, facts: Iterable[str], types: pl.DataFrame | None) -> str:
    """A store: its address, facts about it, and its types as `EntityStore.stats` returns them."""
    pieces = [line(bold("EntityStore"), " ", code(where)), line(faint(" · ".join(facts)))]
    if types is not None and types.height:
        pieces += [table(types.columns, types.head(MOST).rows()), _rest(types.height - MOST, "store.stats()")]
    elif types is not None:
        pieces += [line("no entities yet: ", code("store.upsert(frame)"), " stores some")]
    return box(*pieces)


def user_table(name: str, where: str, facts: Iterable[str], columns: pl.DataFrame | None) -> str:
    """A table of the user: its address, facts about it, and its columns as `Table.columns` returns them."""
    lines = [line(bold("Table"), " ", code(name), faint(f" in {where}")), line(faint(" · ".join(facts)))]
    if columns is None:
        return box(*lines)
    listed = columns.drop("generated").rename({"sql_type": "SQL type"})
    most = 5 * MOST
    rows = [
        (bold(column), dtype, sql_type, "key" if key else "", nullable, default or "")
        for column, dtype, sql_type, key, nullable, default in listed.head(most).iter_rows()
    ]
    return box(*lines, table(listed.columns, rows), _rest(columns.height - most, "table.columns"))


def jobs(frame: pl.DataFrame) -> str:
    """Embedding jobs: their states as a bar, and the first ones."""
    counts = dict(frame["state"].cast(pl.String).value_counts(sort=True).iter_rows())
    if not counts:
        return box(line(bold("Jobs"), " none"))
    ordered = frame.select(
        "state", "entities", "attempts", "space", "worker", "lease_until", "error", "created_at", "updated_at",
        "job_id", "batch_id",
    )  # fmt: skip
    listed = _filled(ordered)
    rows = [(status(row[0]), *row[1:]) for row in listed.iter_rows()]
    return box(line(bold("Jobs")), bar(counts), table(listed.columns, rows), _rest(frame.height - MOST, "the frame"))


def verification(frame: pl.DataFrame, checks: int) -> str:
    """The findings of `EntityStore.verify`, out of a number of checks."""
    if frame.is_empty():
        return box(line(dot("created"), " ", bold("sound"), faint(f": {checks} kinds of inconsistency, none found")))
    counts = ", ".join(
        f"{count:,} {check}" for check, count in frame["check"].cast(pl.String).value_counts(sort=True).iter_rows()
    )
    noun = "inconsistency" if frame.height == 1 else "inconsistencies"
    repaired, repairable = int(frame["repaired"].sum()), int(frame["repairable"].sum())
    pieces = [line(dot("failed"), " ", bold(f"{frame.height:,} {noun}"), faint(f": {counts}"))]
    if repaired:
        pieces += [line(f"{repaired:,} repaired")]
    elif repairable:
        pieces += [line(f"{repairable:,} can be repaired: ", code("store.verify(repair=True)"))]
    ordered = frame.select(
        "check", "entity_type", "id", "field", "expected", "found", "repairable", "repaired", "batch_id"
    )
    listed = _filled(ordered)
    return box(*pieces, table(listed.columns, listed.rows()), _rest(frame.height - MOST, "the frame"))


def hits(frame: pl.DataFrame, snippets: Sequence[Sequence[tuple[str, bool]]]) -> str:
    """The entities that a search has found, with pieces of their text that are marked or not."""
    texts = [
        Html("".join(parts.marked(text) if mark else escaped(text, most=1_000) for text, mark in pieces))
        for pieces in snippets
    ]
    times = frame.select("metadata", "content_hash", "updated_at").head(len(texts)).iter_rows()
    rows = [
        (
            rank,
            Html(f"{score:.3g}"),
            kind,
            bold(id),
            text,
            "" if metadata == "{}" else metadata,
            content_hash[:8],
            updated,
        )
        for (rank, score, kind, id), text, (metadata, content_hash, updated) in zip(
            frame.select("rank", "score", "entity_type", "id").head(len(texts)).iter_rows(), texts, times, strict=True
        )
    ]
    if not rows:
        return box(line("no entities found"))
    header = ["rank", "score", "entity_type", "id", "content", "metadata", "content_hash", "updated_at"]
    return box(table(header, rows), _rest(frame.height - len(rows), "the frame"))


def _filled(frame: pl.DataFrame) -> pl.DataFrame:
    """The first rows of a frame, without the columns that are null in all of them, and with the beginnings of ids."""
    first = frame.head(MOST)
    ids = [name for name in ("job_id", "batch_id") if name in frame.columns]
    shown = first.with_columns(pl.col(ids).str.head(8))
    return shown.select(column for column in shown if column.null_count() < shown.height)


def _rest(rows: int, place: str) -> Html:
    """Where the rows are that a view leaves out."""
    return line(faint(f"and {rows:,} more in "), code(place)) if rows > 0 else Html("")
