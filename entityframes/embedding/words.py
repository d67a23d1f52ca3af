"""What a word is: the one rule of text search, the same on every engine because it is applied here.

A text is cut into chains, which keep identifiers, paths, addresses, versions and numbers together: ``a.b``,
``snake_case``, ``https://x.org/y``, ``1,000.5``. The words of a chain are its parts (letters with their marks, or
digits; camelCase is cut at its capitals), the whole of it, and what stands between its slashes and between its dots.
Characters of scripts that are written without blanks are words one by one and in pairs. Words are composed (NFKC) and
in one case; those of a to z lose their English ending.
"""

from __future__ import annotations

import re

import polars as pl

_UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\u{30FC}\u{FF70}]&&[\p{L}\p{M}]]"
)
_RUN = r"[\p{L}\p{M}\p{N}]+"
_CHAIN = (
    r"\p{Nd}{1,3}(?:,\p{Nd}{3})+(?:\.\p{Nd}+)?"
    rf"|{_RUN}(?:[_\-./:@'’\\+]{{1,3}}{_RUN})*(?:\+\+|#)?"
)
_PART = rf"{_UNSPACED}+|[[\p{{L}}\p{{M}}]--{_UNSPACED}]+|\p{{N}}+"
#: A character with its marks.
_CHARACTER = r"\P{M}\p{M}*|^\p{M}+"

#: A word has at most so many characters; of a longer one, such as an encoded picture, they are its beginning.
_LONGEST = 200
#: Of a query so many characters are read.
_READ = 10_000

#: Words that say little about what a text is about: a query that has others is asked without them.
STOP_WORDS = frozenset(
    re.findall(
        r"[\w']+",
        "a about after all am an and any are as at be been before but by can did do does doing for from had has have "
        "how i if in into is it its just me my no not of off on or our out over own same she should so some such than "
        "that the their them then there these they this those through to too under until up very was we were what "
        "when where which while who whom why will with you your don't doesn't didn't isn't aren't wasn't weren't won't "
        "can't couldn't wouldn't shouldn't hasn't haven't hadn't i'm i've i'd i'll it's that's there's what's who's "
        "where's how's let's you're you've you'll we're we've we'll they're they've they'll he's she's",
    )
)


def count(texts: pl.Series) -> pl.DataFrame:
    """The words of each text, with how often they come.

    Returns:
        A row for each text, in their order: words List(String), each once, frequencies List(UInt32), in the order of
        the words, and length UInt32, how many they are together.
    """
    rows = pl.DataFrame({"chain": texts.str.extract_all(_CHAIN)}).with_row_index("row")
    chains = rows.explode("chain").drop_nulls("chain").group_by("row", "chain").agg(frequency=pl.len())
    # Few of the chains are different ones.
    words = _cut(chains["chain"].unique()).select("chain", "word").unique()
    found = chains.lazy().join(words.lazy(), on="chain").group_by("row", "word").agg(pl.col("frequency").sum())
    lists = found.group_by("row").agg("word", "frequency", length=pl.col("frequency").sum())
    empty = pl.lit([])
    counted = rows.lazy().select("row").join(lists, on="row", how="left", maintain_order="left").select(
        words=pl.col("word").fill_null(empty.cast(pl.List(pl.String))),
        frequencies=pl.col("frequency").fill_null(empty.cast(pl.List(pl.UInt32))),
        length=pl.col("length").fill_null(0).cast(pl.UInt32),
    )  # fmt: skip
    return counted.collect()


def text_of(title: str | pl.Expr) -> pl.Expr:
    """What of an entity is searched: its title, if it has one, and its content."""
    return pl.concat_str(title, "content", separator="\n", ignore_nulls=True).alias("text")


def fold(texts: pl.Series) -> pl.Series:
    """Texts composed and in one case, so that equal is what differs in nothing else."""
    # By way of capitals, which ß, ı and ς share with ss, i and σ.
    one_case = texts.str.normalize("NFKC").str.to_uppercase().str.to_lowercase().str.normalize("NFKC")
    return one_case.str.replace_many(["i\u0307", "ς", "’"], ["i", "σ", "'"])


def _cut(chains: pl.Series) -> pl.DataFrame:
    """The words of chains: chain, word, and kind, which is part, whole or piece."""
    composed = chains.str.normalize("NFKC")
    camel = composed.str.replace_all(r"(\p{Ll})(\p{Lu})", "$1\0$2").str.replace_all(r"(\p{Lu})(\p{Lu}\p{Ll})", "$1\0$2")
    folded = pl.DataFrame({"chain": chains, "whole": fold(chains), "part": fold(camel).str.extract_all(_PART)})

    parts = folded.select("chain", "part").explode("part").drop_nulls("part").with_row_index("run")
    unspaced = pl.col("part").str.contains(_UNSPACED)
    spaced = parts.filter(~unspaced).select("chain", word="part", kind=pl.lit("part"))

    characters = parts.filter(unspaced).with_columns(pl.col("part").str.extract_all(_CHARACTER)).explode("part")
    next_one = pl.col("part").shift(-1).over("run")
    pairs = characters.select("chain", word=pl.col("part") + next_one, kind=pl.lit("part")).drop_nulls("word")
    # Alone it is asked for only where there is no pair.
    alone = pl.when(pl.len().over("run") == 1).then(pl.lit("part")).otherwise(pl.lit("piece"))
    singles = characters.select("chain", word="part", kind=alone)

    whole = pl.col("whole")
    several = folded.filter(whole != pl.col("part").list.first(), ~whole.str.contains(_UNSPACED))
    wholes = several.select("chain", word=whole, kind=pl.lit("whole"))
    between = pl.concat_list(whole.str.extract_all(r"[^/\\:@+]+"), whole.str.extract_all(r"[^/\\:@+.]+"))
    pieces = several.select("chain", word=between, kind=pl.lit("piece")).explode("word")

    cut = pl.concat([spaced, pairs, singles, wholes, pieces]).drop_nulls("word")
    cut = cut.with_columns(_stems(cut["word"].str.replace_all(r"\s", "").str.slice(0, _LONGEST)))
    return cut.unique(["chain", "word"], keep="first", maintain_order=True)


def _stems(words: pl.Series) -> pl.Series:
    """Words of the letters a to z without their English endings, others as they are."""
    import Stemmer

    english = words.to_frame("word").unique().filter(pl.col("word").str.contains("^[a-z]+$")).to_series()
    stems = Stemmer.Stemmer("english").stemWords(english.to_list())
    return words.replace(english, pl.Series(stems, dtype=pl.String))


class Query:
    """The words of a question. A text answers it that has one of its chains: the whole of it, or every part."""

    #: chain UInt32, word, points and needed UInt32: a text has a chain if its words bring as many points as are needed.
    terms: pl.DataFrame

    def __init__(self, text: str) -> None:
        found = pl.Series("chain", [text[:_READ]]).str.extract_all(_CHAIN).explode().drop_nulls()
        chains = found.to_frame().with_columns(whole=fold(found)).unique("whole", maintain_order=True)
        telling = chains.filter(~pl.col("whole").is_in(STOP_WORDS))
        chains = (chains if telling.is_empty() else telling).with_row_index("number")

        part = pl.col("kind") == "part"
        # C is a part of C++ that is not meant by it.
        marked = pl.col("whole").str.contains(r"(?:\+\+|#)$")
        asked = _cut(chains["chain"]).join(chains, on="chain").filter(pl.col("kind") != "piece", ~(part & marked))
        needed = part.sum().over("number").clip(1).cast(pl.UInt32)
        points = pl.when(part).then(pl.lit(1, pl.UInt32)).otherwise(needed)
        self.terms = asked.select(pl.col("number").alias("chain"), "word", points=points, needed=needed)

        runs = chains.select("number", run=pl.col("whole").str.extract_all(f"{_UNSPACED}+")).explode("run")
        self._runs = runs.filter(pl.col("run").str.count_matches(_CHARACTER) > 2)

    def answered(self, found: pl.DataFrame) -> pl.DataFrame:
        """Those of the entities that have its words which answer it: pairs of characters may be scattered in a text."""
        if self._runs.is_empty():
            return found
        texts = found.select(text_of(pl.col("metadata").str.json_path_match("$.title")))["text"]
        words = count(texts).with_row_index("row").select("row", word="words").explode("word")
        has = pl.col("points").sum() >= pl.col("needed").first()
        chains = words.join(self.terms, on="word").group_by("row", "chain").agg(has=has).filter("has")
        folded = fold(texts)
        for number, run in self._runs.rows():
            rows = pl.arg_where(folded.str.contains(run, literal=True), eager=True)
            chains = chains.filter((pl.col("chain") != number) | pl.col("row").is_in(rows.implode()))
        return found[chains["row"].unique().sort()]
