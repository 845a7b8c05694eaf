"""Streams of every kind of audio that continue on another server, cut at any byte."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import av
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.speech import cut, silence, speech
from tests.unit.idle import run_until_complete
from tests.unit.streaming.durable_bench import interrupted, servers, uninterrupted
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.streaming.requests import Control

SPOKEN = silence(0.3) + speech(1.0, 1.2, 0.7, 0.9, 1.5, 1.0)


def floats(data: bytes) -> bytes:
    return (np.frombuffer(data, "<i2") / 32768).astype("<f4").tobytes()


def encoded(data: bytes, *, codec: str, container: str, rate_hz: int = 48_000, **options: str) -> bytes:
    """Raw samples in a container."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.frombuffer(data, "<i2").reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = 16_000
        frame_size = 1024 if codec == "aac" else 960
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate_hz, frame_size)
        for one in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(one))
        output.mux(stream.encode(None))
    return file.getvalue()


def raw(codec: str) -> Callable[[bytes], bytes]:
    """A converter to raw samples of a telephone."""
    return partial(encoded, codec=f"pcm_{codec}", container=codec, rate_hz=8000)


FORMATS: dict[str, tuple[AudioFormat, Callable[[bytes], bytes]]] = {
    "at another rate": (AudioFormat(Encoding.PCM_S16LE, 44_100), lambda data: data),
    "in stereo": (AudioFormat(Encoding.PCM_S16LE, 16_000, 2), lambda data: data),
    "floats": (AudioFormat(Encoding.PCM_F32LE, 16_000), floats),
    "mu-law": (AudioFormat(Encoding.MULAW, 8_000), raw("mulaw")),
    "A-law": (AudioFormat(Encoding.ALAW, 8_000), raw("alaw")),
    "WAV": (AudioFormat(Encoding.CONTAINER), partial(encoded, codec="pcm_s16le", container="wav")),
    "FLAC": (AudioFormat(Encoding.CONTAINER), partial(encoded, codec="flac", container="flac")),
    "WebM": (AudioFormat(Encoding.CONTAINER), partial(encoded, codec="libopus", container="webm")),
    "Ogg": (AudioFormat(Encoding.CONTAINER), partial(encoded, codec="libopus", container="ogg")),
    "MP4 in fragments": (
        AudioFormat(Encoding.CONTAINER),
        partial(encoded, codec="aac", container="mp4", movflags="empty_moov+default_base_moof", frag_duration="200000"),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    n_requests=st.integers(3, 60),
    kills=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 400), st.booleans()), min_size=1, max_size=2),
    part_bytes=st.integers(500, 20_000),
)
def test_audio_of_any_kind_is_decoded_again_from_any_byte(kind, n_requests, kills, part_bytes):
    format, converted = FORMATS[kind]
    data = converted(SPOKEN)
    requests = [*cut(data, [max(99, len(data) // n_requests)]), Control.END]

    async def compare() -> None:
        async with servers(part_bytes=part_bytes, format=format) as on:
            expected = await uninterrupted(on, requests)
            assert expected["finals"]
            assert await interrupted(on, requests, kills) == expected

    run_until_complete(compare())
