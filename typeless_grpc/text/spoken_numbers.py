"""Finds the numbers among the words of a text, with text2num."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from text_to_num import find_numbers

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*(?!\w)|(?:[^\W_]|[\u0300-\u036f])+(?:['’-](?:[^\W_]|[\u0300-\u036f])+)*|[^\s]")
_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")


class Token:
    """A word, numeral or mark with its position in the text; also the token type of text2num."""

    def __init__(self, found: re.Match[str]) -> None:
        self.start, self.end = found.span()
        self.word = found[0].casefold()
        self._text = found[0]

    def text(self) -> str:
        return self._text

    def nt_separated(self, previous: Token) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


@dataclass(frozen=True)
class Number:
    """A number among the tokens, start to end (exclusive), and how its digits are written.

    is_numeral: it is written in digits already.
    """

    start: int
    end: int
    digits: str
    value: float
    is_ordinal: bool = False
    is_numeral: bool = False

    @property
    def is_count(self) -> bool:
        return not self.is_ordinal and self.value == int(self.value)

    @property
    def is_digits(self) -> bool:
        """Whether its words are digits spoken one by one: "seven", "oh seven"."""
        if self.is_numeral or self.is_ordinal or not self.digits.isdigit():
            return False
        return len(self.digits) == self.end - self.start and (len(self.digits) == 1 or self.digits[0] == "0")


def tokens_of(text: str) -> list[Token]:
    """Return the words and marks of a text, in order."""
    return [Token(found) for found in _TOKEN.finditer(text)]


def numbers_of(tokens: Sequence[Token], language: str) -> list[Number]:
    """Return the numbers among the tokens, in words and in digits, in order and without overlap."""
    found = [
        Number(one.start, one.end, one.text, one.value, one.is_ordinal)
        for one in find_numbers(tokens, language, threshold=0)
    ]
    taken = {position for number in found for position in range(number.start, number.end)}
    numerals = [
        Number(i, i + 1, token.text(), _value(token.word), is_numeral=True)
        for i, token in enumerate(tokens)
        if i not in taken and _NUMERAL.fullmatch(token.word)
    ]
    return sorted([*found, *numerals], key=lambda number: number.start)


@functools.lru_cache(maxsize=4096)
def is_number(word: str, language: str) -> bool:
    """Whether a word is a number, or begins one. language: one that text2num knows."""
    return bool(numbers_of(tokens_of(word), language))


def _value(numeral: str) -> float:
    """Return the value, precise enough to tell a count from a fraction.

    The last mark that is not followed by three digits is the decimal mark.
    """
    whole, mark, fraction = numeral.rpartition("," if "," in numeral else ".")
    if not mark or len(fraction) == 3:
        return float(re.sub(r"[.,]", "", numeral))
    return float(re.sub(r"[.,]", "", whole) + "." + fraction)
