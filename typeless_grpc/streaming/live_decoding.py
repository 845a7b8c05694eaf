"""Decodes the utterances of a LIVE stream, speculatively while they may not be over.

A speculative decode begins after a short silence if the engine is nearly idle, and once the end is likely if it is
busy: on a busy engine, earlier ones cost others more than they save (docs/measurements/live.md). It decodes the very
samples that the final would, so speculation changes when a final comes, and never its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.errors import TypelessError
from typeless_grpc.speech.languages import is_clear
from typeless_grpc.streaming.decoding import StreamLanguage, final_options, retried
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.finals import confidence_of
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.utterances import Utterance

# A text has high confidence from here on: many that end within a sentence are below, nine of ten whole ones above.
HIGH_CONFIDENCE = 0.65
_BUSY_BACKLOG_S = 0.4  # an engine with less to do is nearly idle


@dataclass(frozen=True)
class _Speculation:
    """A speculative decode. span: its audio, in samples of the stream."""

    span: tuple[int, int]
    options: DecodeOptions
    task: asyncio.Task[Recognition]


class LiveDecoder:
    """The decoder of one LIVE stream; see `decoding.Decoder`.

    An utterance expects the language of the last one whose language was clear.
    """

    def __init__(self, dependencies: Dependencies, options: StreamOptions, samples: SampleBuffer) -> None:
        self._dependencies, self._options, self._samples = dependencies, options, samples
        self._language = StreamLanguage(options.options)
        self._speculation: _Speculation | None = None
        self._adopted: dict[int, asyncio.Task[Recognition]] = {}  # speculative decodes that were right, by utterance

    async def final(self, utterance: Utterance) -> Recognition:
        """See `Decoder`."""
        recognition = await self._final(utterance)
        self.learn(utterance, recognition)
        return recognition

    def learn(self, utterance: Utterance, recognition: Recognition) -> None:
        """See `Decoder`. Only utterances with a clear language count."""
        self._language.set(_clear_language(recognition), utterance)

    async def _final(self, utterance: Utterance) -> Recognition:
        if (adopted := self._adopted.pop(utterance.id, None)) is not None:
            with suppress(TypelessError):
                return await _result_of(adopted)
        options = self._decode_options(utterance)
        return await retried(self._dependencies, lambda: self._decode(utterance, options))

    def _decode_options(self, utterance: Utterance) -> DecodeOptions:
        """Return the options with which an utterance is decoded now, speculatively or not."""
        return self.expecting(final_options(utterance.options))

    def _decode(self, utterance: Utterance, options: DecodeOptions) -> Coroutine[Any, Any, Recognition]:
        audio = self._samples.cut(utterance.audio_start, utterance.audio_end)
        return self._dependencies.engine.recognize(audio, options, Ticket(Lane.LIVE_FINAL, self._options.caller))

    def expecting(self, options: DecodeOptions) -> DecodeOptions:
        """See `Decoder`."""
        return self._language.expected_in(options)

    def reconfigure(self, options: DecodeOptions) -> None:
        """See `Decoder`."""
        self._language.reset(options)

    async def has_high_confidence(self, utterance: Utterance) -> bool:
        """See `Decoder`."""
        task = self._speculated(utterance)
        await asyncio.wait([task])
        if task.cancelled() or task.exception() is not None:
            return True
        return confidence_of(task.result()) >= HIGH_CONFIDENCE

    def speculate(self, utterance: Utterance, *, is_likely: bool) -> None:
        """See `Decoder`."""
        if self.is_speculated(utterance):
            return
        if is_likely or self._dependencies.engine.backlog_s <= _BUSY_BACKLOG_S:
            self._speculated(utterance)
        else:
            self.cancel_speculation()

    def _speculated(self, utterance: Utterance) -> asyncio.Task[Recognition]:
        """Return the speculative decode of this utterance, begun now if there is none."""
        if self._speculation is not None and self.is_speculated(utterance):
            return self._speculation.task
        self.cancel_speculation()
        options = self._decode_options(utterance)
        task = asyncio.create_task(self._decode(utterance, options))
        task.add_done_callback(_retrieve_exception)
        self._speculation = _Speculation(_span(utterance), options, task)
        return task

    def is_speculated(self, utterance: Utterance) -> bool:
        """See `Decoder`."""
        one = self._speculation
        return one is not None and (one.span, one.options) == (_span(utterance), self._decode_options(utterance))

    def adopt(self, utterance: Utterance) -> bool:
        """See `Decoder`."""
        if self._speculation is not None and self.is_speculated(utterance):
            self._adopted[utterance.id], self._speculation = self._speculation.task, None
            return True
        self.cancel_speculation()
        return False

    def cancel_speculation(self) -> None:
        """See `Decoder`."""
        speculation, self._speculation = self._speculation, None
        if speculation is not None:
            speculation.task.cancel()

    def close(self) -> None:
        """See `Decoder`."""
        self.cancel_speculation()
        for task in self._adopted.values():
            task.cancel()
        self._adopted.clear()


def _span(utterance: Utterance) -> tuple[int, int]:
    return utterance.audio_start, utterance.audio_end


async def _result_of(task: asyncio.Task[Recognition]) -> Recognition:
    """Return the task's result; cancelling this cancels the task."""
    try:
        return await task
    except asyncio.CancelledError:
        task.cancel()
        raise


def _clear_language(recognition: Recognition) -> str:
    """Return the language to expect in the next utterances; "" if that of this one is not clear."""
    transcript = recognition.transcript
    has_language = transcript.segments and is_clear(transcript.language_probability, transcript.speech_s)
    return transcript.language if has_language else ""


def _retrieve_exception(task: asyncio.Task[Recognition]) -> None:
    """Take the exception of a speculative decode that nobody awaits, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
