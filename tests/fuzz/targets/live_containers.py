"""Containers that arrive in parts, cut anywhere: the same samples, or the same refusal, as in one part.

That holds for whole recordings. Where FFmpeg goes on in a damaged one depends on how much has arrived, so of those only
declared errors and bounded samples are demanded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np

from tests.fuzz.inputs import Source, recordings
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.live import live_reader
from typeless_grpc.errors import InvalidInput

MAX_BYTES = 16_384
CUT_BYTES = 6_000  # `make_corpus` cuts longer ones
# The source of the stream ends it in production, from outside of the reader.
MOST_S = 120.0


def seeds() -> Iterator[bytes]:
    for index, data in enumerate(recordings()):
        yield bytes([index % 2, index % 4, 1, 40, index % 251, 1, 7, 2, 3]) + data


def one(data: bytes) -> None:
    source = Source(data)
    is_live = bool(source.number(2))
    header = Source(source.bytes(12))
    content = source.rest
    whole = asyncio.run(read([content], AudioFormat(), is_live=is_live))
    parts = asyncio.run(read(header.parts(content), AudioFormat(), is_live=is_live))
    if content in undamaged():
        compare(whole, parts)


@cache
def undamaged() -> frozenset[bytes]:
    return frozenset(one for one in recordings(is_damaged=False) if len(one) < CUT_BYTES)


def compare(whole: tuple[Audio, str], parts: tuple[Audio, str]) -> None:
    """Refused audio may have given more or fewer samples before: what is decoded by then depends on its parts."""
    assert whole[1] == parts[1], f"in one part: {whole[1] or 'decoded'}; in several: {parts[1] or 'decoded'}"
    if not whole[1]:
        assert len(whole[0]) == len(parts[0]), f"{len(whole[0])} samples in one part, {len(parts[0])} in several"
        assert np.array_equal(whole[0], parts[0])


async def read(parts: Iterable[bytes], format: AudioFormat, *, is_live: bool) -> tuple[Audio, str]:
    """The samples, and the reason of the refusal, if there is one."""
    reader = live_reader(format, field="config", is_live=is_live)
    blocks: list[Audio] = []
    n_samples = 0
    try:
        for part in parts:
            async for block in reader.feed(part):
                n_samples += checked(block)
                blocks.append(block)
                if n_samples > MOST_S * SAMPLE_RATE_HZ:
                    return np.concatenate(blocks), "too long"
        async for block in reader.finish():
            n_samples += checked(block)
            blocks.append(block)
            if n_samples > MOST_S * SAMPLE_RATE_HZ:
                return np.concatenate(blocks), "too long"
    except InvalidInput as error:
        assert error.reason
        return joined(blocks), error.reason
    finally:
        reader.close()
        reader.close()
    return joined(blocks), ""


def joined(blocks: list[Audio]) -> Audio:
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def checked(block: Audio) -> int:
    assert block.dtype == np.float32
    assert block.ndim == 1
    assert np.isfinite(block).all()
    assert len(block) == 0 or float(np.abs(block).max()) <= 1.0
    return len(block)
