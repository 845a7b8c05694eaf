"""What the tests of StreamTranscribe need: requests, and ways to read the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import Served
from tests.speech import BYTES_PER_S, cut, speech
from typeless_grpc.client import CallFailed
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamConfig, StreamTranscribeRequest, StreamTranscribeResponse

RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
FINALIZE = StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_FINALIZE)
KEEP_ALIVE = StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_KEEP_ALIVE)
END = StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_END)


def config(**fields: Any) -> StreamTranscribeRequest:
    return StreamTranscribeRequest(config=StreamConfig(**{"format": RAW} | fields))


def audio(data: bytes, n_bytes: int = 6400) -> list[StreamTranscribeRequest]:
    return [StreamTranscribeRequest(audio=payload) for payload in cut(data, [n_bytes])]


def live(*requests: StreamTranscribeRequest, data: bytes = b"", **fields: Any) -> list[StreamTranscribeRequest]:
    return [config(**fields), *audio(data), *requests]


async def events(served: Served, requests: Iterable[StreamTranscribeRequest]) -> list[StreamTranscribeResponse]:
    """All responses to all requests, and the half-close."""
    return [response async for response in served.transcription.StreamTranscribe(iter(list(requests)))]


async def refused(served: Served, requests: Iterable[StreamTranscribeRequest]) -> CallFailed:
    """What the call ends with, sent one by one so that the end is the server's."""
    call = served.transcription.StreamTranscribe()

    async def use() -> None:
        for request in requests:
            await call.write(request)
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await use()
    return CallFailed.of(caught.value)


async def refused_in_full_flow(served: Served, first: StreamTranscribeRequest, n_bytes: int) -> CallFailed:
    """Return the error of a call whose client sends payloads of n_bytes, a megabyte in all, without waiting."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(served, [first, *audio(speech(1.0) * (2**20 // BYTES_PER_S), n_bytes)])
    return CallFailed.of(caught.value)


def kinds(responses: Iterable[StreamTranscribeResponse]) -> list[str]:
    return [response.WhichOneof("event") or "" for response in responses]


def texts(responses: Iterable[StreamTranscribeResponse]) -> list[str]:
    return [response.segment.text for response in responses if response.HasField("segment")]


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


async def reads(call: Any, until: Callable[[StreamTranscribeResponse], bool]) -> list[StreamTranscribeResponse]:
    """Responses up to the first that is wanted, which is the last."""
    got: list[StreamTranscribeResponse] = []
    while not got or not until(got[-1]):
        response = await call.read()
        assert isinstance(response, StreamTranscribeResponse), f"the call ended after {kinds(got)}"
        got.append(response)
    return got


def is_kind(kind: str) -> Callable[[StreamTranscribeResponse], bool]:
    return lambda response: response.WhichOneof("event") == kind
