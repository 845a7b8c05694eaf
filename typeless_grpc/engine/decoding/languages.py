"""Which language a chunk is in, when the caller does not say.

Whisper estimates how likely each language is from what its encoder returns. On a few seconds that is reliable for
languages as far apart as those that people switch between, and unreliable for a word or two. So a chunk is taken to be
in the recording's language unless another one is clear.
"""

from __future__ import annotations

from collections.abc import Sequence

from typeless_grpc.engine.model import LanguageProbabilities

# A chunk with this much speech, detected with this probability, may be in another language than the recording.
SWITCH_SPEECH_S = 1.5
SWITCH_PROBABILITY = 0.8
# A second language this likely is a reason to detect the language of each utterance. Measured with base: a few seconds
# of another language at the end of ten have 0.02 to 0.5, and speech in one language leaves 0.01 to others.
MIXED_PROBABILITY = 0.02

# Languages so close that Whisper often detects two for speech that is in one, which is no sign of a second one.
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


def restrict_languages(detected: LanguageProbabilities, allowed: Sequence[str]) -> LanguageProbabilities:
    """The probabilities among the allowed languages alone; unchanged if allowed is empty."""
    if not allowed:
        return detected
    possible = [(language, probability) for language, probability in detected if language in allowed]
    total = sum(probability for _, probability in possible)
    if total <= 0:
        return [(language, 1 / len(possible)) for language, _ in possible]
    return [(language, probability / total) for language, probability in possible]


def resolve_language(detected: LanguageProbabilities, expected: str, speech_s: float) -> tuple[str, float]:
    """The language of a chunk and its probability. expected: the recording's language, "" if it is not known yet."""
    language, probability = detected[0]
    is_clear = speech_s >= SWITCH_SPEECH_S and probability >= SWITCH_PROBABILITY
    if not expected or language == expected or is_clear:
        return language, probability
    return expected, dict(detected).get(expected, 0.0)


def may_be_mixed(detected: LanguageProbabilities) -> bool:
    """Whether a second language may be spoken besides the first."""
    (first, _), rest = detected[0], detected[1:]
    second = next((one for one in rest if not any({first, one[0]} <= close for close in _CLOSE)), None)
    return second is not None and second[1] >= MIXED_PROBABILITY
