"""Transcribes one recording, for Transcribe and for each item of a batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from typeless_grpc.access import principal, rate_limit
from typeless_grpc.audio.decode import Decoded, DecodeLimits, decode
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import DecodeOptions, Engine, Recognition, Ticket
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers import convert, convert_jobs


@dataclass(frozen=True)
class RecordingLimits:
    """max_audio_s: longest recording, in seconds."""

    max_audio_s: float = 3600.0


@dataclass(frozen=True)
class Recording:
    """A recording of a request, validated as far as that is possible without decoding it.

    source: its bytes, or the URI to fetch them from. field, options_field: the paths of its audio and its options in
    the request.
    """

    source: bytes | str
    format: AudioFormat
    options: DecodeOptions
    field: str
    options_field: str

    @classmethod
    def of(
        cls, audio: audio_pb2.AudioSource, options: transcription_pb2.TranscriptionOptions, field: str, at: str
    ) -> Recording:
        """Parse a recording of a request. at: path of its options. Raises InvalidInput."""
        return cls(
            options=convert.decode_options(options, at),
            source=convert.audio_source(audio, field),
            format=convert.audio_format(audio.format, f"{field}.format"),
            field=field,
            options_field=at,
        )


class RecordingTranscriber:
    """Decodes recordings and passes them to the engine, within the server's bounds."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        decoding: Executor,
        limits: RecordingLimits,
        sources: AudioSources,
        fetching: Executor,
    ) -> None:
        """decoding: threads that decode bytes to samples; fetching: threads for audio on other machines."""
        self._engine = engine
        self._admission = admission
        self._decoding = decoding
        self._limits = limits
        self._sources = sources
        self._fetching = fetching

    async def transcribe(self, recording: Recording, ticket: Ticket) -> Recognition:
        """Transcribe one recording. Raises what decoding and the engine raise, Overloaded and RateLimited."""
        with fields_at(recording.options_field):
            decoded = await self._decode(recording)
            audio_s = decoded.duration_s * (len(decoded.samples) if decoded.samples.ndim > 1 else 1)
            async with rate_limit.current().recording(audio_s):
                with self._admission.audio(audio_s, ticket.caller):
                    return await self._engine.transcribe(decoded.samples, recording.options, ticket)

    async def _decode(self, recording: Recording) -> Decoded:
        """Decode in a thread. If the caller cancels, the thread stops between two blocks."""
        cancelled = threading.Event()
        source, owner = recording.source, convert_jobs.reach(principal.current())

        def work() -> Decoded:
            if isinstance(source, bytes):
                return samples(source)
            with self._sources.open(source, owner, f"{recording.field}.uri") as file:
                return samples(file)

        def samples(data: bytes | BinaryIO) -> Decoded:
            return decode(
                data,
                recording.format,
                DecodeLimits(max_duration_s=self._limits.max_audio_s),
                field=recording.field,
                cancelled=cancelled.is_set,
                separate_channels=recording.options.separate_channels,
            )

        try:
            is_remote = isinstance(source, str) and self._sources.is_remote(source)
            executor = self._fetching if is_remote else self._decoding
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        finally:
            cancelled.set()


@contextmanager
def fields_at(options_field: str) -> Iterator[None]:
    """Name the fields that inner code objects to as the request has them: it knows them as "options.…" only."""
    try:
        yield
    except InvalidInput as error:
        raise error.moved(lambda field: _moved(field, options_field)) from error


def _moved(field: str, options_field: str) -> str:
    return options_field + field.removeprefix("options") if field.startswith("options.") else field
