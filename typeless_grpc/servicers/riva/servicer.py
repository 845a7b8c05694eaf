"""RivaSpeechRecognition: NVIDIA Riva's service, over the same engine, limits and sessions as typeless.v1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from typeless_grpc.access import principal
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import Aborted, DeadlineExceeded, InvalidInput, NotFound, Overloaded
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.models import Usable, is_multilingual
from typeless_grpc.servicers.recordings import Recording, RecordingTranscriber
from typeless_grpc.servicers.riva import messages, results
from typeless_grpc.servicers.riva.options import (
    HEAD_BYTES,
    ModelNames,
    audio_format,
    riva_paths,
    transcription_options,
)
from typeless_grpc.servicers.streaming import StreamService
from typeless_grpc.telemetry.context import deadline_s

FORCE_END_OF_UTTERANCE = "force_eou"
_Request = transcription_pb2.StreamTranscribeRequest


class RivaServicer:
    """Serves Riva's clients."""

    NAME = messages.SERVICE
    POOL = messages.POOL

    def __init__(
        self,
        admission: Admission,
        recordings: RecordingTranscriber,
        streams: StreamService,
        models: Usable,
        names: ModelNames,
    ) -> None:
        self._admission, self._recordings, self._streams = admission, recordings, streams
        self._models, self._names = models, names

    def use(self, names: ModelNames) -> None:
        """Apply these names of models from the next call on."""
        self._names = names

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        handlers = {
            "Recognize": grpc.unary_unary_rpc_method_handler(
                self.Recognize,
                request_deserializer=messages.RecognizeRequest.FromString,
                response_serializer=messages.RecognizeResponse.SerializeToString,
            ),
            "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
                self.StreamingRecognize,
                request_deserializer=messages.StreamingRecognizeRequest.FromString,
                response_serializer=messages.StreamingRecognizeResponse.SerializeToString,
            ),
            "GetRivaSpeechRecognitionConfig": grpc.unary_unary_rpc_method_handler(
                self.GetRivaSpeechRecognitionConfig,
                request_deserializer=messages.ConfigRequest.FromString,
                response_serializer=messages.ConfigResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.NAME, handlers),))

    async def Recognize(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Transcribe one recording."""
        ticket = Ticket(Lane.UNARY, principal.current().id, deadline_s.get())
        with self._admission.call(ticket.caller), riva_paths("config", "audio"):
            options = await self._options(request.config)
            if request.config.enable_separate_recognition_per_channel:
                options.channel_mode = transcription_pb2.CHANNEL_MODE_SEPARATE
            audio = audio_pb2.AudioSource(
                content=request.audio, format=audio_format(request.config, request.audio[:HEAD_BYTES])
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
        usable = await self._models.of_caller()
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
                    "default": "true" if name == self._models.default_model else "false",
                }
                response.model_config.add(model_name=name, parameters=parameters)
        return response

    async def _options(self, config: Any) -> transcription_pb2.TranscriptionOptions:
        knows_model = bool(config.model) and await self._models.knows(config.model)
        return transcription_options(config, self._names, knows_model=knows_model)

    async def _responses(self, incoming: AsyncIterator[Any]) -> AsyncIterator[Any]:
        requests = _StreamRequests(incoming, self._options)
        with _restartable(), riva_paths("streaming_config.config", "audio_content"):
            async with aclosing(self._streams.responses(requests.translated(), is_resumable=False)) as events:
                async for event in events:
                    response = _response(event)
                    if response is not None:
                        if requests.request_id is not None:
                            response.id.CopyFrom(requests.request_id)
                        yield response


class _StreamRequests:
    """The requests of a stream, translated to those of StreamTranscribe. request_id: the newest, None if none came."""

    def __init__(
        self,
        incoming: AsyncIterator[Any],
        options: Callable[[Any], Awaitable[transcription_pb2.TranscriptionOptions]],
    ) -> None:
        self._incoming, self._options = incoming, options
        self.request_id: Any = None

    async def translated(self) -> AsyncIterator[_Request]:
        """Yield the configuration once the audio's first bytes tell its format, then the audio and what follows."""
        first = await anext(self._incoming, None)
        if first is None or first.WhichOneof("streaming_request") != "streaming_config":
            raise InvalidInput("streaming_config", "must be the first request", reason="STREAM_ORDER")
        self._note(first)
        config = first.streaming_config.config
        options = await self._options(config)
        if config.enable_separate_recognition_per_channel and config.audio_channel_count > 1:
            why = "a stream's channels are mixed: a stream for each keeps them apart"
            raise InvalidInput("options.channel_mode", why, reason="NOT_SUPPORTED")
        head, has_more = b"", True
        while has_more and len(head) < HEAD_BYTES:
            request = await anext(self._incoming, None)
            has_more = request is not None
            if request is not None:
                head += self._audio(request)
        stream_config = transcription_pb2.StreamConfig(
            format=audio_format(config, head),
            options=options,
            interim_results=first.streaming_config.interim_results,
        )
        yield _Request(config=stream_config)
        if head:
            yield _Request(audio=head)
        async for request in self._incoming:
            audio = self._audio(request)
            if audio:
                yield _Request(audio=audio)
            if request.runtime_config.get(FORCE_END_OF_UTTERANCE, "").lower() == "true":
                yield _Request(control=transcription_pb2.STREAM_CONTROL_FINALIZE)
            elif not audio:
                yield _Request(control=transcription_pb2.STREAM_CONTROL_KEEP_ALIVE)

    def _audio(self, request: Any) -> bytes:
        if request.WhichOneof("streaming_request") == "streaming_config":
            raise InvalidInput("streaming_config", "comes first and only once", reason="STREAM_ORDER")
        self._note(request)
        audio: bytes = request.audio_content
        return audio

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
        case "completed" if event.completed.end_reason == transcription_pb2.STREAM_END_REASON_DRAINING:
            raise Overloaded("This server stops. Begin a new stream with the rest of the audio.", reason="DRAINING")
        case "completed" if event.completed.end_reason == transcription_pb2.STREAM_END_REASON_IDLE:
            raise _idle()
    return None


@contextmanager
def _restartable() -> Iterator[None]:
    """Let a stream whose first audio did not come in time end as one whose caller fell silent later."""
    try:
        yield
    except DeadlineExceeded as error:
        if error.reason != "STREAM_IDLE":
            raise
        raise _idle() from error


def _idle() -> Aborted:
    return Aborted("No audio came for too long. Begin a new stream.", reason="STREAM_IDLE")


def _repeat_id(request: Any, response: Any) -> None:
    if request.HasField("id"):
        response.id.CopyFrom(request.id)
