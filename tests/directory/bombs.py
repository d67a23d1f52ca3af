"""Front matter that exhausts the time or memory of a careless YAML reader."""

from __future__ import annotations

from math import isqrt


def bombs(size: int) -> dict[str, str]:
    """Documents of about the given size in bytes, by name; some are short, because they are just as harmful then."""
    laughs = (f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
    return {
        "laughs": "a: &a [x]\n" + "".join(laughs),
        "flow": "a: " + "[" * size,
        "maps": "a: " + "{a: " * (size // 4),
        "keys": "a: " + "{" * size,
        "dashes": "a:\n  " + "- " * (size // 2),
        "questions": "? " * (size // 2),
        "lines": "".join(" " * n + "a:\n" for n in range(isqrt(2 * size) - 40)),
        "brackets in lines": "a:\n" + " [\n" * (size // 3),
        "self": "a: &a [*a]",
        "tags": "a: !!python/name:os.system x",
        "anchors": "".join(f"k{n}: &a{n} 1\n" for n in range(size // 18)),
        "quote": "a: '" + "x" * size,
        "double": 'a: "' + "\\x41" * (size // 5),
        "hex": "a: 0x" + "f" * size,
        "digits": "a: " + "9" * size,
        "float": "a: 1." + "9" * size + "x",
        "exponent": "a: 1e" + "9" * size,
        "commas": "a: [" + "x," * (size // 2),
        "fields": "".join(f"k{n}:\n" for n in range(size // 10)),
        "same": "a: 1\n" * (size // 5),
        "items": "a:\n" + "- a\n" * (size // 4),
        "spaces": "a: x" + " " * size + "\tx",
        "many spaces": ("a: x" + " " * 50 + "\n") * (size // 70) + "!",
        "comments": "# x\n" * (size // 4),
        "colons": "a" + ":" * size,
        "plain lines": "a: x\n" + "  y\n" * (size // 4),
        "words": "a: [" + "a a" * (size // 3) + "]",
        "pipe": "a: |\n" + "\n" * size,
        "dots": "a: " + "." * size,
        "percent": "%" * size,
    }
