"""Calls of Google's services over real channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from tests.harness import Served
from tests.speech import cut
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.compat.pool import class_of
from typeless_grpc.servicers.google.messages import POOL, V1, V2, VERSIONS, Version

EACH = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
BOTH = pytest.mark.parametrize("version", [V1, V2], ids=lambda version: version.name)
RECOGNIZER = "projects/p/locations/global/recognizers/_"


def google_call(served: Served, method: str) -> Any:
    """A callable for a method: "/google.cloud.speech.v1.Speech/Recognize"."""
    service, _, name = method.removeprefix("/").rpartition("/")
    described = POOL.FindServiceByName(service).methods_by_name[name]
    make = served.channel.stream_stream if described.client_streaming else served.channel.unary_unary
    return make(
        method,
        request_serializer=class_of(described.input_type).SerializeToString,
        response_deserializer=class_of(described.output_type).FromString,
    )


async def google_operation(
    served: Served, method: str, name: str = "", metadata: tuple[tuple[str, str], ...] = (), **fields: Any
) -> Any:
    """Call a method of google.longrunning.Operations. name: of an operation."""
    described = POOL.FindServiceByName("google.longrunning.Operations").methods_by_name[method]
    request = class_of(described.input_type)(name=name, **fields)
    return await google_call(served, f"/google.longrunning.Operations/{method}")(request, metadata=metadata)


async def recognize(
    served: Served, version: Version, content: bytes, metadata: tuple[tuple[str, str], ...] = (), **config: Any
) -> Any:
    """Transcribe one recording."""
    if version.is_v2:
        request = version.message("RecognizeRequest", recognizer=RECOGNIZER, config=config, content=content)
    else:
        request = version.message("RecognizeRequest", config=config, audio={"content": content})
    return await google_call(served, f"/{version.service.full_name}/Recognize")(request, metadata=metadata)


def raw(version: Version, encoding: int = 1, rate_hz: int = 16_000, n_channels: int = 0) -> dict[str, Any]:
    """The part of a configuration that describes raw samples."""
    fields = {"encoding": encoding, "sample_rate_hertz": rate_hz, "audio_channel_count": n_channels}
    return {"explicit_decoding_config": fields} if version.is_v2 else fields


def opening(version: Version, config: dict[str, Any] | None = None, **features: Any) -> Any:
    """The first request of a stream of raw samples, unless config says otherwise."""
    wanted = raw(version) if config is None else config
    if version.is_v2:
        streaming = {"config": wanted, "streaming_features": features}
        return version.message("StreamingRecognizeRequest", recognizer=RECOGNIZER, streaming_config=streaming)
    return version.message("StreamingRecognizeRequest", streaming_config={"config": wanted} | features)


def audio_of(version: Version, data: bytes, n_bytes: int = 6400) -> list[Any]:
    """Requests with these bytes, n_bytes in each."""
    field = "audio" if version.is_v2 else "audio_content"
    return [version.message("StreamingRecognizeRequest", **{field: payload}) for payload in cut(data, [n_bytes])]


def streaming(served: Served, version: Version) -> Any:
    """An open stream."""
    return google_call(served, f"/{version.service.full_name}/StreamingRecognize")()


async def streamed(served: Served, version: Version, requests: Iterable[Any]) -> list[Any]:
    """All responses to all requests, and the half-close."""
    call = google_call(served, f"/{version.service.full_name}/StreamingRecognize")
    return [response async for response in call(iter(list(requests)))]


async def failed(awaitable: Any) -> CallFailed:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return CallFailed.of(caught.value)


def paths(error: CallFailed) -> list[str]:
    return [path for path, _ in error.fields]


def says(text: str) -> ScriptedEngine:
    return ScriptedEngine(lambda call: text)


def billed_s(version: Version, response: Any) -> int:
    billed = response.metadata.total_billed_duration if version.is_v2 else response.total_billed_time
    return int(billed.seconds)


def end_s(version: Version, result: Any) -> float:
    end = result.result_end_offset if version.is_v2 else result.result_end_time
    return float(end.seconds + end.nanos / 1e9)
