"""The parts that all views are made of.

JupyterLab sanitizes the HTML of notebooks that are not trusted: a view has inline styles only, of the properties and
values that its sanitizer lets through (``rgba`` but no ``currentColor``, ``0.7`` but not ``.7``). Text has the color of
the page; lines and backgrounds are translucent, so that they show on light and on dark.
"""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Iterable, Mapping, Sequence

from entityframes.statuses import COLORS
from entityframes.visible import visible

#: The number of rows that a view lists.
MOST = 10
#: The number of characters of a value.
LONGEST = 200
#: Ids of up to this number of characters are not broken at their hyphens.
_ON_ONE_LINE = 40

_LINE = "rgba(128,128,128,0.35)"
_CELL = f"padding:0.2em 0.8em 0.2em 0;vertical-align:top;border:none;border-top:1px solid {_LINE}"
_HEADER = "padding:0.2em 0.8em 0.2em 0;font-weight:normal;opacity:0.7;white-space:nowrap;border:none"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: object, most: int = LONGEST) -> Html:
    """A value as HTML: text is escaped and cut, numbers have separators, times have no fractions, null is faint."""
    if isinstance(value, Html):
        return value
    if value is None:
        return faint("—")
    if isinstance(value, bool):
        return Html("yes" if value else "no")
    if isinstance(value, int):
        return Html(f"{value:,}")
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    if isinstance(value, dt.datetime):
        return Html(f'<span style="white-space:nowrap">{value:%Y-%m-%d %H:%M:%S}</span>')
    text = visible(value)
    return Html(html.escape(text if len(text) <= most else text[: most - 1] + "…"))


def box(*parts: str) -> str:
    """A view."""
    return f'<div style="max-width:70em;line-height:1.5">{"".join(parts)}</div>'


def line(*parts: object) -> Html:
    """A line of text; a string is escaped."""
    return Html(f"<div>{''.join(escaped(part, most=1_000) for part in parts)}</div>")


def faint(text: object) -> Html:
    """Text that is less important."""
    return Html(f'<span style="opacity:0.7">{escaped(text, most=1_000)}</span>')


def bold(text: object) -> Html:
    """A title or an id; on one line if it is short."""
    style = ' style="white-space:nowrap"' if len(str(text)) <= _ON_ONE_LINE else ""
    return Html(f"<strong{style}>{escaped(text)}</strong>")


def code(text: object) -> Html:
    """A name, a key or a call."""
    return Html(f'<code style="background-color:rgba(128,128,128,0.15);padding:0 0.2em">{escaped(text)}</code>')


def marked(text: object) -> Html:
    """Text that a search has found."""
    return Html(f'<strong style="background-color:rgba(255,180,0,0.35)">{escaped(text)}</strong>')


def status(name: str, label: object = None) -> Html:
    """A status, an action or a state in its color; the label is its name by default."""
    return Html(f'<span style="white-space:nowrap">{dot(name)} {escaped(name if label is None else label)}</span>')


def dot(status: str) -> Html:
    """The color of a status."""
    style = f"display:inline-block;width:0.7em;height:0.7em;border-radius:2px;background-color:{COLORS[status]}"
    return Html(f'<span style="{style}"></span>')


def bar(counts: Mapping[str, int], labels: Mapping[str, str] | None = None) -> Html:
    """Counts by status as a bar in their colors, and below it as text."""
    counted = {status: count for status, count in counts.items() if count}
    rows = sum(counted.values())
    if not rows:
        return line("no rows")
    texts = {status: f"{count:,} {(labels or {}).get(status, status)}" for status, count in counted.items()}
    pieces = "".join(
        f'<div title="{text}" style="width:{100 * counted[status] / rows:.4f}%;min-width:2px;'
        f'background-color:{COLORS[status]}"></div>'
        for status, text in texts.items()
    )
    legend = "".join(
        f'<span style="white-space:nowrap;margin-right:1em">{dot(status)} {text}</span> '
        for status, text in texts.items()
    )
    strip = "display:flex;height:0.8em;border-radius:3px;overflow:hidden;margin:0.3em 0"
    return Html(f'<div style="{strip}">{pieces}</div><div>{legend}</div>')


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table; numbers are aligned to the right."""
    listed = [list(row) for row in rows]
    right = [any(_is_number(row[place]) for row in listed) for place in range(len(header))]
    sides = ["right" if number else "left" for number in right]
    head = "".join(
        f'<th style="{_HEADER};text-align:{side}">{escaped(name)}</th>'
        for name, side in zip(header, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{_CELL};text-align:{side};overflow-wrap:break-word">{escaped(value)}</td>'
            for value, side in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in listed
    )
    style = "border-collapse:collapse;border:none;margin:0.4em 0;table-layout:auto"
    return Html(f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def size(count: float) -> str:
    """A number of bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
