"""The client for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from typeless_grpc.client.channels import Tls, channel
from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.jobs import Jobs
from typeless_grpc.client.options import Item, Options, RawFormat, StreamOptions
from typeless_grpc.client.requests import AudioLike, batch_request, transcribe_request
from typeless_grpc.client.stream import Streaming
from typeless_grpc.client.target import DEFAULT_TARGET
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc, transcription_pb2, transcription_pb2_grpc


class Client:
    """A connection to a server. Threads may share it."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        retry: bool = True,
    ) -> None:
        """target: "host:port". The first call connects.

        api_key: sent with every call. None takes TYPELESS_API_KEY of the environment, or the content of the file in
        TYPELESS_API_KEY_FILE; "" sends none. tls: None sends everything in plain text, the key too. retry: repeat a
        call that changes nothing if the server is overloaded or unavailable, up to three times and within timeout_s.
        Raises ValueError for an invalid target or key, OSError for a file of tls that cannot be read.
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
        """Transcribe a recording: the path of a file, or its bytes. Raises CallFailed.

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
        """Transcribe several recordings in one call. Each gets its own transcript or failure. Raises CallFailed.

        names: the names of the results, by default the paths. raw_format: applies to all recordings.

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
        """Transcribe audio while it arrives, and yield the events. Raises CallFailed.

        A stream resumes after its connection breaks. If the server stops, a stream of raw samples continues on another
        one; the caller sees one session. audio: bytes in blocks of any size, and between them `Control` and `Options`,
        which replace those in force. A thread reads it; its end ends the stream. Closing the iterator ends the call.

        >>> audio = Path("tests/audio/en_short.wav").read_bytes()
        >>> [event.segment.text for event in client.stream([audio]) if event.HasField("segment")]
        ['please close the window']
        """
        return Streaming(self._transcription, options or StreamOptions()).events(audio)

    def server_info(self, *, timeout_s: float | None = 10) -> server_pb2.GetServerInfoResponse:
        """Return the server's version and limits. Raises CallFailed.

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
        return Jobs(self._channel)

    def close(self) -> None:
        """Close the connection; cancels the calls that still run.

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
