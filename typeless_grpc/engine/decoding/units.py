"""Splits text into units for comparison: words, or characters in scripts without spaces."""

from __future__ import annotations

# Scripts above this code point are written without spaces between words (Unicode: CJK Radicals Supplement is at 2E80).
LAST_SPACED_CODE_POINT = 0x2E7F
PUNCTUATION = ".,!?;:\"'()[]-–—…。，！？、"


def units_of(text: str) -> list[str]:
    """Return the units of a text, in lower case and without punctuation."""
    units: list[str] = []
    for word in text.lower().split():
        bare = word.strip(PUNCTUATION)
        if all(ord(character) <= LAST_SPACED_CODE_POINT for character in bare):
            units += [bare] if bare else []
        else:
            units += [character for character in bare if character.isalnum()]
    return units


def is_dense(character: str) -> bool:
    """Whether a character of a script without spaces takes longer to speak than a letter."""
    return ord(character) > LAST_SPACED_CODE_POINT
