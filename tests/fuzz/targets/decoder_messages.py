"""What a decoder process may send to the server, which distrusts it: see `audio/sandbox/messages.py`."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator

import numpy as np

from tests.fuzz.inputs import Source
from typeless_grpc.audio.sandbox import messages
from typeless_grpc.audio.sandbox.messages import DecoderFault, Kind, ProtocolViolation
from typeless_grpc.errors import FieldViolation, InvalidInput

MAX_BYTES = 4096
SAMPLES = np.linspace(-1, 1, 64, dtype=np.float32)


def seeds() -> Iterator[bytes]:
    for n_channels in (None, 0, 2):
        for block in (SAMPLES, SAMPLES.reshape(2, 32)):
            for data in messages.block_messages(block, 7):
                yield bytes([0 if n_channels is None else n_channels + 1]) + data
    objects = [
        {"container": "wav", "codec": "pcm", "sample_rate_hz": 16_000, "n_channels": 1},
        {"declared_s": 3.5},
        {"declared_s": 10**30},
        {"reason": "AUDIO_EMPTY", "violations": [["audio.content", "why"]]},
    ]
    for value in objects:
        for kind in (Kind.OPENED, Kind.INVALID):
            yield b"\0" + messages.object_message(kind, value)
    error = InvalidInput.of([FieldViolation("audio.content", "is no audio")], reason="AUDIO_UNDECODABLE")
    yield b"\0" + messages.invalid_message(error)
    yield b"\0" + messages.message(Kind.FAULT, b"Traceback\n\x1b[31m")
    yield b"\0" + messages.message(Kind.READ, messages.READ.pack(1, 2))
    yield b"\0?"


def one(data: bytes) -> None:
    source = Source(data)
    n_channels = (None, 0, 1, 2)[source.number(4)]
    try:
        kind, payload = messages.parsed(source.rest)
        messages.raise_error(kind, payload, "items[3].audio")
    except ProtocolViolation:
        return
    except InvalidInput as error:
        assert all(one.field.startswith(("items[3].audio", "options.")) for one in error.violations)
        assert all(one.why.isprintable() or not one.why for one in error.violations)
        return
    except DecoderFault as fault:
        assert str(fault).isprintable(), "a decoder writes lines into the log"
        return
    for read in (block, opened, declared):
        try:
            read(payload, n_channels)
        except ProtocolViolation:
            continue


def block(payload: bytes, n_channels: int | None) -> None:
    samples, position = messages.block_of(payload, n_channels=n_channels)
    assert samples.size
    assert float(np.abs(samples).max()) <= 1.0
    assert samples.ndim == (1 if not n_channels and samples.ndim == 1 else 2)
    assert 0 <= position < 1 << 64


def opened(payload: bytes, _: int | None) -> None:
    found = messages.source_of(payload)
    assert (found.container + found.codec).isprintable()
    struct.pack("<iH", found.sample_rate_hz, found.n_channels)


def declared(payload: bytes, _: int | None) -> None:
    seconds = messages.declared_s_of(payload)
    assert seconds is None or (math.isfinite(seconds) and json.dumps(seconds))
