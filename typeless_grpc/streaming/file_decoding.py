"""Decodes the chunks of a FILE stream as `Transcribe` decodes those of a recording."""

from __future__ import annotations

import asyncio

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.streaming.decoding import StreamLanguage, final_options, retried
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.utterances import Utterance


class FileDecoder:
    """The decoder of one FILE stream; see `decoding.Decoder`.

    Several chunks are decoded at once. The first one with text decides which language the others expect.
    """

    def __init__(self, dependencies: Dependencies, options: StreamOptions, samples: SampleBuffer) -> None:
        self._dependencies, self._options, self._samples = dependencies, options, samples
        self._slots = asyncio.Semaphore(options.max_chunks_at_once)
        self._language = StreamLanguage(options.options)
        self._detection = asyncio.Lock()

    async def final(self, utterance: Utterance) -> Recognition:
        """See `Decoder`."""
        audio = self._samples.cut(utterance.audio_start, utterance.audio_end)
        options = final_options(utterance.options)
        async with self._slots:
            if not options.language and not self._language.code:
                async with self._detection:
                    if not self._language.code:
                        return await self._detect(utterance, audio, options)
            return await self._decode(audio, options)

    async def _detect(self, utterance: Utterance, audio: Audio, options: DecodeOptions) -> Recognition:
        recognition = await self._decode(audio, options)
        self.learn(utterance, recognition)
        return recognition

    def learn(self, utterance: Utterance, recognition: Recognition) -> None:
        """See `Decoder`. The first chunk with text decides."""
        if not utterance.options.language and not self._language.code and recognition.transcript.segments:
            self._language.set(recognition.transcript.language, utterance)

    async def _decode(self, audio: Audio, options: DecodeOptions) -> Recognition:
        expecting = self.expecting(options)
        ticket = Ticket(Lane.UNARY, self._options.caller)
        return await retried(self._dependencies, lambda: self._dependencies.engine.transcribe(audio, expecting, ticket))

    def expecting(self, options: DecodeOptions) -> DecodeOptions:
        """See `Decoder`."""
        return self._language.expected_in(options)

    def reconfigure(self, options: DecodeOptions) -> None:
        """See `Decoder`."""
        self._language.reset(options)

    def is_speculated(self, utterance: Utterance) -> bool:
        """See `Decoder`. Always false: a chunk is known only when it is over."""
        return False

    def speculate(self, utterance: Utterance, *, is_likely: bool) -> None:
        """See `Decoder`."""

    def cancel_speculation(self) -> None:
        """See `Decoder`: there is none."""

    def adopt(self, utterance: Utterance) -> bool:
        """See `Decoder`: there is none."""
        return False

    async def has_high_confidence(self, utterance: Utterance) -> bool:
        """See `Decoder`. Always true: confidence does not matter in FILE mode."""
        return True

    def close(self) -> None:
        """See `Decoder`: there are none."""
