"""google.cloud.speech.*.Speech: Google's service, over the same engine, limits, sessions and jobs as typeless.v1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from typeless_grpc.access import principal
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import InvalidInput, OutOfRange
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.compat.pool import copy, register
from typeless_grpc.servicers.compat.streams import CompatRequests, check_end, refuse_separate_channels, restartable
from typeless_grpc.servicers.google.messages import Version
from typeless_grpc.servicers.google.operations import OperationsServicer
from typeless_grpc.servicers.google.options import Wanted, check_recognizer, of_recording, of_stream, wanted
from typeless_grpc.servicers.google.recordings import Configurations
from typeless_grpc.servicers.google.results import Results, set_billed
from typeless_grpc.servicers.recordings import Recording, RecordingTranscriber
from typeless_grpc.servicers.streaming import StreamService
from typeless_grpc.telemetry.context import deadline_s, request_id

_OPERATIONS = "operations/"


class SpeechServicer:
    """Serves Google's clients of one version."""

    def __init__(
        self,
        version: Version,
        admission: Admission,
        recordings: RecordingTranscriber,
        streams: StreamService,
        configurations: Configurations,
        operations: OperationsServicer,
    ) -> None:
        self.NAME: str = version.service.full_name
        self._version = version
        self._admission, self._recordings, self._streams = admission, recordings, streams
        self._configurations, self._operations = configurations, operations

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        register(server, self._version.service, self)

    async def Recognize(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Transcribe one recording."""
        version = self._version
        if version.is_v2:
            check_recognizer(request.recognizer)
        source = request if version.is_v2 else request.audio
        ticket = Ticket(Lane.UNARY, principal.current().id, deadline_s.get())
        with self._admission.call(ticket.caller), of_recording(version).named():
            found, audio, options = await self._configurations.recording(
                version, request.config, source.content, source.uri
            )
            recording = Recording.of(audio, options, "audio", "options").maybe_container()
            recognition = await self._recordings.transcribe(recording, ticket)
        transcript = convert.transcript(recognition.transcript)
        results = _results(version, found).recognized(transcript.segments)
        response = version.message("RecognizeResponse", results=results)
        set_billed(version, response, transcript.audio_duration, request_id.get())
        return response

    def StreamingRecognize(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Transcribe live speech."""
        return self._responses(request_iterator)

    async def LongRunningRecognize(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Submit a recording as a job (v1, v1p1beta1)."""
        if request.HasField("output_config"):
            raise InvalidInput("output_config", "results are part of the operation", reason="NOT_SUPPORTED")
        with of_recording(self._version).named():
            found, audio, options = await self._configurations.recording(
                self._version, request.config, request.audio.content, request.audio.uri
            )
            return await self._operations.submit(self._version, found, audio, options, parent="")

    async def BatchRecognize(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Submit a recording as a job (v2)."""
        check_recognizer(request.recognizer)
        if len(request.files) != 1:
            raise InvalidInput("files", "one file in each request, as Google requires for inline results")
        output = request.recognition_output_config
        if output.WhichOneof("output") == "gcs_output_config" or output.HasField("output_format_config"):
            raise InvalidInput("recognition_output_config", "results are inline, as JSON only", reason="NOT_SUPPORTED")
        (file,) = request.files
        parent = f"{request.recognizer.partition('/recognizers/')[0]}/{_OPERATIONS}"
        config = file.config if file.HasField("config") else request.config
        with of_recording(self._version).named():
            found, audio, options = await self._configurations.recording(self._version, config, b"", file.uri)
            return await self._operations.submit(self._version, found, audio, options, parent=parent)

    async def _responses(self, incoming: AsyncIterator[Any]) -> AsyncIterator[Any]:
        requests = _GoogleRequests(self._version, incoming, self._configurations)
        with restartable(), _within_range(), of_stream(self._version).named():
            async with aclosing(self._streams.responses(requests.translated(), is_resumable=False)) as events:
                responses: _Responses | None = None
                try:
                    async for event in events:
                        responses = responses or _Responses(self._version, requests)
                        for response in responses.of(event):
                            yield response
                finally:
                    if responses is not None:
                        responses.close()


class _GoogleRequests(CompatRequests):
    """Google's requests. features: StreamingRecognitionConfig in v1, its streaming_features in v2."""

    def __init__(self, version: Version, incoming: AsyncIterator[Any], configurations: Configurations) -> None:
        super().__init__(incoming)
        self._version, self._configurations = version, configurations
        self._options = transcription_pb2.TranscriptionOptions()
        self.wanted: Wanted
        self.features: Any = None

    async def opened(self, first: Any) -> None:
        """See `CompatRequests`."""
        if self._version.is_v2:
            check_recognizer(first.recognizer)
        streaming = first.streaming_config
        self.features = streaming.streaming_features if self._version.is_v2 else streaming
        self.wanted = wanted(self._version, streaming.config)
        if self.wanted.separates_channels:
            refuse_separate_channels(self.wanted.audio.n_channels)
        self._options = await self._configurations.options(self.wanted)

    def config(self, head: bytes) -> transcription_pb2.StreamConfig:
        """See `CompatRequests`."""
        return transcription_pb2.StreamConfig(
            format=self.wanted.audio.format(head), options=self._options, interim_results=self.features.interim_results
        )

    def audio(self, request: Any) -> bytes:
        """See `CompatRequests`."""
        audio: bytes = request.audio if self._version.is_v2 else request.audio_content
        return audio


class _Responses:
    """The responses of one stream: results, speech events, and the end of the audio that Google's options request."""

    def __init__(self, version: Version, requests: _GoogleRequests) -> None:
        self._version, self._requests, self._features = version, requests, requests.features
        self._results = _results(version, requests.wanted)
        self._ends_after_utterance = not version.is_v2 and self._features.single_utterance
        types = version.enum("StreamingRecognizeResponse.SpeechEventType")
        self._types = {name: number for number, name in types.items()}
        self._timer: asyncio.TimerHandle | None = None
        self._has_timed_out = False
        self._wait(self._features.voice_activity_timeout.speech_start_timeout)

    def of(self, event: transcription_pb2.StreamTranscribeResponse) -> list[Any]:
        """Return the responses for an event."""
        match event.WhichOneof("event"):
            case "interim":
                return [self._response(results=[self._results.interim(event.interim)])]
            case "segment":
                return [self._response(results=[self._results.final(event.segment)])]
            case "speech_activity":
                return self._activity(event.speech_activity)
            case "completed":
                check_end(event.completed)
                last = self._response()
                audio = event.completed.transcript.audio_duration
                set_billed(self._version, last, audio, request_id.get())
                name = "SPEECH_ACTIVITY_TIMEOUT"
                timed_out = [self._event(name, audio)] if self._has_timed_out and name in self._types else []
                return [*timed_out, last]
        return []

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _activity(self, activity: transcription_pb2.SpeechActivity) -> list[Any]:
        starts = activity.type == transcription_pb2.SPEECH_ACTIVITY_TYPE_SPEECH_START
        self.close()
        if not starts:
            self._wait(self._features.voice_activity_timeout.speech_end_timeout)
        responses = []
        if self._features.enable_voice_activity_events:
            responses.append(self._event(f"SPEECH_ACTIVITY_{'BEGIN' if starts else 'END'}", activity.offset))
        if self._ends_after_utterance and not starts:
            responses.append(self._event("END_OF_SINGLE_UTTERANCE", activity.offset))
            self._requests.end()
        return responses

    def _wait(self, timeout: Any) -> None:
        """End the audio once the timeout has passed, unless it is zero or speech comes first."""
        seconds = timeout.seconds + timeout.nanos / 1e9
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._time_out)

    def _time_out(self) -> None:
        self._has_timed_out = True
        self._requests.end()

    def _event(self, name: str, offset: Any) -> Any:
        response = self._response(speech_event_type=self._types[name])
        copy(offset, response.speech_event_offset if self._version.is_v2 else response.speech_event_time)
        return response

    def _response(self, **fields: Any) -> Any:
        return self._version.message("StreamingRecognizeResponse", **fields)


def _results(version: Version, found: Wanted) -> Results:
    return Results(
        version,
        found.languages,
        separates_channels=found.separates_channels,
        has_word_times=found.has_word_times,
        has_word_confidences=found.has_word_confidences,
    )


@contextmanager
def _within_range() -> Iterator[None]:
    """Make a stream that is too long end as Google's do."""
    try:
        yield
    except InvalidInput as error:
        if error.reason != "AUDIO_TOO_LONG":
            raise
        raise OutOfRange(error.message, reason=error.reason) from error
