"""The display of a result."""

from __future__ import annotations

import polars as pl
import pytest

import entityframes as ef
from entityframes import results
from entityframes.directory.plan import ACTIONS as SYNC_ACTIONS
from entityframes.engines.embedding import STATES
from entityframes.progress import Reporter
from entityframes.statuses import COLORS
from entityframes.writing.plan import ACTIONS as PLAN_ACTIONS

ROWS = pl.DataFrame(
    {"entity_type": ["t"] * 4, "id": ["a", "<b>&'\"", "a", "c"], "content": ["x", "<script>\0", "y", "z"]}
)


def test_text(store: ef.EntityStore) -> None:
    """Two lines: counts, and the rate with the first failure."""
    first, second = repr(store.upsert(ROWS)).split("\n")
    assert first == "UpsertResult: 2 created, 1 duplicate, 1 failed"
    assert second.startswith("4 rows in 1 batch, ")
    assert "row 1" in second
    assert "NUL" in second


def test_a_null_in_a_key(store: ef.EntityStore) -> None:
    """It is shown as null, and not as an empty id."""
    result = store.upsert(pl.DataFrame({"entity_type": ["t", "t", None], "id": [None, "", None]}))
    assert "first failure: row 0 (t/null): id is null" in repr(result)
    with pytest.raises(ef.EntityFramesError, match=r"row 1 \(t/\): id is empty; row 2: "):
        result.raise_for_failures()


def test_html_is_escaped_and_has_no_script(store: ef.EntityStore) -> None:
    """Ids and errors are data, not markup."""
    page = store.upsert(ROWS)._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "2 created" in page
    assert "NUL" in page


def test_raise_for_failures(store: ef.EntityStore) -> None:
    """Nothing happens if all rows succeeded, else an error with the count and the first failure."""
    store.upsert(ROWS[:1]).raise_for_failures()
    with pytest.raises(ef.EntityFramesError, match=r"1 failed of 4 rows: row 1 .*NUL"):
        store.upsert(ROWS).raise_for_failures()


def test_succeeded_and_failed(store: ef.EntityStore) -> None:
    """They are filters of the outcomes; a duplicate is neither."""
    result = store.upsert(ROWS)
    assert result.succeeded["row"].to_list() == [2, 3]
    assert result.failed["row"].to_list() == [1]
    assert not result.ok


def test_html_of_an_empty_result(store: ef.EntityStore) -> None:
    """Zero rows are not an error."""
    assert "no rows" in store.upsert(ROWS[:0])._repr_html_()
    assert "no rows" in repr(store.upsert(ROWS[:0]))


def test_progress_bar(
    store: ef.EntityStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """progress=True shows rows, rate and counts on standard error; False shows nothing."""
    monkeypatch.setattr("entityframes.progress.DELAY", 0.0)
    store.upsert(ROWS, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown.replace(".00", "")
    assert "created=2" in shown
    assert "failed=1" in shown
    store.upsert(ROWS, progress=False)
    store.upsert(ROWS)
    assert capsys.readouterr().err == ""


def test_reporter_without_a_total() -> None:
    """The total of a callable is None if the length is unknown."""
    calls = []
    with Reporter(lambda *call: calls.append(call), what="upsert") as reporter:
        reporter.advance(5)
        reporter.advance(2)
    assert calls == [(5, None), (7, None)]


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_status_has_a_color_that_shows_on_light_and_dark() -> None:
    """The contrast is at least 3 on both, which WCAG asks of graphics."""
    statuses = {*results.MIRROR_STATUSES, *results.DELETE_STATUSES, *results.EMBED_STATUSES, *results.SYNC_STATUSES}
    actions = {*PLAN_ACTIONS, "delete", *SYNC_ACTIONS}
    assert statuses | actions | set(STATES) <= set(COLORS)
    for color in COLORS.values():
        own, white, dark = _luminance(color), _luminance("#ffffff"), _luminance("#111111")
        assert (white + 0.05) / (own + 0.05) >= 3
        assert (own + 0.05) / (dark + 0.05) >= 3
