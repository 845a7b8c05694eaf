"""Finds whole words in any script and case."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from typeless_grpc.speech.transcript import UNSPACED

# A letter, digit or combining mark of a script that has spaces between words: next to one, a word is not whole.
_INSIDE = f"(?:(?![{UNSPACED}])[^\\W_]|[\\u0300-\\u036f])"
_UNSPACED = re.compile(f"[{UNSPACED}]")


class WholeWords:
    """Finds phrases as whole words, longest first, in any case and with any space between their words.

    In scripts without spaces a phrase matches anywhere. With wildcards, a `*` at the end of a phrase matches any
    letters.
    """

    def __init__(self, phrases: Iterable[str], *, wildcards: bool = False) -> None:
        ordered = sorted({phrase for phrase in phrases if phrase.strip()}, key=lambda phrase: (-len(phrase), phrase))
        parts = [_Part(phrase, wildcards) for phrase in ordered]
        parts.sort(key=lambda part: part.borders)  # stable: what is looked for around them is written once
        self._phrases = [part.phrase for part in parts]
        alternatives = [
            f"{before}(?:{'|'.join(f'({part.body})' for part in group)}){after}"
            for (before, after), group in itertools.groupby(parts, key=lambda part: part.borders)
        ]
        self._pattern = re.compile("|".join(alternatives) or r"(?!)", re.IGNORECASE)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield the start, end (exclusive) and phrase of each match, in order and without overlap."""
        for match in self._pattern.finditer(text):
            yield match.start(), match.end(), self._phrases[(match.lastindex or 1) - 1]


class _Part:
    """A phrase, its pattern, and what may not stand before and after it."""

    def __init__(self, phrase: str, wildcards: bool) -> None:
        has_star = wildcards and len(phrase) > 1 and phrase.endswith("*")
        words = unicodedata.normalize("NFC", phrase[:-1] if has_star else phrase).split()
        self.phrase = phrase
        self.body = r"\s+".join(re.escape(word) for word in words) + (r"\w*" if has_star else "")
        before = "" if _UNSPACED.match(words[0]) else f"(?<!{_INSIDE})"
        after = "" if _UNSPACED.match(words[-1][-1]) and not has_star else f"(?!{_INSIDE})"
        self.borders = (before, after)
