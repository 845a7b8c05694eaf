"""Channels on their own: one speaker a channel, as on a recorded phone call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Engine, Recognition, Ticket
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Transcript


class ChannelEngine:
    """An engine that knows one channel, made one that takes several: side by side, each as its own recording."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def backlog_s(self) -> float:
        """See `Engine`."""
        return self._engine.backlog_s

    @property
    def stalled_s(self) -> float:
        """See `Engine`."""
        return self._engine.stalled_s

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        if audio.ndim == 1:
            return await self._engine.transcribe(audio, options, ticket)
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._engine.transcribe(channel, options, ticket)) for channel in audio]
        except* Exception as errors:  # the first one ended the others; the caller needs no group of one
            raise errors.exceptions[0] from None
        return together([call.result() for call in calls])

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._engine.recognize(utterance, options, ticket)


def together(channels: Sequence[Recognition]) -> Recognition:
    """What was said in all channels, in order of time. channels: at least one, all of the same length."""
    parts = [one.transcript for one in channels]
    tally = LanguageTally()
    for part in parts:
        tally.add(part.language, part.language_probability, part.speech_s)
    language, probability = tally.main()
    segments = [_on(segment, i) for i, part in enumerate(parts) for segment in part.segments]
    suppressed = [replace(one, segment=_on(one.segment, i)) for i, part in enumerate(parts) for one in part.suppressed]
    transcript = Transcript(
        segments=tuple(sorted(segments, key=_when)),
        suppressed=tuple(sorted(suppressed, key=lambda one: _when(one.segment))),
        language=language,
        language_probability=probability,
        audio_s=parts[0].audio_s,
        # Where two speak at once it counts once, but not where each of them did is known here: a bound.
        speech_s=min(parts[0].audio_s, sum(part.speech_s for part in parts)),
        model=parts[0].model,
    )
    return Recognition(
        transcript,
        queue_s=max(one.queue_s for one in channels),
        n_chunks=sum(one.n_chunks for one in channels),
        chunking=channels[0].chunking,
    )


def _on(segment: Segment, channel: int) -> Segment:
    return replace(segment, channel=channel)


def _when(segment: Segment) -> tuple[float, int]:
    return segment.start_s, segment.channel
