"""Audio that is decoded while it arrives."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import AUDIO
from tests.speech import cut
from tests.unit.audio.files import encoded
from tests.webm import recorded
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import Audio, AudioFormat, Encoding
from typeless_grpc.audio.live import LiveReader, live_reader
from typeless_grpc.audio.wav import NotForUs, wav_header
from typeless_grpc.errors import InvalidInput

CONTAINER = AudioFormat()


async def read(reader: LiveReader, parts: Iterable[bytes], *, finish: bool = True) -> Audio:
    blocks = [block for part in parts async for block in reader.feed(part)]
    if finish:
        blocks += [block async for block in reader.finish()]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def whole(name: str) -> Audio:
    return decode((AUDIO / name).read_bytes(), CONTAINER, DecodeLimits(3600)).samples


@pytest.mark.parametrize(
    "name", ["en_short.webm", "en_short.ogg", "en_short.flac", "en_short.wav", "en_short_mulaw_8k.wav"]
)
@pytest.mark.parametrize("n_bytes", [17, 1000, 1 << 20], ids=["bits", "packets", "whole"])
async def test_the_samples_are_those_of_the_whole_file(name, n_bytes):
    got = await read(live_reader(CONTAINER, field="config"), cut((AUDIO / name).read_bytes(), [n_bytes]))
    np.testing.assert_array_equal(got, whole(name))


async def test_an_mp3_too_but_for_the_padding_at_its_end():
    got = await read(live_reader(CONTAINER, field="config"), cut((AUDIO / "en_short.mp3").read_bytes(), [500]))
    expected = whole("en_short.mp3")
    assert 0 <= len(got) - len(expected) < 2000
    np.testing.assert_allclose(got[: len(expected) - 2000], expected[: len(expected) - 2000], atol=1e-6)


@pytest.mark.parametrize("tag", [b"", b"TAG" + bytes(125)], ids=["APE", "APE and ID3v1"])
async def test_a_tag_at_the_end_of_wavpack_is_no_damage(tag):
    data = encoded("wv", "wavpack", seconds=3.0) + tag
    assert b"APETAGEX" in data[-300:]
    got = await read(live_reader(CONTAINER, field="config"), cut(data, [500]))
    np.testing.assert_array_equal(got, decode(data, CONTAINER, DecodeLimits(3600)).samples)


async def test_wavpack_that_ends_in_the_middle_is_refused():
    data = encoded("wv", "wavpack", seconds=3.0)
    with pytest.raises(InvalidInput) as caught:
        await read(live_reader(CONTAINER, field="config"), cut(data[: len(data) // 2], [500]))
    assert caught.value.reason == "AUDIO_TRUNCATED"


@pytest.mark.parametrize(
    ("name", "share"),
    [("en_short.webm", 0.5), ("en_short.ogg", 0.9), ("en_short.wav", 0.01), ("en_short.mp3", 0.5)],
)
async def test_audio_comes_before_its_end_does(name, share):
    data = (AUDIO / name).read_bytes()
    reader = live_reader(CONTAINER, field="config")
    got = await read(reader, cut(data[: round(len(data) * share)], [100]), finish=False)
    assert len(got) > 0
    reader.close()


@pytest.mark.parametrize("cluster_ms", [100, 1000, 30_000])
async def test_audio_that_a_browser_records_is_decoded_as_it_arrives(cluster_ms):
    packets = list(recorded(AUDIO / "en_short.webm", cluster_ms=cluster_ms))
    reader = live_reader(CONTAINER, field="config")
    blocks = [await read(reader, [packets[0]], finish=False)]
    behind_s = []
    for index, packet in enumerate(packets[1:], start=1):
        blocks.append(await read(reader, [packet], finish=False))
        behind_s.append(0.02 * index - sum(map(len, blocks)) / 16_000)
    blocks.append(await read(reader, []))
    expected = decode(b"".join(packets), CONTAINER, DecodeLimits(3600)).samples
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    assert len(expected) == pytest.approx(len(whole("en_short.webm")), abs=1000)
    assert max(behind_s[50:]) < 0.3


async def test_nothing_at_all_is_silence():
    assert len(await read(live_reader(CONTAINER, field="config"), [])) == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"this is no audio " * 5000, "AUDIO_UNDECODABLE"),
        (b"RIFF????WAVEjunk" + b"\xff" * 99, "AUDIO_UNDECODABLE"),
        (b"\0" * 20_000, "AUDIO_UNDECODABLE"),
    ],
)
async def test_garbage_is_refused(data, reason):
    with pytest.raises(InvalidInput) as caught:
        await read(live_reader(CONTAINER, field="config"), cut(data, [999]))
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "audio"


async def test_an_mp4_with_its_index_at_the_end_is_refused_with_what_to_do():
    data = (AUDIO / "en_short.m4a").read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    with pytest.raises(InvalidInput, match="Transcribe takes it"):
        await read(live_reader(CONTAINER, field="config"), cut(data, [999]))


async def test_a_reader_that_is_closed_lets_its_thread_go():
    before = threading.active_count()
    readers = [live_reader(CONTAINER, field="config") for _ in range(5)]
    for reader in readers:
        await read(reader, cut((AUDIO / "en_short.ogg").read_bytes()[:3000], [500]), finish=False)
        reader.close()
        reader.close()
    for thread in threading.enumerate():
        if thread.name == "live decoder":
            thread.join(5)
    assert threading.active_count() <= before


async def test_blocks_are_short_however_much_is_fed():
    reader = live_reader(CONTAINER, field="config")
    lengths = [len(block) async for block in reader.feed((AUDIO / "en_minute.ogg").read_bytes())]
    assert max(lengths) <= 3 * 16_000
    reader.close()


async def test_raw_audio_that_ends_within_a_sample_is_reported():
    reader = live_reader(AudioFormat(Encoding.PCM_S16LE, 16_000), field="config")
    await read(reader, [b"\1\2\3"], finish=False)
    with pytest.raises(InvalidInput) as caught:
        await read(reader, [])
    assert caught.value.reason == "AUDIO_TRUNCATED"


@pytest.mark.parametrize(("rate_hz", "field"), [(44_100, "sample_rate_hertz"), (16_000, "")])
async def test_a_wav_that_is_not_as_requested_is_refused(rate_hz, field):
    reader = live_reader(AudioFormat(Encoding.CONTAINER, rate_hz), field="config")
    data = (AUDIO / "en_short.wav").read_bytes()
    if field:
        with pytest.raises(InvalidInput) as caught:
            await read(reader, [data])
        assert caught.value.violations[0].field == f"config.format.{field}"
    else:
        assert len(await read(reader, [data])) == len(whole("en_short.wav"))


# ---- WAV headers ------------------------------------------------------------------------------------------------


def riff(*chunks: tuple[bytes, bytes], size: int = 0) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + body


def fmt(tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, more: bytes = b"") -> tuple[bytes, bytes]:
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, 0, 0, bits) + more


EXTENSIBLE = struct.pack("<HHI", 22, 16, 0) + struct.pack("<H", 1) + bytes(14)
DATA = (b"data", b"")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (riff(fmt(), DATA), AudioFormat(Encoding.PCM_S16LE, 16_000, 1)),
        (riff((b"LIST", b"odd"), fmt(3, 2, 48_000, 32), DATA), AudioFormat(Encoding.PCM_F32LE, 48_000, 2)),
        (riff(fmt(7, bits=8, rate=8000), DATA), AudioFormat(Encoding.MULAW, 8000, 1)),
        (riff(fmt(6, bits=8, rate=8000), (b"fact", bytes(4)), DATA), AudioFormat(Encoding.ALAW, 8000, 1)),
        (riff(fmt(0xFFFE, more=EXTENSIBLE), DATA), AudioFormat(Encoding.PCM_S16LE, 16_000, 1)),
    ],
    ids=["16 bits", "floats after a list", "mu-law", "A-law", "extensible"],
)
def test_usual_headers_are_read(head, expected):
    found = wav_header(head + b"samples")
    assert found is not None
    assert (found.format, found.n_bytes) == (expected, len(head))
    assert all(wav_header(head[:n]) is None for n in range(len(head)))


@pytest.mark.parametrize(
    "head",
    [b"OggS" + bytes(20), riff(DATA), riff((b"fmt ", b"short"))],
    ids=["no wav", "no format", "short format"],
)
def test_others_are_left_to_ffmpeg(head):
    with pytest.raises(NotForUs):
        wav_header(head)


@pytest.mark.parametrize("form", [fmt(bits=24), fmt(rate=5000), fmt(2, bits=4)], ids=["24 bits", "odd rate", "ADPCM"])
def test_samples_of_other_kinds_are_left_to_ffmpeg(form):
    found = wav_header(riff(form, DATA))
    assert found is not None
    assert found.format is None
    assert found.n_bytes == len(found.head)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_header_or_not(data):
    for start in (b"", b"RIFF\0\0\0\0WAVE", riff(fmt())):
        try:
            wav_header(start + data)
        except NotForUs:
            continue
