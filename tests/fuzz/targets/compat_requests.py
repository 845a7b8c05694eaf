"""Requests of other contracts, NVIDIA Riva's and Google's, to our options and from there to domain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fuzz.inputs import Source, field_exists
from typeless_grpc.audio.joined import HEAD_BYTES
from typeless_grpc.errors import InvalidInput, NotFound
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.compat.options import ModelNames
from typeless_grpc.servicers.google import messages as google
from typeless_grpc.servicers.google import options as of_google
from typeless_grpc.servicers.recordings import Recording
from typeless_grpc.servicers.riva import messages as riva
from typeless_grpc.servicers.riva import options as of_riva

MAX_BYTES = 4096
NAMES = ModelNames({"latest_long": "base"}, refuses_unknown=True)


def seeds() -> Iterator[bytes]:
    for index in range(4):
        for start in range(6):
            yield bytes([index, 1]) + bytes((start * 7 + i * 13) % 256 for i in range(300))
        yield bytes([index, 0]) + b"\x0a\x04\x08\x01\x10\x02"


def one(data: bytes) -> None:
    source = Source(data)
    which = source.number(4)
    message = riva.RecognizeRequest() if which == 3 else google.VERSIONS[which].message("RecognizeRequest")
    if not source.read_into(message):
        return
    try:
        if which == 3:
            from_riva(message)
        else:
            from_google(google.VERSIONS[which], message)
    except NotFound as error:
        assert error.reason
    except InvalidInput as error:
        for violation in error.violations:
            assert violation.why
            assert field_exists(message.DESCRIPTOR, violation.field), violation


def from_riva(message: Any) -> None:
    with of_riva.OF_RECORDING.named():
        options = of_riva.transcription_options(message.config, NAMES.model(message.config.model, is_known=False))
        format = of_riva.declared_audio(message.config).format(message.audio[:HEAD_BYTES])
        recording(message.audio, format, options)


def from_google(version: google.Version, message: Any) -> None:
    if version.is_v2:
        of_google.check_recognizer(message.recognizer)
    with of_google.of_recording(version).named():
        wanted = of_google.wanted(version, message.config)
        wanted.options.model = NAMES.model(wanted.model, is_known=False)
        content = message.content if version.is_v2 else message.audio.content
        recording(content, wanted.audio.format(content[:HEAD_BYTES]), wanted.options)


def recording(
    content: bytes, format: audio_pb2.AudioFormat | None, options: transcription_pb2.TranscriptionOptions
) -> None:
    Recording.of(audio_pb2.AudioSource(content=content, format=format), options, "audio", "options")
