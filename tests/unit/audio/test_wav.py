"""WAV files whose header is wrong, and files that follow one another: all of their audio is decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

import av
import numpy as np
import pytest

from tests.speech import cut
from tests.unit.audio.files import CONTAINER, LIMITS, reason_of, tone, wav
from typeless_grpc.audio.decode import decode, iter_decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.wav import WavHeader, WavParser
from typeless_grpc.errors import InvalidInput

FIRST, SECOND = tone(440, seconds=1.0), tone(900, seconds=0.7)
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\0\0\0Lavf61.1.100\0\0"
ID3 = b"id3 " + struct.pack("<I", 20) + b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)


def chunk(name: bytes, data: bytes, *, size: int | None = None, padding: bytes = b"\0") -> bytes:
    return name + struct.pack("<I", len(data) if size is None else size) + data + padding * (len(data) % 2)


def ffmpeg_wav(samples: Audio, codec: str, container: str = "wav", **options: str) -> bytes:
    """As FFmpeg writes it; `codec` is one that only FFmpeg reads."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def with_data_size(data: bytes, size: int) -> bytes:
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


async def streamed(data: bytes, sizes: Iterable[int] = (997,)) -> Audio:
    reader = live_reader(CONTAINER, field="config")
    blocks = [block for payload in cut(data, list(sizes)) async for block in reader.feed(payload)]
    blocks += [block async for block in reader.finish()]
    reader.close()
    return np.concatenate(blocks)


BYTES_16 = (FIRST * 32767).astype("<i2").tobytes()
HONEST = wav(FIRST)
PCM24 = ffmpeg_wav(FIRST, "pcm_s24le", bitexact="1")
W64 = ffmpeg_wav(FIRST, "pcm_s16le", "w64")
RF64 = ffmpeg_wav(FIRST, "pcm_s16le", rf64="always")
W64_SIZE_AT = W64.index(b"data\xf3\xac\xd3\x11") + 16

LYING = {
    "data shorter than the file": wav(FIRST, data_size=16_000),
    "data of an odd length": wav(FIRST, data_size=16_001),
    "data of a few bytes": wav(FIRST, data_size=2),
    "data of none, as pipes write it": wav(FIRST, data_size=0),
    "data of all ones, as pipes write it": wav(FIRST, data_size=0xFFFFFFFF),
    "a RIFF size of 0": HONEST[:4] + bytes(4) + HONEST[8:],
    "a RIFF size that is too small": HONEST[:4] + struct.pack("<I", 100) + HONEST[8:],
    "a RIFF size that is too large": HONEST[:4] + struct.pack("<I", 1 << 20) + HONEST[8:],
    "a tag behind the data": HONEST + LIST,
    "many tags behind the data": HONEST + LIST + ID3 + chunk(b"bext", bytes(602)) + chunk(b"_PMX", b"<x/>" * 99),
    "a tag of an odd length without padding": HONEST + chunk(b"cue ", b"abc", padding=b"") + LIST,
    "an ID3 tag of version 1": HONEST + b"TAG" + b"x" * 125,
    "a tag behind data of no length": wav(FIRST, data_size=0xFFFFFFFF) + LIST,
    "two tags behind data of no length": wav(FIRST, data_size=0) + ID3 + LIST,
    "a tag behind data that is too short": wav(FIRST, data_size=12_345) + LIST,
    "data in two chunks": wav(FIRST[:9000]) + chunk(b"data", BYTES_16[18_000:]),
    "data in two chunks with a tag between": wav(FIRST[:9000]) + LIST + chunk(b"data", BYTES_16[18_000:]),
    "24 bits": PCM24,
    "24 bits, data shorter than the file": with_data_size(PCM24, 24_000),
    "24 bits, data of all ones": with_data_size(PCM24, 0xFFFFFFFF),
    "24 bits, a tag behind data of no length": with_data_size(PCM24, 0) + LIST,
    "8 bits, of an odd length": ffmpeg_wav(FIRST[:-1], "pcm_u8"),
    "RF64": RF64,
    "RF64, then a tag": RF64 + LIST,
    "Wave64": W64,
    "Wave64, data shorter than the file": W64[:W64_SIZE_AT] + struct.pack("<Q", 16_024) + W64[W64_SIZE_AT + 8 :],
}


@pytest.mark.parametrize("data", LYING.values(), ids=LYING)
async def test_all_of_the_audio_is_there_and_nothing_else(data: bytes):
    got = decode(data, CONTAINER, LIMITS).samples
    np.testing.assert_allclose(got, FIRST[: len(got)], atol=2e-4 if len(got) == len(FIRST) else 1e-2)
    assert len(FIRST) - len(got) in (0, 1)
    np.testing.assert_array_equal(await streamed(data), got)
    np.testing.assert_array_equal(np.concatenate(list(iter_decode(data, CONTAINER, LIMITS))), got)


JOINED = {
    "two": wav(FIRST) + wav(SECOND),
    "two with tags": wav(FIRST) + LIST + wav(SECOND) + ID3,
    "two of no length": wav(FIRST, data_size=0) + wav(SECOND, data_size=0xFFFFFFFF),
    "two that are too short": wav(FIRST, data_size=3000) + wav(SECOND, data_size=5),
    "the first cut short": wav(FIRST, data_size=32_400) + wav(SECOND),
    "of two rates": wav(FIRST) + wav(tone(900, 48_000, seconds=0.7), 48_000),
    "mono and stereo": wav(FIRST) + wav(np.stack([SECOND, SECOND])),
    "16 and 24 bits": wav(FIRST) + ffmpeg_wav(SECOND, "pcm_s24le"),
    "24 and 16 bits": ffmpeg_wav(FIRST, "pcm_s24le") + wav(SECOND),
    "WAV and RF64": wav(FIRST) + ffmpeg_wav(SECOND, "pcm_s16le", rf64="always"),
    "two of Wave64": W64 + ffmpeg_wav(SECOND, "pcm_s16le", "w64"),
    "with one between that is empty": wav(FIRST) + wav(FIRST[:0]) + wav(SECOND),
    "the first empty": wav(FIRST[:0]) + wav(FIRST) + wav(SECOND),
}


@pytest.mark.parametrize("data", JOINED.values(), ids=JOINED)
async def test_files_that_follow_one_another_are_one_recording(data: bytes):
    got = decode(data, CONTAINER, LIMITS).samples
    expected = np.concatenate([FIRST, SECOND])
    assert len(got) == pytest.approx(len(expected), abs=50)
    np.testing.assert_allclose(got[: len(FIRST) - 50], FIRST[:-50], atol=2e-4)
    live = await streamed(data)
    assert len(live) == pytest.approx(len(got), abs=2)
    np.testing.assert_allclose(live[:10_000], got[:10_000], atol=1e-6)
    for samples in (got, live):
        second = samples[len(FIRST) + 500 : len(expected) - 500]
        assert np.abs(np.fft.rfft(second)).argmax() * SAMPLE_RATE_HZ / len(second) == pytest.approx(900, abs=5)


@pytest.mark.parametrize("step", [1, 7, 64, 5000])
@pytest.mark.parametrize("name", ["a tag behind data that is too short", "two tags behind data of no length", "Wave64"])
def test_any_cutting_parses_the_same(name: str, step: int):
    def parsed(step: int) -> list[object]:
        parser = WavParser()
        items = [item for at in range(0, len(data), step) for item in parser.feed(data[at : at + step])]
        items += parser.finish()
        headers = [item for item in items if isinstance(item, WavHeader)]
        return [*headers, b"".join(item for item in items if isinstance(item, bytes))]

    data = LYING[name][:6000] + LYING[name][-200:]
    assert parsed(step) == parsed(len(data))


def test_a_second_file_that_is_cut_short_is_refused():
    assert reason_of(wav(FIRST) + wav(SECOND)[:-6000]) == "AUDIO_TRUNCATED"


@pytest.mark.parametrize(
    "end",
    [b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \2\0\0\0xx", b"LIST\xff\xff\xff\x7fINFO", b"id3 \xff\xff\xff\xffID3\3"],
)
async def test_samples_that_resemble_a_header_are_decoded(end: bytes):
    middle = end + bytes(-len(end) % 2)
    data = wav(FIRST, data_size=0) + middle + BYTES_16
    got = decode(data, CONTAINER, LIMITS).samples
    np.testing.assert_allclose(got[-len(FIRST) :], FIRST, atol=2e-4)
    np.testing.assert_array_equal(await streamed(data), got)


def test_wav_files_without_any_samples_are_empty():
    assert reason_of(wav(FIRST[:0]) + wav(FIRST[:0])) == "AUDIO_EMPTY"


@pytest.mark.parametrize("kind", ["channel_count", "sample_rate_hertz"])
def test_the_requested_format_must_be_that_of_each_file(kind: str):
    from typeless_grpc.audio.formats import AudioFormat

    data = wav(FIRST) + wav(np.stack([SECOND, SECOND]), 44_100)
    format = AudioFormat(n_channels=1) if kind == "channel_count" else AudioFormat(sample_rate_hz=SAMPLE_RATE_HZ)
    with pytest.raises(InvalidInput) as caught:
        decode(data, format, LIMITS)
    assert caught.value.violations[0].field == f"audio.format.{kind}"
