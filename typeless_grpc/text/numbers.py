"""Writes spoken numbers in figures: "twenty-five percent" becomes "25%".

Numbers are joined with the words around them (percent, currencies, units, dates, years, times), by the tables in
`languages`. A wrong figure is worse than a word, so these stay in words: a lone number below ten, "hundreds" and
"a million", which rarely mean a count, fractions, idioms, and consecutive numbers that can be read in more than one
way ("ten thirty", "seven forty-seven").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from typeless_grpc.text.edits import Edit
from typeless_grpc.text.languages import NOTATION, Notation
from typeless_grpc.text.spoken_numbers import Number, Token, numbers_of, tokens_of

# "I am" resembles a time of day.
_MERIDIEM = re.compile(r"\s*(?:[ap]\.\s?m\b|[ap]\s?m\b(?!\s+I\b))", re.IGNORECASE)
_SMALLEST = 10  # a lone number below is a word, as most style guides have it
_MIN_CODE_DIGITS = 5  # this many digits in a row are a code, not counting, and "oh" before them is a zero, not a sigh
# Articles: before an ordinal they make a fraction, "a tenth"; and they are not the day of a date, "un mai".
_ARTICLES = frozenset(
    {"a", "an", "one", "per", "un", "una", "une", "ein", "eine", "einem", "einer", "um", "uma", "een"}
)
_NO_BREAK = "\u00a0"


def written_numbers(text: str, language: str) -> list[Edit]:
    """Return the edits that write numbers, amounts, dates, times and measures in figures."""
    notation = NOTATION.get(language)
    if notation is None or not text:
        return []
    tokens = tokens_of(text)
    return list(_Reader(text, tokens, numbers_of(tokens, language), notation).edits())


@dataclass(frozen=True)
class _Written:
    """What to write for the tokens up to `end`."""

    end: int
    text: str


class _Reader:
    """Reads one text: at each token, finds the longest expression that is written in figures."""

    def __init__(self, text: str, tokens: Sequence[Token], numbers: Sequence[Number], notation: Notation) -> None:
        self._text = text
        self._tokens = tokens
        self._notation = notation
        self._numbers = {one.start: one for one in numbers if not self._is_kept(one)}
        counts = [one for one in numbers if not one.is_ordinal]
        self._count_starts = {one.start for one in counts}
        self._count_ends = {one.end for one in counts}
        self._written_to = 0

    def edits(self) -> Iterator[Edit]:
        """Yield the edits, in order."""
        position = 0
        while position < len(self._tokens):
            # A number right after one that stays in words may belong to it.
            is_loose = position not in self._count_ends or position == self._written_to
            written = self._read(position) if is_loose else None
            if written is None:
                position += 1
                continue
            yield Edit(self._tokens[position].start, self._tokens[written.end - 1].end, written.text)
            position = self._written_to = written.end

    def _read(self, position: int) -> _Written | None:
        """Return the text for this token and the next ones; None if the words stay."""
        digits = self._telephone(position) or self._series(position)
        if digits is not None:
            return digits
        number = self._numbers.get(position)
        if self._is_article_of_hundred(position):
            number = self._numbers.get(position + 1)
        elif self._is_article_of_hundred(position - 1):  # nothing was found that includes the article
            return None
        if number is None or (not number.is_numeral and self._is_bare(number)):
            return None
        for reading in (self._year, self._clock, self._date, self._measure, self._alone):
            written = reading(number)
            if written is not None:
                return written
        return None

    def _word(self, position: int) -> str:
        return self._tokens[position].word if 0 <= position < len(self._tokens) else ""

    def _is_kept(self, number: Number) -> bool:
        """Whether a number is part of an idiom, or of an expression that is never written in figures."""
        start, end = self._tokens[number.start].start, self._tokens[number.end - 1].end
        found = (one for pattern in self._notation.kept for one in pattern.finditer(self._text))
        return not number.is_numeral and any(one.start() < end and start < one.end() for one in found)

    def _is_article_of_hundred(self, position: int) -> bool:
        """Whether an article before "hundred" means one: "a hundred and ten"."""
        is_article = self._word(position) in self._notation.hundred_articles
        return is_article and self._word(position + 1) in self._notation.bare

    def _is_bare(self, number: Number) -> bool:
        """Whether a number consists of scale words without a number before them: "hundreds", "a million"."""
        return all(self._word(i) in self._notation.bare for i in range(number.start, number.end))

    def _series(self, position: int) -> _Written | None:
        """Return three or more digits that are spoken one by one: a telephone number, a code."""
        digits, end = "", position
        while (digit := self._digit(end)) is not None:
            digits, end = digits + digit[0], digit[1]
        goes_on = 0 < self._written_to == position - 1  # after a comma: "five five five, one two three four"
        if len(digits) < 3 or set(digits) == {"0"} or (_is_counting(digits) and not goes_on):
            return None
        is_sigh = self._word(position) in self._notation.zeros and len(digits) < _MIN_CODE_DIGITS
        return None if is_sigh else _Written(end, digits)

    def _digit(self, position: int) -> tuple[str, int] | None:
        """Return a digit, or a zero and the digit spoken with it, and their end."""
        number = self._numbers.get(position)
        if number is not None and number.is_digits:
            return number.digits, number.end
        return ("0", position + 1) if self._word(position) in self._notation.zeros else None

    def _telephone(self, position: int) -> _Written | None:
        """Return a telephone number that is spoken and written in pairs."""
        pairs, end = list[str](), position
        while (number := self._numbers.get(end)) is not None and number.is_count and len(number.digits) == 2:
            pairs.append(number.digits)
            end = number.end
        is_one = 0 < self._notation.telephone_pairs == len(pairs) and pairs[0].startswith("0")
        return _Written(end, _NO_BREAK.join(pairs)) if is_one else None

    def _year(self, number: Number) -> _Written | None:
        """Return a year spoken in two parts: "nineteen eighty-four", "nineteen oh five"."""
        is_century = number.is_count and 16 <= number.value <= 20 and not number.is_numeral
        if not (self._notation.pairs_are_years and is_century):
            return None
        following = self._numbers.get(number.end)
        if following is None:
            zero, digit = self._word(number.end) in self._notation.zeros, self._digit(number.end + 1)
            return _Written(digit[1], f"{number.digits}0{digit[0]}") if zero and digit and digit[0] != "0" else None
        is_part = following.is_count and not following.is_numeral and len(following.digits) == 2
        is_counted = following.value == number.value + 1 and following.value < 20  # "seventeen, eighteen"
        if not is_part or is_counted or following.digits == "00" or self._counts_something(following.end):
            return None
        return _Written(following.end, f"{number.digits}{following.digits}")

    def _counts_something(self, position: int) -> bool:
        """Whether a number or a counted thing follows, so that the number that ends here is not a year."""
        notation = self._notation
        counted = (dict.fromkeys(notation.percent, "%"), notation.currencies, notation.units)
        return position in self._count_starts or any(self._phrase(position, phrases) for phrases in counted)

    def _clock(self, number: Number) -> _Written | None:
        """Return a time of day, "three thirty p.m.", "drei Uhr": in figures, the rest as it was spoken."""
        if number.is_numeral or not (number.is_count and 0 <= number.value <= 24):
            return None
        if self._word(number.end) in self._notation.hours:
            return self._clock_by_the_hour(number)
        if not 1 <= number.value <= 12 or self._word(number.start - 1) in {"past", "to"}:
            return None
        minutes = self._minutes(number.end)
        if minutes is not None and self._meridiem(minutes.end):
            return _Written(minutes.end, f"{number.digits}:{minutes.digits}")
        return _Written(number.end, number.digits) if self._meridiem(number.end) else None

    def _clock_by_the_hour(self, number: Number) -> _Written | None:
        """Return a time with a word for the hour. "trois heures" alone stays, because it may be a duration."""
        minutes = self._minutes(number.end + 1)
        pattern, only_hour = self._notation.hours[self._word(number.end)]
        if minutes is not None:
            return _Written(minutes.end, pattern.format(number.digits, int(minutes.value)))
        return _Written(number.end + 1, only_hour.format(number.digits)) if only_hour else None

    def _minutes(self, position: int) -> Number | None:
        minutes = self._numbers.get(position)
        return minutes if minutes is not None and minutes.is_count and 10 <= minutes.value <= 59 else None

    def _meridiem(self, position: int) -> bool:
        english = self._notation.pairs_are_years
        return english and _MERIDIEM.match(self._text, self._tokens[position - 1].end) is not None

    def _date(self, number: Number) -> _Written | None:
        """Return a date: a day beside its month is written in figures, however small: "March 5th", "3 de mayo"."""
        if not 1 <= number.value <= 31 or number.is_numeral:
            return None
        if not number.is_ordinal and (self._notation.days_are_ordinal or self._word(number.start) in _ARTICLES):
            return None
        after = number.end
        if self._notation.month_joiner:
            after += 1 if self._word(after) == self._notation.month_joiner else 0
        names = self._notation.months
        follows = self._word(after) in names and (after > number.end) == bool(self._notation.month_joiner)
        english = self._notation.pairs_are_years
        month = self._tokens[number.start - 1] if english and number.start else None
        precedes = month is not None and month.word in names and month.text()[0].isupper() and number.is_ordinal
        if not (precedes or follows):
            return None
        is_first_of_month = number.is_ordinal and self._notation.month_joiner == "de"
        return _Written(number.end, str(int(number.value)) if is_first_of_month else number.digits)

    def _measure(self, number: Number) -> _Written | None:
        """Return a number with what it counts: percent, a currency, a unit."""
        if number.is_ordinal:
            return None
        amount, end = self._scaled(number)
        is_article = number.value == 1 and not self._notation.symbol_first and not number.is_numeral
        percent = self._phrase(end, dict.fromkeys(self._notation.percent, "%"))
        if percent is not None:
            joint = "" if self._notation.symbol_first else _NO_BREAK
            return _Written(percent[0], f"{amount}{joint}%")
        if is_article:
            return self._money(number, amount, end, only_with_cents=True)
        unit = self._phrase(end, self._notation.units)
        if unit is not None:
            joint = "" if unit[1].startswith("°") and self._notation.symbol_first else _NO_BREAK
            return _Written(unit[0], f"{amount}{joint}{unit[1]}")
        return self._money(number, amount, end)

    def _money(self, number: Number, amount: str, end: int, *, only_with_cents: bool = False) -> _Written | None:
        """Return an amount with its currency, or None if no currency follows."""
        currency = self._phrase(end, self._notation.currencies)
        if currency is None or (number.start and self._word(number.start - 1) in {"$", "€", "£"}):
            return None
        end, symbol = currency
        cents = self._cents(end) if number.is_count else None
        if cents is None and (only_with_cents or end in self._count_starts):
            return None
        if cents is not None:
            amount, end = f"{amount}{self._notation.decimal}{int(cents.value):02d}", cents.end
        if self._notation.symbol_first:
            return _Written(end, f"{symbol}{amount}")
        return _Written(end, f"{amount}{_NO_BREAK}{symbol}")

    def _cents(self, position: int) -> Number | None:
        """Return the cents of an amount, with the word for them if it was spoken; `end` is after all of it."""
        joiners = self._notation.cents_joiners
        start = position + 1 if self._word(position) in joiners and self._word(position) else position
        number = self._numbers.get(start)
        if number is None or not (number.is_count and 0 < number.value < 100):
            return None
        if self._word(number.end) in self._notation.cents:
            return Number(number.start, number.end + 1, number.digits, number.value)
        is_joined = "" in joiners if start == position else not self._notation.symbol_first
        return number if is_joined and number.value >= 10 and not self._counts_something(number.end) else None

    def _phrase(self, position: int, phrases: Mapping[str, str]) -> tuple[int, str] | None:
        """Return the longest of the phrases that begins here: its end and its meaning."""
        for length in (3, 2, 1):
            words = " ".join(self._word(i) for i in range(position, position + length))
            if words in phrases:
                return position + length, phrases[words]
        return None

    def _scaled(self, number: Number) -> tuple[str, int]:
        """Return the number in figures, "2.5 million" if it is round enough, and the token after it."""
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

    def _grouped(self, number: Number) -> str:
        if number.is_numeral or not number.is_count or number.value < 10_000 or not number.digits.isdigit():
            return number.digits
        return f"{int(number.value):,}".replace(",", self._notation.group)

    def _alone(self, number: Number) -> _Written | None:
        is_small = number.value < _SMALLEST and (number.is_count or number.is_ordinal)
        if number.is_numeral or is_small:
            return None
        if number.is_ordinal:
            return self._ordinal(number)
        text, end = self._scaled(number)
        is_cents = self._word(number.start - 1) in self._notation.currencies and number.value < 100  # "a dollar fifty"
        return None if end in self._count_starts or is_cents else _Written(end, text)

    def _ordinal(self, number: Number) -> _Written | None:
        """Return an ordinal that is no fraction ("a tenth") and no "thousandth".

        In languages that mark it like the end of a sentence ("3."), only one before a noun is returned.
        """
        before, last = self._word(number.start - 1), self._word(number.end - 1)
        is_fraction = number.start in self._count_ends or before in _ARTICLES or last.endswith("s")
        if is_fraction or number.value in (100, 1000, 10**6):
            return None
        following = self._tokens[number.end].text() if number.end < len(self._tokens) else ""
        if number.digits.endswith("."):
            is_noun = following.isalpha() and (following[0].isupper() or not self._notation.nouns_are_capital)
            return _Written(number.end, number.digits) if is_noun else None
        suffix = number.digits.lstrip("0123456789")
        return _Written(number.end, number.digits.removesuffix(suffix) + self._notation.ordinals.get(suffix, suffix))


def _is_counting(digits: str) -> bool:
    """Whether the numbers count up or down: "one two three"."""
    steps = {int(after) - int(before) for before, after in itertools.pairwise(digits)}
    return steps in ({1}, {-1})
