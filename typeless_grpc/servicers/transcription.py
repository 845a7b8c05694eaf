"""TranscriptionService: converts messages, and calls the engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from typeless_grpc.access import principal
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.pb.v1 import transcription_pb2, transcription_pb2_grpc
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.batches import BatchTranscriber
from typeless_grpc.servicers.recordings import Recording, RecordingTranscriber
from typeless_grpc.servicers.streaming import StreamService
from typeless_grpc.telemetry.context import deadline_s


def _ticket(lane: Lane) -> Ticket:
    return Ticket(lane, principal.current().id, deadline_s.get())


class TranscriptionServicer(transcription_pb2_grpc.TranscriptionServiceServicer):
    """Transcribes while the caller waits."""

    NAME = "typeless.v1.TranscriptionService"

    def __init__(
        self,
        admission: Admission,
        recordings: RecordingTranscriber,
        batches: BatchTranscriber,
        streams: StreamService,
    ) -> None:
        self._admission = admission
        self._recordings = recordings
        self._batches = batches
        self._streams = streams

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        transcription_pb2_grpc.add_TranscriptionServiceServicer_to_server(self, server)

    async def Transcribe(
        self,
        request: transcription_pb2.TranscribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> transcription_pb2.TranscribeResponse:
        """Transcribe one recording."""
        arrived_s = time.monotonic()
        recording = Recording.of(request.audio, request.options, "audio", "options")
        ticket = _ticket(Lane.UNARY)
        with self._admission.call(ticket.caller):
            recognition = await self._recordings.transcribe(recording, ticket)
        return transcription_pb2.TranscribeResponse(
            transcript=convert.transcript(recognition.transcript),
            stats=convert.stats(recognition, processing_s=time.monotonic() - arrived_s),
        )

    async def BatchTranscribe(
        self,
        request: transcription_pb2.BatchTranscribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> transcription_pb2.BatchTranscribeResponse:
        """Transcribe several recordings, each with its own outcome."""
        ticket = _ticket(Lane.BATCH)
        with self._admission.call(ticket.caller):
            return await self._batches.transcribe(request, ticket)

    def StreamTranscribe(
        self,
        request_iterator: AsyncIterator[transcription_pb2.StreamTranscribeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[transcription_pb2.StreamTranscribeResponse]:
        """Transcribe audio as it arrives."""
        return self._streams.responses(request_iterator)
