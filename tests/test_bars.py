"""How progress is shown: as a bar in notebooks and terminals, or as lines."""

from __future__ import annotations

import logging
import re
import sys
import threading
from html.parser import HTMLParser
from typing import Any

import IPython.display
import polars as pl
import pytest

import entityframes as ef
from entityframes import progress
from entityframes.progress import Progress, Reporter, lines
from entityframes.statuses import COLORS

AMBER, RED = COLORS["cancelled"], COLORS["failed"]

#: What the sanitizer of JupyterLab keeps of a notebook that is not trusted.
TAGS = {"div", "span"}
NUMBER, LENGTH = r"[0-9]*\.?[0-9]+", r"[0-9]*\.?[0-9]+(px|em|%)"
COLOR = rf"#[0-9a-fA-F]+|rgba\(\d{{1,3}},\d{{1,3}},\d{{1,3}},{NUMBER}\)"
STYLES = {
    "background": COLOR,
    "border-radius": LENGTH,
    "display": "flex|inline-block",
    "font-size": LENGTH,
    "height": LENGTH,
    "max-width": LENGTH,
    "overflow": "hidden",
    "white-space": "nowrap",
    "width": LENGTH,
}


class Page(HTMLParser):
    """The text of a bar without its styles, and the width and color of its segments."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.segments = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert [name for name, _ in attrs] in (["style"], [])
        styles = dict(part.split(":") for part in (attrs[0][1] or "").split(";")) if attrs else {}
        for name, value in styles.items():
            assert re.fullmatch(STYLES[name], value), (name, value)
        if "%" in styles.get("width", ""):
            self.segments.append((float(styles["width"].rstrip("%")), styles["background"]))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook shows: the HTML of each output in its last state."""
    outputs: list[str] = []

    class Handle:
        def __init__(self, bar: Any) -> None:
            self.place = len(outputs)
            outputs.append(html_of(bar))

        def update(self, bar: Any) -> None:
            outputs[self.place] = html_of(bar)

    def html_of(bar: Any) -> str:
        bundle = bar._repr_mimebundle_()
        assert sorted(bundle) == ["text/html", "text/plain"]
        return bundle["text/html"]

    monkeypatch.setattr(IPython.display, "display", lambda bar, display_id: Handle(bar))
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return outputs


def run(given: Progress = None, total: int | None = 200, error: BaseException | None = None) -> None:
    """A call of which half is done when it ends."""
    counts = {"created": 0, "failed": 0, "updated": 0}
    with Reporter(given, total, what="upsert") as reporter:
        reporter.track(counts)
        counts |= {"created": 90, "failed": 10}
        reporter.advance(100)
        if error is not None:
            raise error


def test_a_notebook_shows_the_statuses(shown: list[str]) -> None:
    """With their numbers, in the colors of results; also as text, if styles are dropped."""
    run(total=100)
    [html] = shown
    page = Page(html)
    assert page.segments == [(90.0, COLORS["created"]), (10.0, COLORS["failed"])]
    assert "100%" in page.text
    assert "100/100" in page.text
    assert " · 90 created ·" in " ".join(page.text.split())
    assert "10 failed" in page.text
    assert "updated" not in page.text


@pytest.mark.parametrize(
    ("error", "color", "word"),
    [
        (KeyboardInterrupt(), AMBER, "interrupted"),
        (ef.StatementCancelledError("stopped"), AMBER, "interrupted"),
        (OSError("disk"), RED, "failed"),
    ],
)
def test_a_call_that_does_not_end_well(shown: list[str], error: BaseException, color: str, word: str) -> None:
    """The bar is as wide as what was done."""
    with pytest.raises(type(error)):
        run(error=error)
    page = Page(shown[0])
    assert page.segments == [(50.0, color)]
    assert f"50% {word}" in page.text
    assert "90 created" in page.text


def test_a_call_that_is_cancelled(store: ef.EntityStore, shown: list[str]) -> None:
    """It ends without an exception, and its bar is that of an interrupted call."""
    cancel = threading.Event()
    frame = pl.DataFrame({"id": [str(n) for n in range(100)]})
    entities = ef.entities(frame, "note", id="id")
    store.upsert(entities[:40], progress=False)
    cancel.set()
    result = store.upsert(entities, batch_size=10, cancel=cancel)
    page = Page(shown[0])
    assert result.counts["cancelled"] == 100
    assert page.segments in ([], [(0.0, AMBER)])
    assert "interrupted" in page.text
    assert "100 cancelled" in page.text


def test_without_a_total(shown: list[str]) -> None:
    """How full the bar is is not known before the end."""
    run(total=None)
    assert Page(shown[0]).segments == [(90.0, COLORS["created"]), (10.0, COLORS["failed"])]
    with pytest.raises(KeyboardInterrupt):
        run(total=None, error=KeyboardInterrupt())
    assert Page(shown[1]).segments == [(100.0, AMBER)]


def test_the_numbers_of_a_mirror(store: ef.EntityStore, shown: list[str]) -> None:
    """Those of both of its parts, each once."""
    frame = ef.entities(pl.DataFrame({"id": ["a", "b", "c", "d"]}), "note", id="id")
    store.upsert(frame[:3], progress=False)
    store.mirror(frame[1:], max_delete=1)
    assert "1 created · 2 unchanged · 1 deleted" in " ".join(Page(shown[0]).text.split())


@pytest.mark.parametrize("given", [None, True, "log"])
@pytest.mark.parametrize("notebook", [False, True])
def test_a_short_call_shows_nothing(
    store: ef.EntityStore, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    given: Progress, notebook: bool,
) -> None:  # fmt: skip
    """Neither does one that fails at once leave a bar above its error."""
    monkeypatch.setattr(progress, "DELAY", 3600.0)
    monkeypatch.setattr(progress, "in_notebook", lambda: notebook)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    one = ef.ids("note", ["a"])
    store.upsert(one, progress=given)
    store.get(one, progress=given)
    store.delete(one, progress=given)
    with pytest.raises(ef.SchemaError):
        store.upsert(pl.DataFrame({"x": [1]}), progress=given)
    assert shown == []
    assert capsys.readouterr().err == ""


def test_lines_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A line every few seconds and one at the end, with rows, rate and numbers by status."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(lines, "EVERY", 0.001)
    written = threading.Event()
    emit = lines._emit

    def emitted(text: str) -> None:
        emit(text)
        # The first lines may be written before anything is reported.
        if "100 of 200 rows" in text and "failed" in text:
            written.set()

    monkeypatch.setattr(lines, "_emit", emitted)
    with caplog.at_level(logging.INFO, "entityframes"), Reporter(None, 200, what="upsert") as reporter:
        reporter.track({"created": 90, "failed": 10})
        reporter.advance(100)
        assert written.wait(60)
        reporter.advance(100)
    messages = [record.getMessage() for record in caplog.records]
    rate = r"[\d.]+ s, [\d,]+ rows/s"
    half = rf"upsert: 100 of 200 rows \(50%\), {rate}, [\d,]+ s left; 90 created, 10 failed"
    assert any(re.fullmatch(half, message) for message in messages)
    assert re.fullmatch(rf"upsert: done, 200 rows, {rate}; 90 created, 10 failed", messages[-1])


def test_lines_that_nobody_logs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They are printed if they were asked for, and otherwise there are none."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run("log", error=KeyboardInterrupt())
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("upsert: interrupted, 100 of 200 rows (50%), ")
    run()
    assert capsys.readouterr().err == ""


def test_a_display_that_hangs_or_fails(
    store: ef.EntityStore, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call does not wait for it, and does not fail."""
    monkeypatch.setattr(progress, "_DRAWN_SECONDS", 0.0)
    ended = threading.Event()

    def display(*_: Any, **__: Any) -> None:
        ended.wait(60)
        raise OSError("no browser")

    monkeypatch.setattr(IPython.display, "display", display)
    assert store.upsert(ef.ids("note", ["a"])).counts["created"] == 1
    ended.set()


def test_an_unknown_way_to_show_it(store: ef.EntityStore) -> None:
    """The message lists those there are."""
    with pytest.raises(ValueError, match="'log' or a callable, got 'bars'"):
        store.upsert(ef.ids("note", ["a"]), progress="bars")  # type: ignore[arg-type]
