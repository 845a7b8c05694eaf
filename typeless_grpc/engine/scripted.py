"""An engine without a model: says what it is told to say, when it is told to. For tests of everything around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.speech.transcript import Segment, Transcript, Word

_PATIENCE_S = 30.0  # a test that waits longer waits for what never comes


@dataclass(frozen=True)
class Asked:
    """What the engine was asked, as it saw it."""

    audio: Audio
    options: DecodeOptions
    ticket: Ticket


Script = Callable[[Asked], str | BaseException]


class ScriptedEngine:
    """Answers each call with one segment over the whole audio, its text by `script`, or raises what `script` returns.

    asked: every call so far. n_cancelled: calls whose task was cancelled while they waited. Clear `gate` to hold calls
    back until it is set again; calls in the lanes of `stuck` never end. backlog_s, confidence: what the engine claims,
    to be set by the test.
    """

    def __init__(self, script: Script = lambda asked: f"{len(asked.audio) / SAMPLE_RATE_HZ:.1f} seconds") -> None:
        self._script = script
        self.asked: list[Asked] = []
        self.n_cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.stuck: frozenset[Lane] = frozenset()
        self.backlog_s = 0.0
        self.confidence = 0.9
        self._moved = asyncio.Event()
        self._n_inside = 0
        self._moved_s = 0.0

    @property
    def stalled_s(self) -> float:
        """See `Engine`; by the real clock."""
        return time.monotonic() - self._moved_s if self._n_inside else 0.0

    async def until(self, *, n_asked: int = 0, n_cancelled: int = 0) -> None:
        """Wait until so many calls have come, and so many were cancelled. Raises TimeoutError where they do not."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while len(self.asked) < n_asked or self.n_cancelled < n_cancelled:
                    await self._moved.wait()
        except TimeoutError:
            seen = f"{len(self.asked)} calls came and {self.n_cancelled} were cancelled"
            raise TimeoutError(f"{seen}, not {n_asked} and {n_cancelled}") from None

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        asked = Asked(audio, options, ticket)
        self.asked.append(asked)
        self._move()
        self._moved_s = self._moved_s if self._n_inside else time.monotonic()
        self._n_inside += 1
        try:
            await (asyncio.Event() if ticket.lane in self.stuck else self.gate).wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            self._move()
            raise
        finally:
            self._n_inside -= 1
            self._moved_s = time.monotonic()
        answer = self._script(asked)
        if isinstance(answer, BaseException):
            raise answer
        return Recognition(_transcript(audio, options, answer, self.confidence), queue_s=0.0, n_chunks=1)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self.transcribe(utterance, options, ticket)

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _transcript(audio: Audio, options: DecodeOptions, text: str, confidence: float) -> Transcript:
    audio_s = len(audio) / SAMPLE_RATE_HZ
    language = options.language or options.expected_language or "en"
    words = _words(text, audio_s) if options.word_timestamps else ()
    segment = Segment(0.0, audio_s, text, language, confidence, no_speech_probability=0.1, words=words)
    return Transcript(
        segments=(segment,) if text else (),
        suppressed=(),
        language=language,
        language_probability=1.0,
        audio_s=audio_s,
        speech_s=audio_s if text else 0.0,
        model=options.model or "scripted",
    )


def _words(text: str, audio_s: float) -> tuple[Word, ...]:
    """The text's words, each for its share of the time."""
    spoken = text.split()
    share_s = audio_s / max(1, len(spoken))
    return tuple(Word(word, i * share_s, (i + 1) * share_s, confidence=0.9) for i, word in enumerate(spoken))
