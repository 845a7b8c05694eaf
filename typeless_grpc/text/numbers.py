"""Spoken numbers as they are written: "twenty-five percent" is "25%".

text2num finds the numbers among the words (it knows how each language counts); here they are joined with what stands
around them (percent, currencies, units, dates, years, times), by the tables in `languages`. A lone number below ten
stays a word, and so do "hundreds" or "a million", which rarely mean a count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from text_to_num import find_numbers

from typeless_grpc.text.edits import Edit
from typeless_grpc.text.languages import NOTATION, Notation

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*(?!\w)|(?:[^\W_]|[\u0300-\u036f])+(?:['’-](?:[^\W_]|[\u0300-\u036f])+)*|[^\s]")
_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")
_MERIDIEM = re.compile(r"\s*[ap]\.?\s?m\b", re.IGNORECASE)
_SMALLEST = 10  # a lone number below is a word, as most style guides have it
_NO_BREAK = "\u00a0"


class _Token:
    """A word, numeral or mark where it stands in the text; also what text2num reads."""

    def __init__(self, found: re.Match[str]) -> None:
        self.start, self.end = found.span()
        self.said = found[0].casefold()
        self._text = found[0]

    def text(self) -> str:
        return self._text

    def nt_separated(self, previous: _Token) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


@dataclass(frozen=True)
class _Number:
    """A number among the tokens, start to end (exclusive), and how its digits are written."""

    start: int
    end: int
    digits: str
    value: float
    is_ordinal: bool = False
    is_numeral: bool = False

    @property
    def is_count(self) -> bool:
        return not self.is_ordinal and self.value == int(self.value)


def written_numbers(text: str, language: str) -> list[Edit]:
    """Edits that write numbers, amounts, dates, times and measures in figures."""
    notation = NOTATION.get(language)
    if notation is None or not text:
        return []
    tokens = [_Token(found) for found in _TOKEN.finditer(text)]
    numbers = {number.start: number for number in _numbers(tokens, language)}
    reader = _Reader(text, tokens, numbers, notation)
    edits, position = [], 0
    while position < len(tokens):
        written = reader.read(position)
        if written is None:
            position += 1
            continue
        edits.append(Edit(tokens[position].start, tokens[written.end - 1].end, written.text))
        position = written.end
    return edits


def _numbers(tokens: Sequence[_Token], language: str) -> list[_Number]:
    found = [
        _Number(one.start, one.end, one.text, one.value, one.is_ordinal)
        for one in find_numbers(tokens, language, threshold=0)
    ]
    taken = {position for number in found for position in range(number.start, number.end)}
    numerals = [
        _Number(i, i + 1, token.text(), _value(token.said), is_numeral=True)
        for i, token in enumerate(tokens)
        if i not in taken and _NUMERAL.fullmatch(token.said)
    ]
    return sorted([*found, *numerals], key=lambda number: number.start)


def _value(numeral: str) -> float:
    """Near enough to tell a count from a fraction: the last mark before other than three digits is the decimal's."""
    whole, mark, fraction = numeral.rpartition("," if "," in numeral else ".")
    if not mark or len(fraction) == 3:
        return float(re.sub(r"[.,]", "", numeral))
    return float(re.sub(r"[.,]", "", whole) + "." + fraction)


@dataclass(frozen=True)
class _Written:
    """What to write for the tokens up to `end`."""

    end: int
    text: str


class _Reader:
    """Reads one text: at each token, the longest thing that is written in figures there."""

    def __init__(self, text: str, tokens: Sequence[_Token], numbers: dict[int, _Number], notation: Notation) -> None:
        self._text = text
        self._tokens = tokens
        self._numbers = numbers
        self._notation = notation

    def read(self, position: int) -> _Written | None:
        """What to write from this token on; None where the words stay."""
        series = self._series(position)
        if series is not None:
            return series
        number = self._numbers.get(position)
        if number is None or (not number.is_numeral and self._is_bare(number)):
            return None
        for reading in (self._year, self._clock, self._date, self._measure, self._alone):
            written = reading(number)
            if written is not None:
                return written
        return None

    def _said(self, position: int) -> str:
        return self._tokens[position].said if 0 <= position < len(self._tokens) else ""

    def _is_bare(self, number: _Number) -> bool:
        """Whether it is "hundreds", "a million": words that scale, without a number before them."""
        return self._said(number.start) in self._notation.bare or self._said(number.start).endswith("ths")

    def _series(self, position: int) -> _Written | None:
        """Three digits or more, said one by one: a telephone number, a code."""
        digits = ""
        for end in range(position, len(self._tokens)):
            digit = self._digit(end)
            if digit is None:
                break
            digits += digit
        return _Written(position + len(digits), digits) if len(digits) >= 3 else None

    def _digit(self, position: int) -> str | None:
        number = self._numbers.get(position)
        if number is not None and number.end == position + 1 and len(number.digits) == 1 and not number.is_numeral:
            return number.digits
        return "0" if self._said(position) in self._notation.zeros else None

    def _year(self, number: _Number) -> _Written | None:
        """A year said in two parts: "nineteen eighty-four", "nineteen oh five"."""
        is_century = number.is_count and 16 <= number.value <= 20 and not number.is_numeral
        if not (self._notation.pairs_are_years and is_century):
            return None
        following = self._numbers.get(number.end)
        if following is not None and not following.is_numeral and following.is_count and 10 <= following.value <= 99:
            return _Written(following.end, f"{number.digits}{following.digits}")
        last = self._digit(number.end + 1)
        if self._said(number.end) in self._notation.zeros and last not in (None, "0"):
            return _Written(number.end + 2, f"{number.digits}0{last}")
        return None

    def _clock(self, number: _Number) -> _Written | None:
        """A time of day, "three thirty p.m.", "drei Uhr": in figures, the rest as it was said."""
        if number.is_numeral or not (number.is_count and 0 <= number.value <= 24):
            return None
        if self._said(number.end) in self._notation.hours:
            return self._clock_by_the_hour(number)
        if not 1 <= number.value <= 12 or self._said(number.start - 1) in {"past", "to"}:
            return None
        minutes = self._minutes(number.end)
        if minutes is not None and self._meridiem(minutes.end):
            return _Written(minutes.end, f"{number.digits}:{minutes.digits}")
        return _Written(number.end, number.digits) if self._meridiem(number.end) else None

    def _clock_by_the_hour(self, number: _Number) -> _Written | None:
        """Where the hour is named, minutes may follow; "trois heures" alone may be a length of time, and stays."""
        minutes = self._minutes(number.end + 1)
        pattern, only_hour = self._notation.hours[self._said(number.end)]
        if minutes is not None:
            return _Written(minutes.end, pattern.format(number.digits, int(minutes.value)))
        return _Written(number.end + 1, only_hour.format(number.digits)) if only_hour else None

    def _minutes(self, position: int) -> _Number | None:
        minutes = self._numbers.get(position)
        return minutes if minutes is not None and minutes.is_count and 10 <= minutes.value <= 59 else None

    def _meridiem(self, position: int) -> bool:
        english = self._notation.pairs_are_years
        return english and _MERIDIEM.match(self._text, self._tokens[position - 1].end) is not None

    def _date(self, number: _Number) -> _Written | None:
        """A day next to its month is a figure, however small: "March 5th", "3 de mayo"."""
        if not 1 <= number.value <= 31 or number.is_numeral:
            return None
        after = number.end
        if self._notation.month_joiner:
            after += 1 if self._said(after) == self._notation.month_joiner else 0
        names = self._notation.months
        follows = self._said(after) in names and (after > number.end) == bool(self._notation.month_joiner)
        english = self._notation.pairs_are_years
        month = self._tokens[number.start - 1] if english and number.start else None
        precedes = month is not None and month.said in names and month.text()[0].isupper() and number.is_ordinal
        if not (precedes or follows) or (english and not number.is_ordinal):
            return None
        is_first_of_month = number.is_ordinal and self._notation.month_joiner == "de"
        return _Written(number.end, str(int(number.value)) if is_first_of_month else number.digits)

    def _measure(self, number: _Number) -> _Written | None:
        """A number with what it counts: percent, a currency, a unit."""
        if number.is_ordinal:
            return None
        amount, end = self._scaled(number)
        is_article = number.value == 1 and not self._notation.symbol_first and not number.is_numeral
        percent = self._phrase(end, dict.fromkeys(self._notation.percent, "%"))
        if percent is not None:
            joint = "" if self._notation.symbol_first else _NO_BREAK
            return _Written(percent[0], f"{amount}{joint}%")
        if is_article:
            return None
        unit = self._phrase(end, self._notation.units)
        if unit is not None:
            joint = "" if unit[1].startswith("°") and self._notation.symbol_first else _NO_BREAK
            return _Written(unit[0], f"{amount}{joint}{unit[1]}")
        return self._money(number, amount, end)

    def _money(self, number: _Number, amount: str, end: int) -> _Written | None:
        currency = self._phrase(end, self._notation.currencies)
        if currency is None or (number.start and self._said(number.start - 1) in {"$", "€", "£"}):
            return None
        end, symbol = currency
        cents = self._cents(end) if number.is_count else None
        if cents is not None:
            amount, end = f"{amount}{self._notation.decimal}{int(cents.value):02d}", cents.end
        if self._notation.symbol_first:
            return _Written(end, f"{symbol}{amount}")
        return _Written(end, f"{amount}{_NO_BREAK}{symbol}")

    def _cents(self, position: int) -> _Number | None:
        """The cents of an amount, with the word for them where it is said; `end` is past all of it."""
        joiners = self._notation.cents_joiners
        start = position + 1 if self._said(position) in joiners and self._said(position) else position
        number = self._numbers.get(start)
        if number is None or not (number.is_count and 0 < number.value < 100):
            return None
        if self._said(number.end) in self._notation.cents:
            return _Number(number.start, number.end + 1, number.digits, number.value)
        joined_without_word = not self._notation.symbol_first and (start > position or "" in joiners)
        return number if joined_without_word and number.value >= 10 else None

    def _phrase(self, position: int, phrases: Mapping[str, str]) -> tuple[int, str] | None:
        """The longest of the phrases that is said from here on: where it ends, and what it stands for."""
        for length in (3, 2, 1):
            said = " ".join(self._said(i) for i in range(position, position + length))
            if said in phrases:
                return position + length, phrases[said]
        return None

    def _scaled(self, number: _Number) -> tuple[str, int]:
        """The number in figures, "2.5 million" where it is as round as that, and the token it ends before."""
        following = self._numbers.get(number.end)
        if following is not None and self._is_bare(following) and following.value >= 10**6 and not number.is_ordinal:
            names = self._notation.scales.get(int(following.value))
            if names is not None:
                return f"{number.digits}{_NO_BREAK}{names[1]}", following.end
        for scale, (one, many) in sorted(self._notation.scales.items(), reverse=True):
            if number.is_count and not number.is_numeral and number.value >= scale and number.value % (scale / 10) == 0:
                count = f"{number.value / scale:g}".replace(".", self._notation.decimal)
                return f"{count}{_NO_BREAK}{one if number.value == scale else many}", number.end
        return self._grouped(number), number.end

    def _grouped(self, number: _Number) -> str:
        if number.is_numeral or not number.is_count or number.value < 10_000 or not number.digits.isdigit():
            return number.digits
        return f"{int(number.value):,}".replace(",", self._notation.group)

    def _alone(self, number: _Number) -> _Written | None:
        is_small = number.value < _SMALLEST and (number.is_count or number.is_ordinal)
        if number.is_numeral or is_small:
            return None
        if number.is_ordinal:
            return _Written(number.end, number.digits)
        text, end = self._scaled(number)
        return _Written(end, text)
