"""Transcribes one recording, for Transcribe and for each item of a batch."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

from typeless_grpc import account
from typeless_grpc.access import principal, rate_limit
from typeless_grpc.audio.decode import Decoded, DecodeLimits, decode
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, AudioFormat
from typeless_grpc.audio.observer import AudioObserver
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.engine.admission import Admission, Reservation
from typeless_grpc.engine.interface import DecodeOptions, Engine, Recognition, Ticket
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers import convert, convert_jobs


@dataclass(frozen=True)
class RecordingLimits:
    """max_audio_s: longest recording, in seconds."""

    max_audio_s: float


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

    def maybe_container(self) -> Recording:
        """Return this recording, read as a container if it begins as one, whatever its request declares."""
        return replace(self, format=replace(self.format, may_be_container=True))


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
        observer: AudioObserver | None = None,
        decoders: Decoders = IN_PROCESS,
    ) -> None:
        """decoding: threads that decode bytes to samples; fetching: threads for audio on other machines.

        decoders: where containers are decoded.
        """
        self._engine = engine
        self._admission = admission
        self._decoding = decoding
        self._limits = limits
        self._sources = sources
        self._fetching = fetching
        self._observer = observer
        self._decoders = decoders

    def use(self, limits: RecordingLimits) -> None:
        """Apply these limits to recordings that are decoded from now on."""
        self._limits = limits

    async def transcribe(self, recording: Recording, ticket: Ticket) -> Recognition:
        """Transcribe one recording. Raises what decoding and the engine raise, Overloaded and RateLimited."""
        reservation = self._admission.reserve(ticket.caller)
        is_over = threading.Event()
        started_s = time.monotonic()
        decoding = self._decoding_of(recording, reservation, is_over)
        try:
            with fields_at(recording.options_field):
                samples = (await asyncio.wrap_future(decoding)).samples
                if self._observer is not None:
                    self._observer.audio_decoded(time.monotonic() - started_s)
                async with rate_limit.current().recording(samples.size / SAMPLE_RATE_HZ):
                    recognition = await self._engine.transcribe(samples, recording.options, ticket)
                call = account.current()
                call.add_audio(samples.size / SAMPLE_RATE_HZ)
                call.add_text(recognition.transcript.text)
                return recognition
        finally:
            is_over.set()
            _close_after(decoding, reservation)

    def _decoding_of(
        self, recording: Recording, reservation: Reservation, is_over: threading.Event
    ) -> concurrent.futures.Future[Decoded]:
        """Decode in a thread, and reserve the decoded audio. is_over: set it to stop the thread between two blocks."""
        source, owner = recording.source, convert_jobs.reach(principal.current())

        def work() -> Decoded:
            if isinstance(source, bytes):
                return decoded(source)
            with self._sources.open(source, owner, f"{recording.field}.uri") as file:
                return decoded(file)

        def decoded(data: bytes | BinaryIO) -> Decoded:
            return decode(
                data,
                recording.format,
                DecodeLimits(max_duration_s=self._limits.max_audio_s),
                field=recording.field,
                cancelled=is_over.is_set,
                separate_channels=recording.options.separate_channels,
                reserve=reservation.grow_to,
                open_container=self._decoders.recording,
            )

        is_remote = isinstance(source, str) and self._sources.is_remote(source)
        return (self._fetching if is_remote else self._decoding).submit(work)


def _close_after(decoding: concurrent.futures.Future[Decoded], reservation: Reservation) -> None:
    """Release the reservation when the thread has ended, which may be a moment after its call."""
    if decoding.done():
        reservation.close()
        return
    loop = asyncio.get_running_loop()

    def close(_: concurrent.futures.Future[Decoded]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the server has stopped
            loop.call_soon_threadsafe(reservation.close)

    decoding.add_done_callback(close)


@contextmanager
def fields_at(options_field: str) -> Iterator[None]:
    """Make errors name fields by their path in the request. Inner code knows them only as "options.…"."""
    try:
        yield
    except InvalidInput as error:
        raise error.moved(lambda field: _moved(field, options_field)) from error


def _moved(field: str, options_field: str) -> str:
    return options_field + field.removeprefix("options") if field.startswith("options.") else field
