"""The tokenizer of text search. It runs in Python, so that every engine uses the same words.

A text is split into chains, which keep identifiers, paths, addresses, versions and numbers together: ``a.b``,
``snake_case``, ``https://x.org/y``, ``1,000.5``. The words of a chain are its parts (letters with combining marks, or
digits; camelCase is split at capitals), the whole chain, and the pieces between its slashes and between its dots.
In scripts that are written without spaces, single characters and pairs of characters are words. Words are normalized
(NFKC) and case-folded, digits of all scripts are 0 to 9, and joiners and other invisible characters are left out; words
of the letters a to z are reduced to their English stem.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

import polars as pl

UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\u{30FC}\u{FF70}]&&[\p{L}\p{M}]]"
)
#: Characters that may be in a word and are not part of it: soft hyphen, zero-width space, joiners, byte order mark.
_INVISIBLE = r"\u{AD}\u{200B}-\u{200D}\u{2060}\u{FEFF}"
_RUN = rf"[\p{{L}}\p{{N}}][\p{{L}}\p{{M}}\p{{N}}{_INVISIBLE}]*"
CHAIN = (
    r"\p{Nd}{1,3}(?:,\p{Nd}{3})+(?:\.\p{Nd}+)?"
    rf"|{_RUN}(?:[_\-./:@'’\\+]{{1,3}}{_RUN})*(?:\+\+|#)?"
)
_PART = rf"{UNSPACED}+|[[\p{{L}}\p{{M}}]--{UNSPACED}]+|\p{{N}}+"
#: A number whose digits are in groups of three.
_GROUPED = r"^[0-9]{1,3}(?:[,_'][0-9]{3})+(?:\.[0-9]+)?$"
#: What else is one word in two spellings, after case-folding.
_SPELLINGS = {"i\u0307": "i", "ς": "σ", "’": "'", "ё": "е", "œ": "oe"}
#: A character with its combining marks.
_CHARACTER = r"\P{M}\p{M}*|^\p{M}+"

#: The maximum length of a word; longer ones, such as encoded images, are truncated.
_LONGEST = 200
#: The maximum length of a query; the rest is ignored.
_READ = 10_000

#: Words that carry little meaning; they are dropped from a query that has other words.
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
    """The words of each text and their frequencies.

    Returns:
        One row for each text, in input order: words List(String), without duplicates; frequencies List(UInt32), in the
        order of the words; and length UInt32, the total number of words.
    """
    rows = pl.DataFrame({"chain": texts.str.extract_all(CHAIN)}).with_row_index("row")
    chains = rows.explode("chain").drop_nulls("chain").group_by("row", "chain").agg(frequency=pl.len())
    # Most chains occur many times, so each distinct chain is split once.
    words = _split(chains["chain"].unique()).select("chain", "word").unique()
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
    """The searched text of an entity: its title, if it has one, and its content."""
    return pl.concat_str(title, "content", separator="\n", ignore_nulls=True).alias("text")


def fold(texts: pl.Series) -> pl.Series:
    """Normalize (NFKC) and case-fold texts, with the digits 0 to 9 and without invisible characters."""
    # Through upper case, which unifies ß with ss, ı with i, and ς with σ.
    one_case = texts.str.normalize("NFKC").str.to_uppercase().str.to_lowercase().str.normalize("NFKC")
    # Variation selectors choose a glyph, and the tatweel makes an Arabic word longer.
    visible = one_case.str.replace_all(rf"[{_INVISIBLE}\u{{640}}\u{{FE00}}-\u{{FE0F}}]", "")
    folded = visible.str.replace_many(list(_SPELLINGS), list(_SPELLINGS.values()))
    if folded.str.contains(r"[\p{Nd}--0-9]").any():
        folded = folded.str.replace_many(list(_digits()), list(_digits().values()))
    return folded


@cache
def _digits() -> dict[str, str]:
    """The decimal digits of other scripts, and their values."""
    characters = map(chr, range(0x80, sys.maxunicode + 1))
    return {one: str(unicodedata.decimal(one)) for one in characters if unicodedata.category(one) == "Nd"}


def _whole(chains: pl.Series) -> pl.Series:
    """Chains as words, numbers without the separators of their groups."""
    folded = fold(chains).alias("whole")
    grouped = pl.col("whole").str.contains(_GROUPED)
    plain = pl.when(grouped).then(pl.col("whole").str.replace_all("[,_']", "")).otherwise(pl.col("whole"))
    return folded.to_frame().select(plain)["whole"]


def _split(chains: pl.Series) -> pl.DataFrame:
    """The words of chains: chain, word, and kind ("part", "whole" or "piece")."""
    # A zero-width non-joiner is between the parts of a word, as in Persian.
    composed = chains.str.normalize("NFKC").str.replace_all("\u200c", "\0", literal=True)
    camel = composed.str.replace_all(r"(\p{Ll})(\p{Lu})", "$1\0$2").str.replace_all(r"(\p{Lu})(\p{Lu}\p{Ll})", "$1\0$2")
    folded = pl.DataFrame({"chain": chains, "whole": _whole(chains), "part": fold(camel).str.extract_all(_PART)})

    parts = folded.select("chain", "part").explode("part").drop_nulls("part").with_row_index("run")
    unspaced = pl.col("part").str.contains(UNSPACED)
    spaced = parts.filter(~unspaced).select("chain", word="part", kind=pl.lit("part"))

    characters = parts.filter(unspaced).with_columns(pl.col("part").str.extract_all(_CHARACTER)).explode("part")
    next_one = pl.col("part").shift(-1).over("run")
    pairs = characters.select("chain", word=pl.col("part") + next_one, kind=pl.lit("part")).drop_nulls("word")
    # A single character is part of a query only if its run has no pairs.
    alone = pl.when(pl.len().over("run") == 1).then(pl.lit("part")).otherwise(pl.lit("piece"))
    singles = characters.select("chain", word="part", kind=alone)

    whole = pl.col("whole")
    several = folded.filter(whole != pl.col("part").list.first(), ~whole.str.contains(UNSPACED))
    wholes = several.select("chain", word=whole, kind=pl.lit("whole"))
    between = pl.concat_list(whole.str.extract_all(r"[^/\\:@+]+"), whole.str.extract_all(r"[^/\\:@+.]+"))
    pieces = several.select("chain", word=between, kind=pl.lit("piece")).explode("word")

    cut = pl.concat([spaced, pairs, singles, wholes, pieces]).drop_nulls("word")
    cut = cut.with_columns(_stems(cut["word"].str.replace_all(r"\s", "").str.slice(0, _LONGEST)))
    return cut.unique(["chain", "word"], keep="first", maintain_order=True)


def _stems(words: pl.Series) -> pl.Series:
    """The English stems of words of the letters a to z; other words are unchanged."""
    import Stemmer

    english = words.to_frame("word").unique().filter(pl.col("word").str.contains("^[a-z]+$")).to_series()
    stems = Stemmer.Stemmer("english").stemWords(english.to_list())
    return words.replace(english, pl.Series(stems, dtype=pl.String))


class Query:
    """The words of a query. A text matches if it contains one of the chains, as a whole or with all its parts."""

    #: chain UInt32, word, points and needed UInt32: a text contains a chain if its words have at least `needed` points.
    terms: pl.DataFrame

    def __init__(self, text: str) -> None:
        found = pl.Series("chain", [text[:_READ]]).str.extract_all(CHAIN).explode().drop_nulls()
        chains = found.to_frame().with_columns(whole=fold(found)).unique("whole", maintain_order=True)
        meaningful = chains.filter(~pl.col("whole").is_in(STOP_WORDS))
        chains = (chains if meaningful.is_empty() else meaningful).with_row_index("number")

        part = pl.col("kind") == "part"
        # A query for C++ or C# must not match C.
        marked = pl.col("whole").str.contains(r"(?:\+\+|#)$")
        words = _split(chains["chain"]).join(chains, on="chain").filter(pl.col("kind") != "piece", ~(part & marked))
        needed = part.sum().over("number").clip(1).cast(pl.UInt32)
        points = pl.when(part).then(pl.lit(1, pl.UInt32)).otherwise(needed)
        self.terms = words.select(pl.col("number").alias("chain"), "word", points=points, needed=needed)

        runs = chains.select("number", run=pl.col("whole").str.extract_all(f"{UNSPACED}+")).explode("run")
        self._runs = runs.filter(pl.col("run").str.count_matches(_CHARACTER) > 2)

    def among(self, chains: pl.Series) -> set[str]:
        """Those of these chains that have a word of the query."""
        words = _split(chains.unique()).join(self.terms, on="word", how="semi")
        return set(words["chain"])

    def scores(self, texts: pl.Series) -> pl.Series:
        """The score of each text by the words of the query (BM25, among these texts); 0 if it contains none."""
        chains = texts.str.extract_all(CHAIN)
        rows = pl.DataFrame({"chain": chains}).with_row_index("row").explode("chain").drop_nulls("chain")
        # Most chains occur many times, so each distinct chain is split once.
        words = _split(rows["chain"].unique()).join(self.terms, on="word", how="semi").select("chain", "word").unique()
        hits = rows.join(words, on="chain").group_by("row", "word").agg(frequency=pl.len())
        count = pl.len().over("word")
        weight = (1 + (len(texts) - count + 0.5) / (count + 0.5)).log()
        lengths = chains.list.len()
        length = 0.25 + 0.75 * lengths.gather(hits["row"]) / max(lengths.mean() or 1, 1)
        score = weight * pl.col("frequency") * 2.2 / (pl.col("frequency") + 1.2 * length)
        summed = hits.with_columns(score=score).sort("row", "word").group_by("row").agg(pl.col("score").sum())
        every = pl.DataFrame({"row": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
        return every.join(summed, on="row", how="left", maintain_order="left")["score"].fill_null(0.0)

    def matching(self, found: pl.DataFrame) -> pl.DataFrame:
        """The entities that match the query, out of those that contain its words.

        In scripts that are written without spaces, a text may contain all pairs of a run without the run itself.
        """
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
