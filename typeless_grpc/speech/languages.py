"""Rules for the language of speech: which one it is, whether it is clear, and which one a whole recording is in.

Whisper gives a probability for each language. On a few seconds of speech it is reliable for languages that differ as
much as those between which people switch; on a word or two it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

Languages = Sequence[tuple[str, float]]  # Whisper's codes and their probabilities, the likeliest first

# The language of speech is clear if there is this much speech and the language is this probable.
CLEAR_SPEECH_S = 1.5
CLEAR_PROBABILITY = 0.8
# A second language this probable is worth a check. Measured with base: a few seconds of another language at the end of
# ten have a probability of 0.02 to 0.5; in speech of one language, other languages have 0.01.
MIXED_PROBABILITY = 0.02

# Languages that are so similar that Whisper often confuses them: the second one does not indicate a switch.
_CLOSE = (
    {"es", "gl", "ca", "pt", "la", "oc"},
    {"no", "nn", "da", "sv"},
    {"id", "ms", "jw", "su"},
    {"hi", "ur", "ne", "mr"},
    {"zh", "yue"},
    {"hr", "sr", "bs", "sl", "mk"},
    {"cs", "sk", "pl"},
    {"ru", "uk", "be", "bg"},
    {"nl", "af", "de", "lb", "yi"},
    {"fr", "br", "oc"},
    {"it", "la"},
)


def among(detected: Languages, allowed: Sequence[str]) -> Languages:
    """Return the probabilities if only the allowed languages are possible; unchanged if allowed is empty."""
    if not allowed:
        return detected
    possible = [(language, probability) for language, probability in detected if language in allowed]
    total = sum(probability for _, probability in possible)
    if total <= 0:
        return [(language, 1 / len(possible)) for language, _ in possible]
    return [(language, probability / total) for language, probability in possible]


def is_clear(probability: float, speech_s: float) -> bool:
    """Whether the language of this much speech is clear enough to expect it in what follows."""
    return speech_s >= CLEAR_SPEECH_S and probability >= CLEAR_PROBABILITY


def chosen(detected: Languages, expected: str, speech_s: float) -> tuple[str, float]:
    """Return the expected language unless another is clear, and its probability. expected: "" if none is known."""
    language, probability = detected[0]
    if not expected or language == expected or is_clear(probability, speech_s):
        return language, probability
    return expected, dict(detected).get(expected, 0.0)


def seem_mixed(detected: Languages) -> bool:
    """Whether a second language may be spoken besides the first."""
    (first, _), rest = detected[0], detected[1:]
    second = next((one for one in rest if not any({first, one[0]} <= close for close in _CLOSE)), None)
    return second is not None and second[1] >= MIXED_PROBABILITY


class LanguageTally:
    """The language of a recording, from those of its parts."""

    def __init__(self) -> None:
        self._speech_s: dict[str, float] = {}
        self._weighted: dict[str, float] = {}

    def add(self, language: str, probability: float, speech_s: float) -> None:
        """Count a part. language: "" if it is not known."""
        if language:
            weight = max(speech_s, 1e-6)  # a language that the caller gave counts even without speech
            self._speech_s[language] = self._speech_s.get(language, 0.0) + weight
            self._weighted[language] = self._weighted.get(language, 0.0) + weight * probability

    def main(self) -> tuple[str, float]:
        """Return the language of most of the speech, and its mean probability by speech; ("", 0) if there is none."""
        if not self._speech_s:
            return "", 0.0
        language = max(self._speech_s, key=self._speech_s.__getitem__)
        return language, min(1.0, self._weighted[language] / self._speech_s[language])
