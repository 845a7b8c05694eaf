"""TranscriptionService: messages in, one call of the engine, messages out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc

from typeless_grpc.access import principal, rate_limit
from typeless_grpc.audio.decode import Decoded, DecodeLimits, decode
from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Engine, Lane, Ticket
from typeless_grpc.errors import NotImplementedHere
from typeless_grpc.pb.v1 import transcription_pb2, transcription_pb2_grpc
from typeless_grpc.servicers import convert
from typeless_grpc.telemetry.context import deadline_s


@dataclass(frozen=True)
class TranscriptionLimits:
    """max_audio_s: longest recording of Transcribe, in seconds."""

    max_audio_s: float = 3600.0


def _ticket() -> Ticket:
    return Ticket(Lane.UNARY, principal.current().id, deadline_s.get())


class TranscriptionServicer(transcription_pb2_grpc.TranscriptionServiceServicer):
    """Speech to text while the caller waits."""

    NAME = "typeless.v1.TranscriptionService"

    def __init__(self, engine: Engine, admission: Admission, decoding: Executor, limits: TranscriptionLimits) -> None:
        """decoding: the threads that turn bytes into samples."""
        self._engine = engine
        self._admission = admission
        self._decoding = decoding
        self._limits = limits

    def register(self, server: grpc.aio.Server) -> None:
        """Take this service's calls."""
        transcription_pb2_grpc.add_TranscriptionServiceServicer_to_server(self, server)

    async def Transcribe(
        self,
        request: transcription_pb2.TranscribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> transcription_pb2.TranscribeResponse:
        """One recording in, one transcript out."""
        arrived_s = time.monotonic()
        options = convert.decode_options(request.options, "options")
        content = convert.audio_content(request.audio, "audio")
        audio_format = convert.audio_format(request.audio.format, "audio.format")
        with self._admission.call():
            decoded = await self._decode(content, audio_format)
            await rate_limit.current().recording(decoded.duration_s)
            with self._admission.audio(decoded.duration_s):
                recognition = await self._engine.transcribe(decoded.samples, options, _ticket())
        return transcription_pb2.TranscribeResponse(
            transcript=convert.transcript(recognition.transcript),
            stats=convert.stats(recognition, processing_s=time.monotonic() - arrived_s),
        )

    async def BatchTranscribe(
        self,
        request: transcription_pb2.BatchTranscribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> transcription_pb2.BatchTranscribeResponse:
        """Not served by this version; the contract's next step."""
        raise NotImplementedHere("This version does not serve BatchTranscribe.", reason="NOT_IMPLEMENTED")

    def StreamTranscribe(
        self,
        request_iterator: AsyncIterator[transcription_pb2.StreamTranscribeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[transcription_pb2.StreamTranscribeResponse]:
        """Not served by this version; the contract's next step."""
        raise NotImplementedHere("This version does not serve StreamTranscribe.", reason="NOT_IMPLEMENTED")

    async def _decode(self, content: bytes, audio_format: AudioFormat) -> Decoded:
        """Samples, off the event loop; a caller that goes away stops the thread between two blocks."""
        gone = threading.Event()
        limits = DecodeLimits(max_duration_s=self._limits.max_audio_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._decoding, lambda: decode(content, audio_format, limits, field="audio", cancelled=gone.is_set)
            )
        finally:
            gone.set()
