"""RivaSpeechRecognition: NVIDIA Riva's service, over the same engine, limits and sessions as typeless.v1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from typeless_grpc.access import principal
from typeless_grpc.audio.joined import HEAD_BYTES
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import NotFound
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.compat.options import NamedModels
from typeless_grpc.servicers.compat.pool import register
from typeless_grpc.servicers.compat.streams import CompatRequests, check_end, refuse_separate_channels, restartable
from typeless_grpc.servicers.models import is_multilingual
from typeless_grpc.servicers.recordings import Recording, RecordingTranscriber
from typeless_grpc.servicers.riva import messages, results
from typeless_grpc.servicers.riva.options import OF_RECORDING, OF_STREAM, declared_audio, transcription_options
from typeless_grpc.servicers.streaming import StreamService
from typeless_grpc.telemetry.context import deadline_s

FORCE_END_OF_UTTERANCE = "force_eou"


class RivaServicer:
    """Serves Riva's clients."""

    NAME = messages.SERVICE

    def __init__(
        self,
        admission: Admission,
        recordings: RecordingTranscriber,
        streams: StreamService,
        models: NamedModels,
    ) -> None:
        self._admission, self._recordings, self._streams = admission, recordings, streams
        self._models = models

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        register(server, messages.POOL.FindServiceByName(self.NAME), self)

    async def Recognize(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Transcribe one recording."""
        ticket = Ticket(Lane.UNARY, principal.current().id, deadline_s.get())
        with self._admission.call(ticket.caller), OF_RECORDING.named():
            options = await self._options(request.config)
            if request.config.enable_separate_recognition_per_channel:
                options.channel_mode = transcription_pb2.CHANNEL_MODE_SEPARATE
            audio = audio_pb2.AudioSource(
                content=request.audio, format=declared_audio(request.config).format(request.audio[:HEAD_BYTES])
            )
            recording = Recording.of(audio, options, "audio", "options")
            recognition = await self._recordings.transcribe(recording, ticket)
        response = results.recognized(convert.transcript(recognition.transcript))
        _repeat_id(request, response)
        return response

    def StreamingRecognize(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Transcribe live speech."""
        return self._responses(request_iterator)

    async def GetRivaSpeechRecognitionConfig(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """List the models that the caller may name."""
        usable = await self._models.usable.of_caller()
        if request.model_name:
            if request.model_name not in usable:
                raise NotFound(f"There is no model '{request.model_name[:100]}' here.", reason="MODEL_NOT_FOUND")
            usable = {request.model_name: usable[request.model_name]}
        response = messages.ConfigResponse()
        for name, model in usable.items():
            for kind in ("online", "offline"):
                parameters = {
                    "type": kind,
                    "language_code": "multi" if is_multilingual(name, model) else "en-US",
                    "sample_rate": "16000",
                    "default": "true" if name == self._models.usable.default_model else "false",
                }
                response.model_config.add(model_name=name, parameters=parameters)
        return response

    async def _options(self, config: Any) -> transcription_pb2.TranscriptionOptions:
        return transcription_options(config, await self._models.model(config.model))

    async def _responses(self, incoming: AsyncIterator[Any]) -> AsyncIterator[Any]:
        requests = _RivaRequests(incoming, self._options)
        with restartable(), OF_STREAM.named():
            async with aclosing(self._streams.responses(requests.translated(), is_resumable=False)) as events:
                async for event in events:
                    response = _response(event)
                    if response is not None:
                        if requests.request_id is not None:
                            response.id.CopyFrom(requests.request_id)
                        yield response


class _RivaRequests(CompatRequests):
    """Riva's requests. request_id: the newest, None if none came."""

    def __init__(
        self,
        incoming: AsyncIterator[Any],
        options: Callable[[Any], Awaitable[transcription_pb2.TranscriptionOptions]],
    ) -> None:
        super().__init__(incoming)
        self._options_of = options
        self._config: Any = None
        self._options = transcription_pb2.TranscriptionOptions()
        self.request_id: Any = None

    async def opened(self, first: Any) -> None:
        """See `CompatRequests`."""
        self._note(first)
        self._config = first.streaming_config
        config = self._config.config
        if config.enable_separate_recognition_per_channel:
            refuse_separate_channels(config.audio_channel_count)
        self._options = await self._options_of(config)

    def config(self, head: bytes) -> transcription_pb2.StreamConfig:
        """See `CompatRequests`."""
        return transcription_pb2.StreamConfig(
            format=declared_audio(self._config.config).format(head),
            options=self._options,
            interim_results=self._config.interim_results,
        )

    def audio(self, request: Any) -> bytes:
        """See `CompatRequests`."""
        self._note(request)
        audio: bytes = request.audio_content
        return audio

    def is_finalize(self, request: Any) -> bool:
        """See `CompatRequests`."""
        value: str = request.runtime_config.get(FORCE_END_OF_UTTERANCE, "")
        return value.lower() == "true"

    def _note(self, request: Any) -> None:
        if request.HasField("id"):
            self.request_id = request.id


def _response(event: transcription_pb2.StreamTranscribeResponse) -> Any | None:
    """Return the response for an event, None for one that Riva does not have. Raises if the server ended the audio."""
    match event.WhichOneof("event"):
        case "interim":
            return results.interim(event.interim)
        case "segment":
            return results.final(event.segment)
        case "completed":
            check_end(event.completed)
    return None


def _repeat_id(request: Any, response: Any) -> None:
    if request.HasField("id"):
        response.id.CopyFrom(request.id)
