"""Messages between the server and a decoder process: one byte for the kind, then its payload.

A Unix socket of the type SOCK_SEQPACKET keeps them apart, so no length is sent and none is trusted. The server does not
trust what a decoder process sends: `parsed` and the functions that read payloads check size and shape.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np

from typeless_grpc.audio.containers import SourceInfo
from typeless_grpc.audio.formats import Audio
from typeless_grpc.errors import FieldViolation, InvalidInput

MAX_BYTES = 1 << 17  # of a message; Linux gives a socket 208 KiB
DATA_BYTES = 1 << 16  # of a stream in one message, and of a file in one answer
_BLOCK_BYTES = 96 << 10  # of samples in one message
_JSON_BYTES = 16 << 10
_MAX_TEXT = 500
_MAX_VIOLATIONS = 8
_BLOCK_HEAD = struct.Struct("<QH")  # position in the input, channels (0: one, as a flat array)
READ = struct.Struct("<QI")  # where and how much of the file

AUDIO = "audio"  # the decoder's name for the message that holds the audio
# The errors that a decoder process may report: fields below AUDIO or of the options, and reasons.
_FIELDS = frozenset(
    {f"{AUDIO}.content", f"{AUDIO}.format.sample_rate_hertz", f"{AUDIO}.format.channel_count", AUDIO}
    | {"options.channel_mode"}
)
_REASONS = frozenset(
    {"AUDIO_EMPTY", "AUDIO_MISSING", "AUDIO_TOO_LONG", "AUDIO_TRUNCATED", "AUDIO_UNDECODABLE", "INVALID_FIELD"}
    | {"TOO_MANY_CHANNELS"}
)


class Kind(Enum):
    """The kinds of messages; the first four come from the server."""

    RECORDING = b"R"  # decode a file: `Request`, with its descriptor if it has one
    STREAM = b"L"  # decode what arrives: `Request`
    DATA = b"D"  # bytes of a stream, or of the file
    FINISH = b"F"  # the stream has no more bytes

    READ = b"r"  # send bytes of the file: READ
    OPENED = b"o"  # JSON: the format of a recording, or the declared length of a stream
    BLOCK = b"b"  # samples
    NEED = b"n"  # every byte of the stream was used
    END = b"e"  # the recording or the stream is decoded
    INVALID = b"i"  # JSON: an InvalidInput
    FAULT = b"f"  # an unforeseen error: its traceback


class DecoderFault(Exception):
    """An unforeseen error of the decoder: a bug. Its text is the escaped traceback."""


class ProtocolViolation(Exception):
    """A decoder process sent an invalid message."""


@dataclass(frozen=True)
class Request:
    """What to decode, and the limits.

    n_bytes: size of a recording. memory_bytes: memory that the process may use besides its own at the start. cpu_s: its
    CPU time at first. The rest is as for `AudioReader` and `ContainerLiveReader`.
    """

    sample_rate_hz: int | None
    n_channels: int | None
    memory_bytes: int
    cpu_s: int
    n_bytes: int = 0
    max_duration_s: float = 0.0
    max_channels: int = 0
    separate_channels: bool = False
    block_s: float = 1.0
    is_live: bool = False


def message(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a message."""
    return kind.value + payload


def parsed(data: bytes) -> tuple[Kind, bytes]:
    """Return the kind and the payload of a message. Raises ProtocolViolation."""
    try:
        return Kind(data[:1]), data[1:]
    except ValueError as error:
        raise ProtocolViolation(f"a message of an unknown kind, {data[:1]!r}") from error


def request_message(kind: Kind, request: Request) -> bytes:
    """Return a request as a message."""
    return object_message(kind, asdict(request))


def request_of(payload: bytes) -> Request:
    """Return the request of a message of the server."""
    return Request(**json.loads(payload))


def object_message(kind: Kind, value: dict[str, Any]) -> bytes:
    """Return a message with a JSON object."""
    return message(kind, json.dumps(value).encode())


def block_messages(block: Audio, position: int) -> Iterator[bytes]:
    """Return a block of samples as messages. position: how far the input has been read, in bytes."""
    n_channels = 0 if block.ndim == 1 else block.shape[0]
    step = max(1, _BLOCK_BYTES // 4 // max(1, n_channels))
    for start in range(0, block.shape[-1], step):
        samples = np.ascontiguousarray(block[..., start : start + step], dtype=np.float32)
        yield message(Kind.BLOCK, _BLOCK_HEAD.pack(position, n_channels) + samples.tobytes())


def block_of(payload: bytes, *, n_channels: int | None) -> tuple[Audio, int]:
    """Return the samples and the position of a BLOCK. Raises ProtocolViolation.

    n_channels: those of earlier blocks, 0 if they are flat arrays; None before the first block.
    """
    if len(payload) <= _BLOCK_HEAD.size:
        raise ProtocolViolation("a block without samples")
    position, n_sent = _BLOCK_HEAD.unpack_from(payload)
    n_values, n_over = divmod(len(payload) - _BLOCK_HEAD.size, 4 * max(1, n_sent))
    if n_over or not n_values or (n_channels is not None and n_sent != n_channels):
        raise ProtocolViolation("a block of the wrong shape")
    samples = np.frombuffer(payload, np.float32, offset=_BLOCK_HEAD.size)
    if not float(np.abs(samples).max()) <= 1.0:  # NaN is not
        raise ProtocolViolation("samples that are not in [-1, 1]")
    return (samples.reshape(n_sent, n_values) if n_sent else samples), position


def source_of(payload: bytes) -> SourceInfo:
    """Return the format of a recording from an OPENED. Raises ProtocolViolation."""
    value = _object(payload)
    rate_hz, n_channels = value.get("sample_rate_hz"), value.get("n_channels")
    if not (isinstance(rate_hz, int) and isinstance(n_channels, int)):
        raise ProtocolViolation("a rate or channels that are no numbers")
    if not (0 <= rate_hz < 1 << 31 and 0 <= n_channels < 1 << 16):
        raise ProtocolViolation("a rate or channels out of range")
    return SourceInfo(_text(value.get("container")), _text(value.get("codec")), rate_hz, n_channels)


def declared_s_of(payload: bytes) -> float | None:
    """Return the declared length of a stream from an OPENED. Raises ProtocolViolation."""
    declared_s = _object(payload).get("declared_s")
    if declared_s is None:
        return None
    if not isinstance(declared_s, (int, float)) or not abs(declared_s) <= sys.float_info.max:  # NaN is not
        raise ProtocolViolation("a length that is no number")
    return float(declared_s)


def invalid_message(error: InvalidInput) -> bytes:
    """Return an error as a message."""
    found = [[one.field, one.why[:_MAX_TEXT]] for one in error.violations[:_MAX_VIOLATIONS]]
    return object_message(Kind.INVALID, {"reason": error.reason, "violations": found})


def invalid_of(payload: bytes, field: str) -> InvalidInput:
    """Return the error of an INVALID. field: path of the audio in the request. Raises ProtocolViolation."""
    value = _object(payload)
    reason, found = value.get("reason"), value.get("violations")
    if not isinstance(reason, str) or reason not in _REASONS:
        raise ProtocolViolation("an error of an unknown kind")
    if not isinstance(found, list) or not 0 < len(found) <= _MAX_VIOLATIONS:
        raise ProtocolViolation("an error without violations, or with too many")
    violations = []
    for one in found:
        if not (isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and one[0] in _FIELDS):
            raise ProtocolViolation("an error about an unknown field")
        path = field + one[0].removeprefix(AUDIO) if one[0].startswith(AUDIO) else one[0]
        violations.append(FieldViolation(path, _text(one[1])))
    return InvalidInput.of(violations, reason=reason)


def raise_error(kind: Kind, payload: bytes, field: str) -> None:
    """Raise the error that a message holds, if it holds one: InvalidInput or DecoderFault. field: see `invalid_of`."""
    if kind is Kind.INVALID:
        raise invalid_of(payload, field)
    if kind is Kind.FAULT:
        raise DecoderFault(ascii(payload[-4096:].decode(errors="replace")))


def _object(payload: bytes) -> dict[str, Any]:
    if len(payload) > _JSON_BYTES:
        raise ProtocolViolation(f"{len(payload)} bytes of JSON")
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation("no JSON") from error
    if not isinstance(value, dict):
        raise ProtocolViolation("no JSON object")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ProtocolViolation("a text that is too long or cannot be printed")
    return value
