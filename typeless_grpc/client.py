"""What a Python caller uses: `Client` and `AsyncClient`, with nothing but grpcio and protobuf behind them.

    >>> from typeless_grpc.client import Client
    >>> with Client("localhost:50051") as client:  # doctest: +SKIP
    ...     print(client.transcribe("meeting.flac").transcript.text)

Answers are the messages of the contract (`typeless_grpc.pb.v1`). What the server refuses is raised as `CallFailed`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from typeless_grpc.client_channel import Tls, async_channel, channel, proxy_variable
from typeless_grpc.pb.v1 import (
    audio_pb2,
    server_pb2,
    server_pb2_grpc,
    transcript_pb2,
    transcription_pb2,
    transcription_pb2_grpc,
)

if TYPE_CHECKING:
    from typeless_grpc.client_jobs import AsyncJobs, Jobs
    from typeless_grpc.client_stream import Item, StreamOptions

__all__ = [
    "DEFAULT_TARGET",
    "AsyncClient",
    "CallFailed",
    "Client",
    "Options",
    "RawFormat",
    "Tls",
    "async_channel",
    "channel",
    "transcribe_request",
]

DEFAULT_TARGET = "localhost:50051"

# What a call ends with whose connection breaks, or that a server cuts as it ends; only where it gave no reason.
BREAKS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)

# What can be transcribed: a file's path, or the bytes of one.
AudioLike = str | os.PathLike[str] | bytes


class CallFailed(Exception):
    """A call the server refused or could not finish.

    code: gRPC's status. reason: stable, for programs ("AUDIO_TOO_LONG"), "" where the server gave none. fields: what is
    wrong with which field of the request. retry_after_s: set where the same call may succeed later.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        fields: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} ({self.reason or self.code.name})"

    @classmethod
    def of(cls, error: Any) -> CallFailed:
        """Read the `google.rpc` details of a grpc.RpcError or grpc.aio.AioRpcError."""
        # By pairs: dict() asks for keys, which in older grpcio (1.78) are pairs themselves.
        trailers = {name: value for name, value in error.trailing_metadata() or ()}  # noqa: C416
        message = error.details() or ""
        if error.code() is grpc.StatusCode.UNAVAILABLE and (name := proxy_variable(message)):
            message += f"; it was called through the proxy that {name} names"
        failed = cls(error.code(), message, request_id=str(trailers.get("x-request-id", "")))
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        for detail in status.details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                failed.reason = info.reason
            elif detail.Unpack(bad):
                failed.fields = tuple((v.field, v.description) for v in bad.field_violations)
            elif detail.Unpack(retry):
                failed.retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        return failed


@dataclass(frozen=True)
class RawFormat:
    """What bare samples need to be read: encoding "pcm_s16le", "pcm_f32le", "mulaw" or "alaw"; rate in Hz."""

    encoding: str
    sample_rate_hz: int
    n_channels: int = 1

    def message(self) -> audio_pb2.AudioFormat:
        """The contract's form. Raises ValueError for an unknown encoding."""
        return audio_pb2.AudioFormat(
            encoding=audio_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{self.encoding.upper()}"),
            sample_rate_hertz=self.sample_rate_hz,
            channel_count=self.n_channels,
        )


@dataclass(frozen=True)
class Options:
    """What to do with the audio; everything left out is the server's choice. See TranscriptionOptions in the contract.

    language: BCP-47 tag, "" detects it, among allowed_languages where there are any. task: "transcribe", or "translate"
    into English. hotwords: names and phrases to expect. temperatures: tried in turn, each in [0, 1]. chunking: "auto",
    "whole", "fixed", "vad" or "hybrid". channels: "mix" or "separate". post_processing: "none", "basic" or "standard";
    replacements: from what is found to what is written instead. output_formats: of "text", "srt", "webvtt", "json",
    "tsv". The rest is how speech is told from silence, None for the server's choice: see VoiceActivityOptions.
    """

    model: str = ""
    language: str = ""
    task: str = "transcribe"
    prompt: str = ""
    hotwords: Sequence[str] = ()
    word_timestamps: bool = False
    beam_size: int = 0
    temperatures: Sequence[float] = field(default=())
    allowed_languages: Sequence[str] = ()
    chunking: str = "auto"
    channels: str = "mix"
    post_processing: str = "none"
    replacements: Mapping[str, str] = field(default_factory=dict)
    mask_profanity: bool = False
    output_formats: Sequence[str] = ()
    speech_threshold: float = 0.0
    end_silence_s: float | None = None
    speech_padding_s: float | None = None
    max_utterance_s: float | None = None

    def message(self) -> transcription_pb2.TranscriptionOptions:
        """The contract's form. Raises ValueError for a name that it does not have."""
        message = transcription_pb2.TranscriptionOptions(
            model=self.model,
            language=self.language,
            allowed_languages=self.allowed_languages,
            task=transcription_pb2.Task.Value(f"TASK_{self.task.upper()}"),
            prompt=self.prompt,
            hotwords=self.hotwords,
            word_timestamps=self.word_timestamps,
            output_formats=[
                transcript_pb2.OutputFormat.Value(f"OUTPUT_FORMAT_{name.upper()}") for name in self.output_formats
            ],
            decoding=transcription_pb2.DecodingOptions(beam_size=self.beam_size, temperatures=self.temperatures),
        )
        # Set only where they say something, so that a request reads like what was asked.
        if self.chunking != "auto":
            message.chunking = transcription_pb2.ChunkingStrategy.Value(f"CHUNKING_STRATEGY_{self.chunking.upper()}")
        if self.channels != "mix":
            message.channel_mode = transcription_pb2.ChannelMode.Value(f"CHANNEL_MODE_{self.channels.upper()}")
        if post := self._post_processing():
            message.post_processing.CopyFrom(post)
        if voice := self._voice_activity():
            message.voice_activity.CopyFrom(voice)
        return message

    def _post_processing(self) -> transcription_pb2.PostProcessing | None:
        if self.post_processing == "none" and not self.replacements and not self.mask_profanity:
            return None
        mode = transcription_pb2.PostProcessingMode.Value(f"POST_PROCESSING_MODE_{self.post_processing.upper()}")
        return transcription_pb2.PostProcessing(
            mode=mode, replacements=self.replacements, mask_profanity=self.mask_profanity
        )

    def _voice_activity(self) -> transcription_pb2.VoiceActivityOptions | None:
        asked = {
            "end_silence": self.end_silence_s,
            "speech_padding": self.speech_padding_s,
            "max_utterance": self.max_utterance_s,
        }
        durations = {name: timedelta(seconds=seconds) for name, seconds in asked.items() if seconds is not None}
        if not durations and not self.speech_threshold:
            return None
        message = transcription_pb2.VoiceActivityOptions(threshold=self.speech_threshold)
        for name, value in durations.items():
            getattr(message, name).FromTimedelta(value)
        return message


def name_of(file: str | os.PathLike[str]) -> str:
    """A path as a message can hold it: what is no UTF-8 in it is written as `\\xe9`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def transcribe_request(
    audio: AudioLike, options: Options, raw_format: RawFormat | None = None
) -> transcription_pb2.TranscribeRequest:
    """The request of `transcribe`. Raises OSError if audio names a file that cannot be read."""
    content = audio if isinstance(audio, bytes) else Path(audio).read_bytes()
    source = audio_pb2.AudioSource(content=content, format=raw_format.message() if raw_format else None)
    return transcription_pb2.TranscribeRequest(audio=source, options=options.message())


def batch_request(
    recordings: Sequence[AudioLike],
    options: Options,
    *,
    names: Sequence[str] | None = None,
    raw_format: RawFormat | None = None,
) -> transcription_pb2.BatchTranscribeRequest:
    """The request of `batch`. Raises OSError if one of the recordings names a file that cannot be read."""
    if names is None:
        names = ["" if isinstance(audio, bytes) else name_of(audio) for audio in recordings]
    items = [
        transcription_pb2.BatchItem(name=name, audio=transcribe_request(audio, options, raw_format).audio)
        for name, audio in zip(names, recordings, strict=True)
    ]
    return transcription_pb2.BatchTranscribeRequest(items=items, options=options.message())


class Client:
    """A connection to a server; threads may share it."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        retry: bool = True,
    ) -> None:
        """target: "host:port". Connects at the first call.

        api_key: sent with every call; None takes the environment's TYPELESS_API_KEY, or what is in the file that
        TYPELESS_API_KEY_FILE names; "" sends none. tls: None is plain text, and then the key is sent in plain text too.
        retry: a call that is safe to repeat is made again where the server has no room or is away, four times at most
        and within its timeout_s. Raises ValueError for a key that no call can carry, or a target that is none.
        """
        self._channel = channel(target, api_key=api_key, tls=tls, retry=retry)
        self._transcription = transcription_pb2_grpc.TranscriptionServiceStub(self._channel)
        self._server = server_pb2_grpc.ServerServiceStub(self._channel)

    def transcribe(
        self,
        audio: AudioLike,
        options: Options | None = None,
        *,
        raw_format: RawFormat | None = None,
        timeout_s: float | None = None,
    ) -> transcription_pb2.TranscribeResponse:
        """Transcribe a recording: a path, or the bytes of a file. Raises CallFailed.

        >>> client.transcribe("tests/audio/en_short.flac", Options(language="en")).transcript.text
        'please close the window'
        """
        request = transcribe_request(audio, options or Options(), raw_format)
        try:
            return self._transcription.Transcribe(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise CallFailed.of(error) from error

    def batch(
        self,
        recordings: Sequence[AudioLike],
        options: Options | None = None,
        *,
        names: Sequence[str] | None = None,
        raw_format: RawFormat | None = None,
        timeout_s: float | None = None,
    ) -> transcription_pb2.BatchTranscribeResponse:
        """Transcribe several recordings at once, each with a transcript or a failure of its own. Raises CallFailed.

        names: what the results are called, the paths unless given. raw_format: of all of them.

        >>> answer = client.batch(["tests/audio/en_short.flac", b"no audio"], names=["call", "broken"])
        >>> [(result.name, result.WhichOneof("outcome")) for result in answer.results]
        [('call', 'transcript'), ('broken', 'failure')]
        """
        request = batch_request(recordings, options or Options(), names=names, raw_format=raw_format)
        try:
            return self._transcription.BatchTranscribe(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise CallFailed.of(error) from error

    def stream(
        self, audio: Iterable[Item], options: StreamOptions | None = None
    ) -> Iterator[transcription_pb2.StreamTranscribeResponse]:
        """Events as the audio is understood; a connection that breaks is taken up again. Raises CallFailed.

        Where a server stops, raw samples go on in a session of another, which the caller sees as the same one.
        audio: bytes in any pieces, and between them `Control` and `Options` (which replace those in force). It is read
        in a thread of its own, and its end is the stream's. Closing the iterator ends the call.

        >>> audio = Path("tests/audio/en_short.wav").read_bytes()
        >>> [event.segment.text for event in client.stream([audio]) if event.HasField("segment")]
        ['please close the window']
        """
        from typeless_grpc.client_stream import Streaming, StreamOptions  # it needs this module

        return Streaming(self._transcription, options or StreamOptions()).events(audio)

    def server_info(self, *, timeout_s: float | None = 10) -> server_pb2.GetServerInfoResponse:
        """The server's version and limits. Raises CallFailed.

        >>> client.server_info().default_model
        'base'
        """
        try:
            return self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise CallFailed.of(error) from error

    @property
    def jobs(self) -> Jobs:
        """Transcription in the background, and uploads.

        >>> client.jobs.stats().workers
        1
        """
        from typeless_grpc.client_jobs import Jobs  # it needs this module

        return Jobs(self._channel)

    def close(self) -> None:
        """Close the connection; calls that still run are cancelled.

        >>> other = Client("localhost:50051")
        >>> other.close()
        """
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; belongs to the event loop that made it.

    >>> async def text() -> str:
    ...     async with AsyncClient("localhost:50051") as client:
    ...         return (await client.transcribe("tests/audio/en_short.flac")).transcript.text
    >>> asyncio.run(text())
    'please close the window'
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        retry: bool = True,
    ) -> None:
        """See `Client`."""
        self._channel = async_channel(target, api_key=api_key, tls=tls, retry=retry)
        self._transcription = transcription_pb2_grpc.TranscriptionServiceStub(self._channel)
        self._server = server_pb2_grpc.ServerServiceStub(self._channel)

    async def transcribe(
        self,
        audio: AudioLike,
        options: Options | None = None,
        *,
        raw_format: RawFormat | None = None,
        timeout_s: float | None = None,
    ) -> transcription_pb2.TranscribeResponse:
        """Transcribe a recording: a path, or the bytes of a file. Raises CallFailed.

        Cancelling the awaiting task stops the server's work.
        """
        request = transcribe_request(audio, options or Options(), raw_format)
        try:
            return await self._transcription.Transcribe(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error

    async def batch(
        self,
        recordings: Sequence[AudioLike],
        options: Options | None = None,
        *,
        names: Sequence[str] | None = None,
        raw_format: RawFormat | None = None,
        timeout_s: float | None = None,
    ) -> transcription_pb2.BatchTranscribeResponse:
        """Transcribe several recordings at once; see `Client.batch`."""
        request = batch_request(recordings, options or Options(), names=names, raw_format=raw_format)
        try:
            return await self._transcription.BatchTranscribe(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error

    def stream(
        self, audio: AsyncIterable[Item] | Iterable[Item], options: StreamOptions | None = None
    ) -> AsyncGenerator[transcription_pb2.StreamTranscribeResponse, None]:
        """Events as the audio is understood; a connection that breaks is taken up again. Raises CallFailed.

        Where a server stops, raw samples go on in a session of another, which the caller sees as the same one.
        audio: bytes in any pieces, and between them `Control` and `Options` (which replace those in force). It is read
        in a task of its own, and its end is the stream's. Closing the generator ends the call.
        """
        from typeless_grpc.client_stream import AsyncStreaming, StreamOptions  # it needs this module

        return AsyncStreaming(self._transcription, options or StreamOptions()).events(audio)

    async def server_info(self, *, timeout_s: float | None = 10) -> server_pb2.GetServerInfoResponse:
        """The server's version and limits. Raises CallFailed."""
        try:
            return await self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error

    @property
    def jobs(self) -> AsyncJobs:
        """Transcription in the background, and uploads."""
        from typeless_grpc.client_jobs import AsyncJobs  # it needs this module

        return AsyncJobs(self._channel)

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
