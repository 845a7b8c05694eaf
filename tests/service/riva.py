"""Calls of Riva's service over real channels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.harness import Served
from tests.speech import cut
from typeless_grpc.clock import FakeClock
from typeless_grpc.servicers.compat.pool import class_of
from typeless_grpc.servicers.riva import messages


def riva_call(served: Served, method: str) -> Any:
    """A callable for one method of the service."""
    descriptor = messages.POOL.FindServiceByName(messages.SERVICE).methods_by_name[method]
    request, response = (class_of(kind) for kind in (descriptor.input_type, descriptor.output_type))
    make = served.channel.stream_stream if descriptor.client_streaming else served.channel.unary_unary
    return make(
        f"/{messages.SERVICE}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


async def after_silence(call: Any, clock: FakeClock) -> Any:
    """Read while time passes and the caller sends nothing."""
    reading = asyncio.ensure_future(call.read())
    while not reading.done():
        clock.advance(6.0)
        await asyncio.wait([reading], timeout=0.3)
    return await reading


async def recognize(served: Served, audio: bytes, *, request_id: str = "", **config: Any) -> Any:
    """Transcribe one recording."""
    request = messages.RecognizeRequest(audio=audio, config=config)
    if request_id:
        request.id.value = request_id
    return await riva_call(served, "Recognize")(request)


def configured(*, interim_results: bool = False, **config: Any) -> Any:
    """The first request of a stream of raw samples, unless config says otherwise."""
    defaults = {"encoding": messages.AudioEncoding["LINEAR_PCM"], "sample_rate_hertz": 16_000, "language_code": "en-US"}
    streaming = {"config": defaults | config, "interim_results": interim_results}
    return messages.StreamingRecognizeRequest(streaming_config=streaming)


def audio_of(data: bytes, n_bytes: int = 6400) -> list[Any]:
    """Requests with these bytes, n_bytes in each."""
    return [messages.StreamingRecognizeRequest(audio_content=payload) for payload in cut(data, [n_bytes])]


async def streamed(served: Served, requests: Sequence[Any], **metadata: str) -> list[Any]:
    """All responses to all requests, and the half-close."""
    call = riva_call(served, "StreamingRecognize")
    return [response async for response in call(iter(requests), metadata=tuple(metadata.items()))]
