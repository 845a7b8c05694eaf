"""A fake `Engine` without a model, for tests and benchmarks.

The test supplies the text of each call, decides when calls return, and reads which calls were made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.speech.transcript import Segment, Transcript, Word

_TIMEOUT_S = 30.0  # longest wait of a test


@dataclass(frozen=True)
class EngineCall:
    """The arguments of one call of the engine."""

    audio: Audio
    options: DecodeOptions
    ticket: Ticket


Script = Callable[[EngineCall], str | BaseException]


class ScriptedEngine:
    """Returns one segment over the whole audio, with the text that `script` returns; raises a returned exception.

    calls: all calls so far. n_cancelled: calls whose task was cancelled before they returned. gate: clear it to hold
    all calls until it is set again. stuck: calls in these lanes never return. backlog_s, confidence: reported values,
    which the test may set.
    """

    def __init__(self, script: Script = lambda call: f"{len(call.audio) / SAMPLE_RATE_HZ:.1f} seconds") -> None:
        self._script = script
        self.calls: list[EngineCall] = []
        self.n_cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.stuck: frozenset[Lane] = frozenset()
        self.backlog_s = 0.0
        self.confidence = 0.9
        self._changed = asyncio.Event()
        self._n_running = 0
        self._progress_s = 0.0

    @property
    def stalled_s(self) -> float:
        """See `Engine`; by the real clock."""
        return time.monotonic() - self._progress_s if self._n_running else 0.0

    async def until(self, *, n_calls: int = 0, n_cancelled: int = 0) -> None:
        """Wait for this many calls and cancellations. Raises TimeoutError after 30 s."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while len(self.calls) < n_calls or self.n_cancelled < n_cancelled:
                    await self._changed.wait()
        except TimeoutError:
            counted = f"{len(self.calls)} calls and {self.n_cancelled} cancellations"
            raise TimeoutError(f"{counted}; expected {n_calls} and {n_cancelled}") from None

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        call = EngineCall(audio, options, ticket)
        self.calls.append(call)
        self._notify()
        self._progress_s = self._progress_s if self._n_running else time.monotonic()
        self._n_running += 1
        try:
            await (asyncio.Event() if ticket.lane in self.stuck else self.gate).wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            self._notify()
            raise
        finally:
            self._n_running -= 1
            self._progress_s = time.monotonic()
        answer = self._script(call)
        if isinstance(answer, BaseException):
            raise answer
        return Recognition(transcript_of(audio, options, answer, self.confidence), queue_s=0.0, n_chunks=1)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self.transcribe(utterance, options, ticket)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def transcript_of(audio: Audio, options: DecodeOptions, text: str, confidence: float) -> Transcript:
    """Return a transcript of one segment over the whole audio."""
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
    """Return the words of a text, each with an equal share of the audio."""
    tokens = text.split()
    share_s = audio_s / max(1, len(tokens))
    return tuple(Word(token, i * share_s, (i + 1) * share_s, confidence=0.9) for i, token in enumerate(tokens))
