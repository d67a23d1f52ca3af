"""Text from data made safe to display: characters that a terminal or a browser interprets are escaped."""

from __future__ import annotations

import unicodedata

#: Unicode categories: control characters (escape, bell, backspace, line breaks), format characters (bidi overrides,
#: zero width, tags), surrogates, and line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: object, keep: str = "") -> str:
    """Replace control and format characters by escapes such as ``\\x1b`` and ``\\u202e``.

    Args:
        text: any object, which is converted with `str`; None becomes an empty string.
        keep: characters to leave unchanged, such as line breaks in text of several lines.
    """
    shown = "" if text is None else str(text)
    if shown.isprintable():
        return shown
    return "".join(
        ascii(one)[1:-1] if unicodedata.category(one) in _UNSAFE and one not in keep else one for one in shown
    )


def visible_json(text: str) -> str:
    """Equivalent JSON in which these characters are written as JSON escapes."""
    return "".join(
        "".join(f"\\u{unit:04x}" for unit in _utf16(one))
        if one not in "\n\t" and unicodedata.category(one) in _UNSAFE
        else one
        for one in text
    )


def _utf16(character: str) -> tuple[int, ...]:
    units = character.encode("utf-16-be", "surrogatepass")
    return tuple(int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
