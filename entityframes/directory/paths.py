"""The path codec: each entity key maps to exactly one path below the root, and the path decodes to the key.

An entity is the file ``<type>/<id>.md``. Slashes in the id separate folders, slashes in the type do not. Ordinary names
are left as they are. Characters that some file system forbids, drops or interprets are percent-escaped (``%3A``: UTF-8
bytes, upper-case hex), and so is a ``%`` that would read as an escape. A component over 200 bytes is continued in the
next one, and marked with ``%~`` at its end.

File systems normalise names in different ways. Therefore only NFC text is literal, other text is escaped, and decoding
normalises the literal parts to NFC. An escape is never followed by a literal character that could compose with its
last digit. So the paths of two different keys can collide only on a file system that ignores letter case or invisible
characters; `folded` detects that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from unicodedata import category, is_normalized, normalize

__all__ = ["folded", "key_of", "path_of"]

#: Maximum bytes of a component, including the continuation mark and excluding the suffix: file systems allow 255.
COMPONENT_BYTES = 200
#: The end of a component that is continued in the next one.
CONTINUED = "%~"
#: First characters of names that are not entities, by default.
SKIPPED = "._"
TYPE_BYTES = 255
ID_BYTES = 1024

# Device names on Windows, also with an extension.
_DEVICE = r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9¹²³]) *(?:\.|/|\Z)"
_DEVICE_NAME = re.compile(_DEVICE, re.IGNORECASE)

# A path that needs no escapes: ASCII, no leading "._ ", no folder with a trailing ". ", nothing forbidden.
_FIRST = r"[^\W_]|[!#$&'()+,;=@\[\]^`{}~-]"
_COMPONENT = rf"(?!{_DEVICE})(?:{_FIRST})"
_INNER = r"[\w !#$&'()+,;=@\[\]^`{}~.-]"
_LAST = r"[\w!#$&'()+,;=@\[\]^`{}~-]"
_PLAIN = re.compile(rf"(?:{_COMPONENT}(?:{_INNER}*{_LAST})?/)*{_COMPONENT}{_INNER}*", re.ASCII | re.IGNORECASE)

# Characters that are always escaped: control characters, characters that Windows forbids, bidirectional formatting and
# other invisible characters, and noncharacters. Joiners and variation selectors are not among them: emoji and several
# scripts need them.
_FORBIDDEN = re.compile(
    r'[\x00-\x1f\x7f-\x9f<>:"\\|?*/\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufdd0-\ufdef'
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
# Characters that a case-insensitive file system may ignore, too (Unicode's Default_Ignorable_Code_Point).
_IGNORED = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# A UTF-8 encoded character in escapes, except NUL.
_TAIL = "%[89AB][0-9A-F]"
_CHARACTER = re.compile(
    rf"(?:%0[1-9A-F]|%[1-7][0-9A-F]|%(?:C[2-9A-F]|D[0-9A-F]){_TAIL}|%E0%[AB][0-9A-F]{_TAIL}|%ED%[89][0-9A-F]{_TAIL}"
    rf"|%E[1-9A-CEF]{_TAIL}{_TAIL}|%F0%[9AB][0-9A-F]{_TAIL}{_TAIL}|%F[123]{_TAIL}{_TAIL}{_TAIL}"
    rf"|%F4%8[0-9A-F]{_TAIL}{_TAIL})"
)
_ESCAPES = re.compile(f"({_CHARACTER.pattern}+)")


def path_of(entity_type: str, id: str, suffix: str = ".md", skipped: str = SKIPPED) -> str:
    """The canonical path of an entity, relative to the root and with ``/`` between its components.

    A leading dot is always escaped, even if it is not in `skipped`, the first characters of names that are not
    entities.

    Raises:
        ValueError: the type or the id is empty, or contains a NUL or a lone surrogate.
    """
    if suffix and len(id) <= COMPONENT_BYTES and _PLAIN.fullmatch(id):
        return f"{_folder_of(entity_type, skipped)}/{id}{suffix}"
    _check_text("id", id)
    pieces = _split(id)
    components = [part for piece in pieces[:-1] for part in _encode(piece, skipped)]
    components += _encode(pieces[-1], skipped, followed=bool(suffix))
    return f"{_folder_of(entity_type, skipped)}/{'/'.join(components)}{suffix}"


def key_of(path: str, default_type: str, suffixes: Sequence[str], skipped: str = SKIPPED) -> tuple[str, str]:
    """The type and the id of the entity at a path; a file in the root is of the default type.

    Suffixes match case-insensitively, the longest first. No suffix may end in another one: ids would be ambiguous.

    Raises:
        ValueError: the file cannot be an entity; the message is the reason.
    """
    suffix = _suffix_of(path, tuple(suffixes))
    stem = path[: len(path) - len(suffix)]
    if not stem or stem[-1] == "/":
        raise ValueError("the name consists of a suffix only")
    if stem[0] in "._/" or "/." in stem or "/_" in stem or "//" in stem:
        _check_components(stem.split("/"), skipped)
    if stem.isascii() and "%" not in stem and "\0" not in stem:
        entity_type, slash, id = stem.partition("/")
        if not slash:
            entity_type, id = default_type, stem
    else:
        _check_text("name", stem)
        entity_type, id = _decode_key(stem.split("/"), default_type)
    for what, text, limit in (("type", entity_type, TYPE_BYTES), ("id", id, ID_BYTES)):
        if 4 * len(text) > limit and len(text.encode()) > limit:
            raise ValueError(f"the {what} is over the limit of {limit} bytes")
    return entity_type, id


def folded(path: str) -> str:
    """A string that is equal for paths that some file system treats as the same.

    This is Unicode's canonical caseless matching, without the characters that some file systems ignore.
    """
    if path.isascii():
        return path.lower()
    return normalize("NFC", _IGNORED.sub("", normalize("NFD", normalize("NFD", path).casefold())))


@lru_cache(maxsize=1024)
def _folder_of(entity_type: str, skipped: str) -> str:
    """The folder of a type; a long type takes several components."""
    _check_text("type", entity_type)
    return "/".join(_encode(entity_type, skipped))


def _split(id: str) -> list[str]:
    """The non-empty pieces of an id: a slash that would make an empty piece becomes part of a neighboring piece."""
    pieces = [""]
    last = len(id) - 1
    for position, character in enumerate(id):
        if character == "/" and pieces[-1] and position < last:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def _encode(piece: str, skipped: str, followed: bool = False) -> list[str]:
    """The component for a piece of a key, or several components for a long piece.

    Args:
        piece: the text; slashes in it are not separators.
        skipped: characters, in addition to dot and space, that no component may begin with.
        followed: whether a suffix follows, so that a trailing dot or space does not end the file name.
    """
    whole = followed or piece[-1] not in ". "
    if whole and len(piece) <= COMPONENT_BYTES and "/" not in piece and _PLAIN.fullmatch(piece):
        return [piece]
    escaped = set() if is_normalized("NFC", piece) else set(_not_composed(piece))
    if not whole:
        escaped.add(len(piece) - 1)
    components: list[str] = []
    start = 0
    while True:
        tokens, fits = _tokens(piece, start, escaped, skipped)
        if fits:
            return [*components, "".join(tokens)]
        components.append("".join(tokens) + CONTINUED)
        start += len(tokens)


def _tokens(piece: str, start: int, escaped: set[int], skipped: str) -> tuple[list[str], bool]:
    """The characters of one component, each literal or escaped, and whether they reach the end of the piece."""
    tokens: list[str] = []
    used = 0
    continuing = 0  # number of tokens that fit if the component is continued
    after_escape = True  # at the start, too, there is nothing to compose with
    for position in range(start, len(piece)):
        character = piece[position]
        if (
            position in escaped
            or _FORBIDDEN.match(character)
            or (after_escape and _composes(character))
            or (character == "%" and _reads_as_code(piece, position))
            or (not tokens and (character in ". " or character in skipped or _DEVICE_NAME.match(piece, position)))
        ):
            token = "".join(f"%{byte:02X}" for byte in character.encode())
            used += len(token)
        else:
            token = character
            used += len(token.encode())
        after_escape = len(token) > 1
        if used > COMPONENT_BYTES:
            return tokens[:continuing], False
        tokens.append(token)
        if used <= COMPONENT_BYTES - len(CONTINUED):
            continuing = len(tokens)
    return tokens, True


def _reads_as_code(piece: str, position: int) -> bool:
    """Whether a literal ``%`` here would read as an escape or as the mark, also in NFD or in another letter case."""
    ahead = normalize("NFD", piece[position : position + 12]).upper()
    return ahead == CONTINUED or _CHARACTER.match(ahead) is not None


def _not_composed(piece: str) -> Iterator[int]:
    """The positions to escape so that only NFC text remains; `_tokens` escapes what would compose with an escape."""
    starts = [position for position, character in enumerate(piece) if not position or not _composes(character)]
    for start, end in zip(starts, [*starts[1:], len(piece)], strict=True):
        if not is_normalized("NFC", piece[start:end]):
            yield start if end == start + 1 or not is_normalized("NFC", piece[start]) else start + 1


def _composes(character: str) -> bool:
    """Whether a character may compose or be reordered with the one before it: marks, Hangul vowels and finals.

    The last range belongs to the Kirat Rai script, whose vowels compose as well.
    """
    return character >= "\u0300" and (
        category(character)[0] == "M" or "\u1160" <= character <= "\u11ff" or "\U00016d63" <= character <= "\U00016d6a"
    )


def _decode_key(components: list[str], default_type: str) -> tuple[str, str]:
    """The type and the id from the components of a path without its suffix."""
    pieces = []
    partial = ""
    for component in components[:-1]:
        if component.endswith(CONTINUED):
            partial += component[: -len(CONTINUED)]
        else:
            pieces.append(_decode(partial + component))
            partial = ""
    pieces.append(_decode(partial + components[-1]))
    if len(components) == 1:
        return default_type, pieces[0]
    if len(pieces) == 1:
        raise ValueError(f"the name of the folder ends in {CONTINUED}, so the type is incomplete")
    return pieces[0], "/".join(pieces[1:])


def _decode(piece: str) -> str:
    stretches = _ESCAPES.split(piece)
    for position, stretch in enumerate(stretches):
        if position % 2:
            stretches[position] = bytes.fromhex(stretch.replace("%", "")).decode()
        else:
            stretches[position] = normalize("NFC", stretch)
    return "".join(stretches)


def _suffix_of(path: str, suffixes: tuple[str, ...]) -> str:
    lowered = path[-64:].lower()
    for suffix in _longest_first(suffixes):
        if lowered.endswith(suffix):
            return suffix
    raise ValueError(f"the name does not end in {' or '.join(suffixes)}")


@lru_cache(maxsize=16)
def _longest_first(suffixes: tuple[str, ...]) -> list[str]:
    return sorted((suffix.lower() for suffix in suffixes), key=len, reverse=True)


def _check_components(components: list[str], skipped: str) -> None:
    for component in components:
        if component in ("", ".", ".."):
            raise ValueError("a component of the path is empty, '.' or '..'")
        if component[0] in skipped:
            raise ValueError(f"a component of the path begins with {component[0]!r}")


def _check_text(what: str, text: str) -> None:
    if not text:
        raise ValueError(f"the {what} is empty")
    if "\0" in text:
        raise ValueError(f"the {what} contains a NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} is not UTF-8") from None
