"""The contracts that this server serves, each called as its own clients call it: typeless.v1, Riva's and Google's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from typeless_grpc.client import AsyncClient, Options, RawFormat, StreamOptions
from typeless_grpc.servicers.compat.pool import class_of
from typeless_grpc.servicers.google.messages import V1, V2, Version
from typeless_grpc.servicers.google.messages import message_class as google_message
from typeless_grpc.servicers.riva import messages as riva

RAW = RawFormat("pcm_s16le", 16_000)
RECOGNIZER = "projects/p/locations/global/recognizers/_"

# What a stream sends, as it is spoken, and the text of each final that it receives.
Chunks = Callable[[], AsyncIterator[bytes]]
Finals = AsyncIterator[str]


@dataclass(frozen=True)
class Contract:
    """One contract. Streams request interims.

    transcribe: the text of raw samples (16 bits, 16 kHz, mono) in a language. finals: those of a stream. Riva's takes
    stop_history_ms, too: the end-of-utterance silence, 0 for the server's.
    """

    name: str
    transcribe: Callable[[bytes, str], Any]
    finals: Callable[..., Finals]


@asynccontextmanager
async def contracts(target: str) -> AsyncIterator[list[Contract]]:
    """Yield typeless.v1, which is the measure of the others, and the others."""
    async with AsyncClient(target) as client, grpc.aio.insecure_channel(target) as channel:
        yield [_ours(client), _riva(channel), _google(channel, V1), _google(channel, V2)]


def _ours(client: AsyncClient) -> Contract:
    async def transcribe(pcm: bytes, language: str) -> str:
        return (await client.transcribe(pcm, Options(language=language), raw_format=RAW)).transcript.text

    async def finals(chunks: Chunks, language: str) -> Finals:
        options = StreamOptions(Options(language=language), RAW, interim_results=True)
        async for event in client.stream(chunks(), options):
            if event.HasField("segment"):
                yield event.segment.text

    return Contract("typeless.v1", transcribe, finals)


def _riva(channel: grpc.aio.Channel) -> Contract:
    service = riva.POOL.FindServiceByName(riva.SERVICE)

    def config(language: str) -> dict[str, Any]:
        encoding = riva.AudioEncoding["LINEAR_PCM"]
        return {"encoding": encoding, "sample_rate_hertz": 16_000, "language_code": language}

    async def transcribe(pcm: bytes, language: str) -> str:
        request = riva.RecognizeRequest(audio=pcm, config=config(language))
        return _text(await method(channel, service, "Recognize")(request))

    async def finals(chunks: Chunks, language: str, stop_history_ms: int = 0) -> Finals:
        streaming = {"config": config(language), "interim_results": True}
        if stop_history_ms:
            streaming["config"]["endpointing_config"] = {"stop_history": stop_history_ms}

        async def requests() -> AsyncIterator[Any]:
            yield riva.StreamingRecognizeRequest(streaming_config=streaming)
            async for chunk in chunks():
                yield riva.StreamingRecognizeRequest(audio_content=chunk)

        async for text in _finals(method(channel, service, "StreamingRecognize")(requests())):
            yield text

    return Contract("Riva", transcribe, finals)


def _google(channel: grpc.aio.Channel, version: Version) -> Contract:
    raw = {"encoding": 1, "sample_rate_hertz": 16_000}

    def config(language: str) -> dict[str, Any]:
        if version.is_v2:
            return {"explicit_decoding_config": raw | {"audio_channel_count": 1}, "language_codes": [language]}
        return raw | {"language_code": language}

    async def transcribe(pcm: bytes, language: str) -> str:
        audio = {"recognizer": RECOGNIZER, "content": pcm} if version.is_v2 else {"audio": {"content": pcm}}
        request = version.message("RecognizeRequest", config=config(language), **audio)
        return _text(await method(channel, version.service, "Recognize")(request))

    async def finals(chunks: Chunks, language: str) -> Finals:
        streaming: dict[str, Any] = {"config": config(language)}
        first: dict[str, Any] = {"streaming_config": streaming}
        if version.is_v2:
            streaming["streaming_features"] = {"interim_results": True}
            first["recognizer"] = RECOGNIZER
        else:
            streaming["interim_results"] = True
        make = google_message(f"google.cloud.speech.{version.name}.StreamingRecognizeRequest")

        async def requests() -> AsyncIterator[Any]:
            yield make(**first)
            async for chunk in chunks():
                yield make(**{"audio" if version.is_v2 else "audio_content": chunk})

        async for text in _finals(method(channel, version.service, "StreamingRecognize")(requests())):
            yield text

    return Contract(f"Google {version.name}", transcribe, finals)


def method(channel: grpc.aio.Channel, service: ServiceDescriptor, name: str) -> Any:
    """Return a callable for a method of a service."""
    described = service.methods_by_name[name]
    make = channel.stream_stream if described.client_streaming else channel.unary_unary
    return make(
        f"/{service.full_name}/{name}",
        request_serializer=class_of(described.input_type).SerializeToString,
        response_deserializer=class_of(described.output_type).FromString,
    )


def _text(response: Any) -> str:
    """Return the text of a recording, joined as clients join it."""
    return "".join(result.alternatives[0].transcript for result in response.results).strip()


async def _finals(responses: Any) -> Finals:
    async for response in responses:
        for result in response.results:
            if result.is_final:
                yield result.alternatives[0].transcript
