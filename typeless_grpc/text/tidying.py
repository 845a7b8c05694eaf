"""Finds repeated words, fillers and stray spaces in a text, by the rules of its language.

Each function finds edits in the text of one segment, without its times.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from typeless_grpc.speech.transcript import UNSPACED
from typeless_grpc.text.edits import Edit
from typeless_grpc.text.languages import SPEECH
from typeless_grpc.text.spoken_numbers import is_number

# A word: letters and digits of any script with their combining marks, and what joins them inside.
WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+(?:['’](?:[^\W_]|[\u0300-\u036f])+)*")
_UNITS = frozenset({"mm", "hm"})
_ONLY_SPACE = re.compile(r"\s+")
_SPACE_COMMA_OR_HYPHEN = re.compile(r"\s+|\s*[,-]\s*")
_CHINESE_COMMA = "[,，、…]"
_SENTENCE_END = ".!?…。！？"
_BEFORE_CAPITALS = ("", *_SENTENCE_END, *"\"'“”„«»‘¿¡(:")


def repeated_words(text: str, language: str) -> list[Edit]:
    """Remove unintended repetition of a word: "the the", "I, I".

    Numbers, names (New York, New York; Bora Bora), compounds ("so so-called") and words that a language doubles on
    purpose ("very very", "nous nous") are left alone.
    """
    if language == "zh":
        return _repeated_in_chinese(text)
    speech = SPEECH.get(language)
    if speech is None:
        return []
    edits = []
    previous: re.Match[str] | None = None
    for word in WORD.finditer(text):
        if previous is not None and previous[0].casefold() == word[0].casefold():
            folded, between = word[0].casefold(), text[previous.end() : word.start()]
            stuttered = folded in speech.stuttered and _SPACE_COMMA_OR_HYPHEN.fullmatch(between)
            doubled = _ONLY_SPACE.fullmatch(between) and folded.isalpha() and folded not in speech.doubled
            at_hyphen = text[word.end() : word.end() + 1] == "-" or text[: previous.start()].endswith("-")
            is_compound = at_hyphen and "-" not in between
            if (stuttered or doubled) and not is_compound and not _is_named(text, previous, word, language):
                edits.append(Edit(previous.end(), word.end(), ""))
        previous = word
    return edits


def _is_named(text: str, first: re.Match[str], second: re.Match[str], language: str) -> bool:
    """Whether a doubled word is a name or a number: "in Bora Bora", "twenty twenty"."""
    is_lower_elsewhere = language != "de" and text[: first.start()].rstrip()[-1:] not in _BEFORE_CAPITALS
    is_name = is_lower_elsewhere and len(first[0]) > 2 and first[0][0].isupper() and second[0][0].isupper()
    return is_name or is_number(second[0].casefold(), language)


def _repeated_in_chinese(text: str) -> list[Edit]:
    """Remove repeated words from a list: other characters are doubled in Chinese to make words (妹妹, 看看)."""
    words = sorted(SPEECH["zh"].stuttered, key=len, reverse=True)
    pattern = re.compile(rf"({'|'.join(words)})(?:\s*{_CHINESE_COMMA}?\s*\1)+")
    return [Edit(found.end(1), found.end(), "") for found in pattern.finditer(text)]


def fillers(text: str, language: str) -> list[Edit]:
    """Remove sounds without meaning, and the commas around them. The sentence still starts with a capital."""
    if language == "zh":
        return _chinese_fillers(text)
    if language not in SPEECH:
        return []
    edits: list[Edit] = []
    runs = [*_runs_of_fillers(text, language), (len(text), len(text))]
    for (first, last), (following, _) in itertools.pairwise(runs):
        edits += _without(text, first, last, following)
    return edits


def _runs_of_fillers(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Yield the positions of fillers; consecutive ones ("um, uh") are joined."""
    start = end = -1
    for word in WORD.finditer(text):
        is_filler = word[0].casefold() in SPEECH[language].fillers and not _is_part_of_a_compound(text, word)
        if not is_filler or _means_something(text, word, language):
            continue
        if start >= 0 and re.fullmatch(r"[\s,…]*(?:\.\.\.)?\s*", text[end : word.start()]):
            end = word.end()
            continue
        if start >= 0:
            yield start, end
        start, end = word.span()
    if start >= 0:
        yield start, end


def _is_part_of_a_compound(text: str, word: re.Match[str]) -> bool:
    """Whether a hyphen ties it to another word: "uh-huh" means something."""
    return text[word.end() : word.end() + 1] == "-" or text[max(0, word.start() - 1) : word.start()] == "-"


def _means_something(text: str, word: re.Match[str], language: str) -> bool:
    """Whether what sounds like a filler is an abbreviation or a unit: "the ER", "5 mm"."""
    if len(word[0]) > 1 and word[0].isupper() and not text.isupper():
        return True
    before = text[: word.start()].split()[-1:]
    return word[0] in _UNITS and bool(before) and is_number(before[0].casefold(), language)


def _without(text: str, start: int, end: int, following: int) -> list[Edit]:
    """Edits that remove text[start:end] and close the gap. following: where the next removal begins."""
    before, after = text[:start].rstrip(), text[end:]
    comma_after = re.match(r"\s*(?:,|…|\.\.\.)", after)
    if not before or before[-1] in _SENTENCE_END:
        rest = re.match(r"\s*(?:(?:,|…|\.+)\s*)?", after)
        resume = end + (rest.end() if rest else 0)
        if resume == following:
            return [Edit(start, resume, "")]
        capital = text[resume : resume + 1].upper() if text[start].isupper() else text[resume : resume + 1]
        return [Edit(start, min(len(text), resume + 1), capital)]
    if comma_after:  # "so, um, I" keeps one comma, "so um, I" none.
        return [Edit(len(before), end + comma_after.end(), "")]
    at_end = not after.strip() or after.lstrip()[0] in _SENTENCE_END
    comma = [Edit(len(before) - 1, len(before), "")] if at_end and before[-1] == "," else []
    return [*comma, Edit(len(before), end, "")]


def _chinese_fillers(text: str) -> list[Edit]:
    speech = SPEECH["zh"]
    sounds, clauses = _either(speech.fillers), _either(speech.clause_fillers)
    clause = f"(?:(?<=^)|(?<=[,，。、！？!?…]))(?:{clauses}){_CHINESE_COMMA}"
    pattern = re.compile(rf"(?:{sounds})+{_CHINESE_COMMA}?|{clause}")
    return [Edit(*found.span(), "") for found in pattern.finditer(text)]


def _either(words: frozenset[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_RUN = re.compile(r"[^\S\u00a0\u202f]{2,}|[\t\n\r\f\v]")
_BEFORE_MARK = re.compile(r"[^\S\u00a0\u202f]+(?=[,.;:!?%…)\]}]+(?:\s|$))")
_BEFORE_FRENCH_MARK = re.compile(r"[^\S\u00a0\u202f]+(?=[,.…)\]}]+(?:\s|$))")
_AFTER_OPENING = re.compile(r"(?<=[(\[{¿¡])[^\S\u00a0\u202f]+")
_BETWEEN_UNSPACED = re.compile(f"(?<=[{UNSPACED}])\\s+(?=[{UNSPACED}])")


def stray_spaces(text: str, language: str) -> list[Edit]:
    """Leave one space between words, and none before a mark (except in French) or between Chinese characters."""
    before_mark = _BEFORE_FRENCH_MARK if language == "fr" else _BEFORE_MARK
    patterns = ((before_mark, ""), (_AFTER_OPENING, ""), (_BETWEEN_UNSPACED, ""), (_RUN, " "))
    found = sorted(
        (match.start(), match.end(), written) for pattern, written in patterns for match in pattern.finditer(text)
    )
    edits: list[Edit] = []
    for start, end, written in found:
        if not edits or start >= edits[-1].end:
            edits.append(Edit(start, end, written))
    return edits
