"""The client for asyncio. It reads files in threads, never on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import Self

import grpc.aio

from typeless_grpc.client.channels import AsyncConnection, Tls
from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.jobs import AsyncJobs
from typeless_grpc.client.options import Item, Options, RawFormat, StreamOptions
from typeless_grpc.client.requests import AudioLike, batch_request, transcribe_request
from typeless_grpc.client.stream import AsyncStreaming
from typeless_grpc.client.target import DEFAULT_TARGET
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc, transcription_pb2, transcription_pb2_grpc


class AsyncClient:
    """The same for asyncio. It belongs to one event loop.

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
        """See `Client`. Files with the key or for TLS are read by `async with` or the first call, which then raise."""
        self._connection = AsyncConnection(target, api_key=api_key, tls=tls, retry=retry)

    async def transcribe(
        self,
        audio: AudioLike,
        options: Options | None = None,
        *,
        raw_format: RawFormat | None = None,
        timeout_s: float | None = None,
    ) -> transcription_pb2.TranscribeResponse:
        """Transcribe a recording: the path of a file, or its bytes. Raises CallFailed.

        Cancelling the awaiting task stops the server's work.
        """
        request = await asyncio.to_thread(transcribe_request, audio, options or Options(), raw_format)
        stub = await self._transcription()
        try:
            return await stub.Transcribe(request, timeout=timeout_s)
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
        """Transcribe several recordings in one call; see `Client.batch`."""
        request = await asyncio.to_thread(
            batch_request, recordings, options or Options(), names=names, raw_format=raw_format
        )
        stub = await self._transcription()
        try:
            return await stub.BatchTranscribe(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error

    def stream(
        self, audio: AsyncIterable[Item] | Iterable[Item], options: StreamOptions | None = None
    ) -> AsyncGenerator[transcription_pb2.StreamTranscribeResponse, None]:
        """Transcribe audio while it arrives, and yield the events; see `Client.stream`. Raises CallFailed.

        audio: a task reads an asynchronous iterable; a thread reads any other, unless it is a list or a tuple. Closing
        the generator ends the call.
        """
        return AsyncStreaming(self._transcription, options or StreamOptions()).events(audio)

    async def server_info(self, *, timeout_s: float | None = 10) -> server_pb2.GetServerInfoResponse:
        """Return the server's version and limits. Raises CallFailed."""
        stub: server_pb2_grpc.ServerServiceAsyncStub = server_pb2_grpc.ServerServiceStub(
            await self._connection.channel()
        )
        try:
            return await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed.of(error) from error

    @property
    def jobs(self) -> AsyncJobs:
        """Transcription in the background, and uploads."""
        return AsyncJobs(self._connection.channel)

    async def close(self) -> None:
        """Close the connection; cancels the calls that still run."""
        await self._connection.close()

    async def _transcription(self) -> transcription_pb2_grpc.TranscriptionServiceAsyncStub:
        return transcription_pb2_grpc.TranscriptionServiceStub(await self._connection.channel())

    async def __aenter__(self) -> Self:
        await self._connection.channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
