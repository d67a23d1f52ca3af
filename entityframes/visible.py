"""Text from data, shown to people: characters that a terminal or a browser acts on are written as escapes."""

from __future__ import annotations

import unicodedata

#: Controls (escape, bell, backspace, line ends), formats (bidi overrides, zero width, tags), surrogates, and the
#: separators of lines and paragraphs.
_ACTED_ON = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: object, keep: str = "") -> str:
    """A text whose control and format characters are escapes such as ``\\x1b`` and ``\\u202e``.

    Args:
        text: anything; None is an empty text.
        keep: characters that stay as they are, such as line ends where there may be several lines.
    """
    shown = "" if text is None else str(text)
    if shown.isprintable():
        return shown
    return "".join(
        ascii(one)[1:-1] if unicodedata.category(one) in _ACTED_ON and one not in keep else one for one in shown
    )


def visible_json(text: str) -> str:
    """JSON that means the same, with such characters in its strings as JSON's own escapes."""
    return "".join(
        "".join(f"\\u{unit:04x}" for unit in _utf16(one))
        if one not in "\n\t" and unicodedata.category(one) in _ACTED_ON
        else one
        for one in text
    )


def _utf16(character: str) -> tuple[int, ...]:
    units = character.encode("utf-16-be", "surrogatepass")
    return tuple(int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
