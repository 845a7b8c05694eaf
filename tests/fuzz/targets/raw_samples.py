"""Bare samples of every encoding, rate and number of channels: whole, and in parts cut anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tests.fuzz.inputs import Source
from tests.fuzz.targets.live_containers import compare, read
from tests.fuzz.targets.recordings import attempt, check
from tests.harness import pcm
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.errors import InvalidInput

MAX_BYTES = 32_768
RAW = [encoding for encoding in Encoding if encoding is not Encoding.CONTAINER]
RATES_HZ = (8_000, 11_025, 16_000, 44_100, 48_000, 192_000, 7_999, 192_001, 0, -1)
CHANNELS = (1, 2, 3, 8, 0, 9, -1)


def seeds() -> Iterator[bytes]:
    for index in range(len(RAW)):
        for rate in range(4):
            yield bytes([index, rate, rate % 3, 1, 1, 2, 30, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0]) + pcm(0.1)


def one(data: bytes) -> None:
    source = Source(data)
    format = AudioFormat(source.chosen(RAW), source.chosen(RATES_HZ), source.chosen(CHANNELS))
    separate, is_live = bool(source.number(2)), bool(source.number(2))
    header = Source(source.bytes(12))
    content = source.rest
    decoded = attempt(content, format, separate=separate)
    if not isinstance(decoded, str):
        check(decoded, separate=separate)
    try:
        format.validated("config")
    except InvalidInput:
        assert isinstance(decoded, str)
        return
    whole = asyncio.run(read([content], format, is_live=is_live))
    parts = asyncio.run(read(header.parts(content), format, is_live=is_live))
    compare(whole, parts)
