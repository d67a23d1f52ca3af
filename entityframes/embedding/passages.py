"""Passages: the pieces of a long text that are embedded one by one, each with where it stands in the text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

from entityframes.errors import SpaceError

#: The rules of `entityframes.embedding.cutting`. A change that moves a boundary of any text gets a new version, since
#: every text of every space would be embedded again.
CUTTER, VERSION = "entityframes", 1

Format = Literal["markdown", "text"]


class Passage(NamedTuple):
    """A piece of a text: ``content[start:end]``."""

    #: The first character. Offsets count characters, not bytes.
    start: int
    #: The character after the last one.
    end: int
    #: The headings that hold for the whole passage, outermost first, joined with " > "; "" if there are none.
    heading: str
    #: What is embedded: the title, the heading and the passage, at most `Passages.size` characters.
    text: str


@dataclass(frozen=True, kw_only=True)
class Passages:
    """How texts are cut into passages, which are embedded and found one by one.

    A text is cut at its structure: at headings, then between paragraphs, list items, lines and sentences, and only
    where these are too long between words and within them. Code blocks and table rows that fit into a passage stay
    whole. Where several places are equally good, the characters that follow decide, not the distance from the
    beginning. An edit therefore moves only the boundaries next to it: usually one or two passages are embedded again,
    however long the text. A changed heading changes the passages of its section, and a changed title those of the
    entity.

    Args:
        size: the maximum length of a text that is embedded, in characters. Long titles and headings are shortened, so
            that they never take more than three eighths of it. `WordLlamaEmbedder` reads 800 characters.
        overlap: how many characters of a passage are repeated at the beginning of the next one of its section, at most.
            The length includes them. An edit near a boundary changes both passages.
        format: "markdown", or "text" for texts without headings, code blocks and tables.
        title_fields: the metadata fields that make up the title of an entity, which is embedded with each passage.

    Raises:
        TypeError: `size` or `overlap` is not an integer, or `title_fields` is not a list or tuple of strings.
        ValueError: `size` is less than 1, `overlap` is negative or not less than `size`, or `format` is another word.

    Examples:
        >>> page = "# Moths\\n\\nGrace found one.\\n\\n## Repairs\\n\\nIt was taped into the log."
        >>> for passage in ef.Passages(size=60).cut(page):
        ...     print(passage.start, passage.end, passage.heading, "|", passage.text.splitlines()[-1])
        0 25 Moths | Grace found one.
        27 65 Moths > Repairs | It was taped into the log.
    """

    size: int = 800
    overlap: int = 0
    format: Format = "markdown"
    title_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("size", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1 character, got {self.size}")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"overlap must be at least 0 and less than size ({self.size}), got {self.overlap}")
        if self.format not in get_args(Format):
            raise ValueError(f"format must be 'markdown' or 'text', got {self.format!r}")
        fields = cast(Any, self.title_fields)
        if not isinstance(fields, (list, tuple)) or not all(isinstance(field, str) for field in fields):
            raise TypeError(f"title_fields must be a list or tuple of field names, got {fields!r}")
        object.__setattr__(self, "title_fields", tuple(fields))

    def spec(self) -> str:
        """These options and the version of the cutter as canonical JSON, which a space records.

        Examples:
            >>> ef.Passages(size=400).spec()
            '{"cutter":"entityframes","format":"markdown","overlap":0,"size":400,"title_fields":[],"version":1}'
        """
        options = {**asdict(self), "cutter": CUTTER, "version": VERSION}
        return json.dumps(options, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_spec(cls, spec: str) -> Passages:
        """The passages of a space, from what `spec` returned.

        Another version of the cutter is refused, because it would cut other passages: all texts of the space would be
        embedded again without a word, and half of them would be while two versions write to one store.

        Raises:
            SpaceError: the space was cut by another version, or the record is not one of `spec`.

        Examples:
            >>> ef.Passages.from_spec(ef.Passages(size=400).spec())
            Passages(size=400, overlap=0, format='markdown', title_fields=())
        """
        try:
            options = json.loads(spec)
            recorded = options.pop("cutter"), options.pop("version")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpaceError(f"the passages of this space are recorded as {spec!r}, which is not readable") from error
        if recorded != (CUTTER, VERSION):
            raise SpaceError(
                f"the texts of this space were cut by the cutter {recorded[0]} {recorded[1]}, but the one installed is "
                f"{CUTTER} {VERSION}, which would cut them at other places: use the version of entityframes that wrote "
                "the space, or embed into a new space with space='...', and activate it"
            )
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise SpaceError(f"the passages of this space are recorded as {spec!r}: {error}") from error

    def cut(self, content: str, title: str | None = None) -> list[Passage]:
        """Cut a text into passages.

        Args:
            content: the text.
            title: what is embedded in front of each passage, unless its heading begins with it.

        Returns:
            The passages in the order of the text. Together they contain all of its characters that are not whitespace;
            they overlap only by `overlap`. A blank text has none, or a single empty one that consists of its title.

        Examples:
            >>> [passage.text for passage in ef.Passages(size=30).cut("One sentence. And another one.", title="Two")]
            ['Two\\nOne sentence.', 'Two\\nAnd another one.']
        """
        from entityframes.embedding.cutting import Cutter

        line = " ".join((title or "").split())
        cutter = Cutter(content, line, self.size, self.overlap, self.format == "markdown")
        passages = [Passage(*piece) for piece in cutter.pieces()]
        return passages or ([Passage(0, 0, "", line[: self.size])] if line else [])
