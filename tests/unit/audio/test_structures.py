"""Damaged files: none is taken for a whole one, and the audio that is left has its right times."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.unit.audio.files import CONTAINER, LIMITS, encoded, reason_of, tone
from typeless_grpc.audio import structures
from typeless_grpc.audio.decode import decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ


def webm_with_a_pause(start_s: float, pause_s: float) -> bytes:
    """A tone of 2 s in Opus, whose recorder sent nothing for a while."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        samples = (tone(rate_hz=48_000, seconds=2.0) * 32767).astype("<i2")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        packets = [*stream.encode(frame), *stream.encode(None)]
        for packet in packets:
            assert packet.pts is not None
            if packet.pts * packet.time_base >= start_s:
                packet.pts += int(pause_s / packet.time_base)
                packet.dts = packet.pts
            container.mux(packet)
    return file.getvalue()


def test_a_pause_that_was_not_recorded_is_silence():
    decoded = decode(webm_with_a_pause(1.0, 3.0), CONTAINER, LIMITS)
    assert decoded.duration_s == pytest.approx(5.0, abs=0.1)
    loud = np.abs(decoded.samples) > 0.1
    assert loud[: int(0.9 * SAMPLE_RATE_HZ)].any()
    assert loud[int(4.1 * SAMPLE_RATE_HZ) :].any()
    assert not loud[int(1.2 * SAMPLE_RATE_HZ) : int(3.8 * SAMPLE_RATE_HZ)].any()


def test_the_default_track_is_decoded():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = [container.add_stream("flac", rate=16_000, layout="mono") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, seconds in zip(streams, (1.0, 2.0), strict=True):
            samples = (tone(seconds=seconds) * 32767).astype("<i2")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux([*stream.encode(frame), *stream.encode(None)])
    assert decode(file.getvalue(), CONTAINER, LIMITS).duration_s == pytest.approx(2.0, abs=0.05)


OGG = encoded("ogg", "libopus", seconds=20.0)


def pages_of(data: bytes) -> list[bytes]:
    return [b"OggS\x00" + page for page in data.split(b"OggS\x00")[1:]]


@pytest.mark.parametrize("kind", ["left out", "overwritten"])
def test_an_ogg_file_with_a_hole_is_not_taken_for_whole(kind: str):
    pages = pages_of(OGG)
    middle = len(pages) // 2 + 2
    assert len(pages) > middle + 1 > 6
    pages[middle] = b"" if kind == "left out" else b"\0" * len(pages[middle])
    assert reason_of(b"".join(pages)) == "AUDIO_TRUNCATED"


def test_a_broadcast_in_ogg_may_be_joined_late():
    pages = pages_of(OGG)
    n_headers = 2
    late = b"".join(pages[:n_headers] + pages[n_headers + 3 :])
    assert structures.ogg_holes_bytes(io.BytesIO(late), n_bytes=len(late)) == 0


@pytest.mark.parametrize(
    ("container", "codec"),
    [("aiff", "pcm_s16be"), ("caf", "pcm_s16be"), ("w64", "pcm_s16le"), ("asf", "wmav2")],
)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_file_that_declares_its_size_is_measured(container: str, codec: str, share: float):
    whole = encoded(container, codec, seconds=4.0)
    assert decode(whole, CONTAINER, LIMITS).duration_s == pytest.approx(4.0, abs=0.2)
    assert reason_of(whole[: int(share * len(whole))]) == "AUDIO_TRUNCATED"
