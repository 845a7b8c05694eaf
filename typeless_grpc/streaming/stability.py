"""The stable prefix of an utterance's interims: the words that no longer change.

LocalAgreement (Macháček, Dabre, Bojar 2023, arXiv:2307.14743): a word is committed once n hypotheses in a row, over
growing audio, agree on it and on all words before it. The paper's n is 2; here it is 3, because a word that two short
hypotheses agree on is still wrong too often (docs/measurements/interims.md). The newest words are also held back: they
stand where the audio was cut off, and the same cut-off can mislead several hypotheses alike.

Committed words stay. A later hypothesis that disagrees continues behind them, at the place where it fits best. So all
later interims and the final begin with the stable prefix. The price is an occasional error that the final would have
corrected; docs/measurements/interims.md has figures for both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from typeless_grpc.speech.transcript import UNSPACED

# A word with the space before it; where no spaces are written (Chinese, Japanese, Thai, …) each character is one.
_TOKEN = re.compile(rf"\s*(?:[{UNSPACED}]|[^\s{UNSPACED}]+)")


class Stability:
    """The stable prefix of one utterance.

    n_agreeing: hypotheses in a row, at least 2. hold_back: how many of the newest words are never committed.
    """

    def __init__(self, n_agreeing: int = 3, hold_back: int = 2) -> None:
        self._n_agreeing, self._hold_back = n_agreeing, hold_back
        self._last: list[list[str]] = []
        self.committed = ""

    def add(self, hypothesis: str) -> tuple[str, str]:
        """Take the next hypothesis for the utterance so far, and return the stable prefix and the rest."""
        text = merged(self.committed, hypothesis)
        tokens = tokens_of(text)
        self._last = [*self._last, tokens][-self._n_agreeing :]
        if len(self._last) == self._n_agreeing:
            n_agreed = min(_n_common(earlier, tokens) for earlier in self._last[:-1])
            agreed = _without_marks(_whole(tokens, min(n_agreed, max(0, len(tokens) - self._hold_back))))
            if len(agreed) > len(self.committed):
                self.committed = agreed
        return self.committed, text[len(self.committed) :]


def tokens_of(text: str) -> list[str]:
    """Split a text into words, each with the space before it: joined, they are the text without its trailing space."""
    return _TOKEN.findall(text)


def merged(committed: str, text: str) -> str:
    """Return text with its first words replaced by committed: as many as correspond to it best."""
    if text.startswith(committed):
        return text
    words = tokens_of(text)
    n_replaced = _best_split([_bare(word) for word in tokens_of(committed)], [_bare(word) for word in words])
    rest = "".join(words[n_replaced:])
    if n_replaced == 0 and rest and not rest[0].isspace() and committed[-1:].isascii() and rest[0].isascii():
        rest = " " + rest
    return committed + rest


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return n


def _best_split(committed: Sequence[str], words: Sequence[str]) -> int:
    """Return how many of words correspond to committed: the prefix with the least edit distance."""
    previous = list(range(len(words) + 1))
    for i, word in enumerate(committed, start=1):
        current = [i]
        for j, other in enumerate(words, start=1):
            current.append(min(previous[j - 1] + (word != other), previous[j] + 1, current[j - 1] + 1))
        previous = current
    return min(range(len(words) + 1), key=lambda j: (previous[j], abs(j - len(committed))))


def _whole(tokens: Sequence[str], n: int) -> str:
    """Return the first n words, without a last one that the next word's vowel sign continues."""
    while 0 < n < len(tokens) and _kind(tokens[n][0]) == "M":
        n -= 1
    return "".join(tokens[:n])


def _without_marks(text: str) -> str:
    """Strip trailing punctuation: it may still change after a committed word."""
    return text.rstrip("".join({character for character in text if _kind(character) in "PS"}))


def _bare(word: str) -> str:
    return "".join(character for character in word if _kind(character) in "LMN").casefold()


def _kind(character: str) -> str:
    """Return Unicode's main category: L letters, M marks that belong to one, N numbers, P punctuation, S symbols."""
    return unicodedata.category(character)[0]
