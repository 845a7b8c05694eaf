"""Segments and transcripts for the tests of text."""

from __future__ import annotations

import re

from typeless_grpc.speech.transcript import Segment, Transcript, Word, joined


def segment(
    text: str, language: str = "en", *, start_s: float = 0.0, end_s: float = 0.0, words: bool = False
) -> Segment:
    """A segment that is spoken at a quarter of a second a word unless `end_s` is given."""
    spoken = _spoken(text, language)
    end_s = end_s or start_s + 0.25 * max(1, len(spoken))
    share_s = (end_s - start_s) / max(1, len(spoken))
    timed = tuple(
        Word(one, start_s + i * share_s, start_s + (i + 1) * share_s, 0.5 + 0.5 / (i + 1))
        for i, one in enumerate(spoken)
    )
    return Segment(start_s, end_s, text, language, 0.9, 0.1, words=timed if words else ())


def _spoken(text: str, language: str) -> list[str]:
    """Words as Whisper gives them: marks stay with the word before, Chinese comes by the character."""
    if language == "zh":
        return re.findall(r"\w[^\w]*", text)
    return text.split()


def transcript(*segments: Segment, audio_s: float | None = None) -> Transcript:
    """A transcript of these segments."""
    return Transcript(
        segments=segments,
        suppressed=(),
        language=segments[0].language if segments else "",
        language_probability=1.0,
        audio_s=audio_s if audio_s is not None else max((one.end_s for one in segments), default=0.0),
        speech_s=sum(one.end_s - one.start_s for one in segments),
        model="scripted",
    )


def text_of(*segments: Segment) -> str:
    """Their text, joined."""
    return joined(one.text for one in segments)
