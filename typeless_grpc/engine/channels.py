"""Transcribes each channel of a recording on its own, for recordings with one speaker per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Engine, Recognition, Ticket
from typeless_grpc.engine.tasks import gather
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Transcript


class ChannelEngine:
    """Wraps an engine for one channel: transcribes the channels of a recording in parallel, and merges the results."""

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
        return merge_channels(await gather([self._engine.transcribe(one, options, ticket) for one in audio]))

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._engine.recognize(utterance, options, ticket)


def merge_channels(channels: Sequence[Recognition]) -> Recognition:
    """Return the segments of all channels, in order of time. channels: at least one, all of the same length."""
    parts = [one.transcript for one in channels]
    tally = LanguageTally()
    for part in parts:
        tally.add(part.language, part.language_probability, part.speech_s)
    language, probability = tally.main()
    segments = [_on_channel(segment, i) for i, part in enumerate(parts) for segment in part.segments]
    suppressed = [
        replace(one, segment=_on_channel(one.segment, i)) for i, part in enumerate(parts) for one in part.suppressed
    ]
    transcript = Transcript(
        segments=tuple(sorted(segments, key=_order)),
        suppressed=tuple(sorted(suppressed, key=lambda one: _order(one.segment))),
        language=language,
        language_probability=probability,
        audio_s=parts[0].audio_s,
        # An upper bound: speech on two channels at the same time counts twice, because the overlap is not known here.
        speech_s=min(parts[0].audio_s, sum(part.speech_s for part in parts)),
        model=parts[0].model,
    )
    return Recognition(
        transcript,
        queue_s=max(one.queue_s for one in channels),
        n_chunks=sum(one.n_chunks for one in channels),
        chunking=channels[0].chunking,
    )


def _on_channel(segment: Segment, channel: int) -> Segment:
    return replace(segment, channel=channel)


def _order(segment: Segment) -> tuple[float, int]:
    return segment.start_s, segment.channel
