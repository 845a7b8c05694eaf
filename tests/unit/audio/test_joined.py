"""Files that follow one another in one recording: each call has the audio of all of them."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest

from tests.media import KINDS, Kind, media, onsets_s, tones
from tests.speech import cut
from tests.unit.audio.files import CONTAINER, LIMITS, reason_of
from typeless_grpc.audio.decode import decode
from typeless_grpc.audio.formats import Audio, AudioFormat
from typeless_grpc.audio.joined import FileStarts, parts
from typeless_grpc.audio.live import live_reader
from typeless_grpc.errors import InvalidInput

NOT_JOINED = {"nut, PCM", "nut"}  # NUT has one index, at its end: two files are damaged ones
SPLIT = {
    *("mp4", "fragmented mp4", "mov", "mov, PCM", "3gp", "flv", "flv, MP3", "asf", "tta", "caf", "aiff", "au"),
}
FIRST_S, SECOND_S = (0.5, 1.5), (0.7, 1.6)
LENGTH_S = 2.5


@cache
def first_of(name: str) -> bytes:
    return media(KINDS[name], tones(KINDS[name].rate_hz, seconds=LENGTH_S, at_s=FIRST_S))


@cache
def second_of(name: str) -> bytes:
    return media(KINDS[name], tones(KINDS[name].rate_hz, seconds=LENGTH_S, at_s=SECOND_S))


async def streamed(data: bytes, n_bytes: int = 3000) -> Audio:
    reader = live_reader(CONTAINER, field="config", is_live=False)
    blocks = [block for part in cut(data, [n_bytes]) async for block in reader.feed(part)]
    blocks += [block async for block in reader.finish()]
    reader.close()
    return np.concatenate(blocks)


def check(samples: Audio) -> None:
    assert onsets_s(samples) == pytest.approx([*FIRST_S, *[LENGTH_S + at_s for at_s in SECOND_S]], abs=0.12)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in NOT_JOINED])
async def test_the_audio_of_both_files_is_there(name: str):
    data = first_of(name) + second_of(name)
    check(decode(data, CONTAINER, LIMITS).samples)
    check(await streamed(data))
    check(await streamed(data, n_bytes=len(data)))


@pytest.mark.parametrize(("one", "other"), [("mp4", "caf"), ("flv", "mp4"), ("aiff", "wav"), ("asf", "ogg")])
async def test_files_of_two_formats_may_follow_one_another(one: str, other: str):
    data = first_of(one) + second_of(other)
    check(decode(data, CONTAINER, LIMITS).samples)
    check(await streamed(data))


@pytest.mark.parametrize("name", ["mp4", "flv", "aiff", "caf", "asf"])
async def test_videos_and_many_files_are_joined_too(name: str):
    kind = KINDS[name]
    with_video = media(kind, tones(kind.rate_hz, seconds=LENGTH_S, at_s=FIRST_S), with_video=bool(kind.video_codec))
    data = with_video * 3
    expected_s = [at_s + LENGTH_S * index for index in range(3) for at_s in FIRST_S]
    assert onsets_s(decode(data, CONTAINER, LIMITS).samples) == pytest.approx(expected_s, abs=0.15)
    assert onsets_s(await streamed(data)) == pytest.approx(expected_s, abs=0.15)


@pytest.mark.parametrize("name", ["mp4", "aiff", "caf", "asf", "tta"])
def test_a_second_file_that_is_cut_short_is_refused(name: str):
    assert reason_of(first_of(name) + second_of(name)[:-9_000]) == "AUDIO_TRUNCATED"


async def test_the_request_describes_each_of_the_files():
    other = Kind("aiff", "pcm_s16be", rate_hz=44_100)
    data = first_of("aiff") + media(other, tones(44_100, seconds=LENGTH_S, at_s=SECOND_S))
    check(decode(data, CONTAINER, LIMITS).samples)
    check(await streamed(data))
    with pytest.raises(InvalidInput) as caught:
        decode(data, AudioFormat(sample_rate_hz=48_000), LIMITS)
    assert caught.value.violations[0].field == "audio.format.sample_rate_hertz"


async def test_a_picture_between_two_mp3_files_takes_no_time():
    n_picture = 90_000
    size = bytes(n_picture >> shift & 127 for shift in (21, 14, 7, 0))
    picture = np.random.default_rng(0).integers(0, 255, n_picture, dtype=np.uint8).tobytes()
    data = first_of("mp3") + b"ID3\x03\0\0" + size + picture.replace(b"\xff", b"\0") + second_of("mp3")
    check(decode(data, CONTAINER, LIMITS).samples)
    check(await streamed(data))


@pytest.mark.parametrize("name", KINDS)
def test_one_file_is_one_part(name: str):
    file = io.BytesIO(first_of(name))
    assert parts(file) == [file]
    assert file.tell() == 0


@pytest.mark.parametrize("name", sorted(SPLIT))
@pytest.mark.parametrize("n_bytes", [7, 997])
def test_any_cutting_finds_the_same_files(name: str, n_bytes: int):
    first = first_of(name)
    data = (first + second_of(name))[: len(first) + 2000]
    finder, starts = FileStarts(), list[int]()
    for at in range(0, len(data), n_bytes):
        starts += finder.feed(data[at : at + n_bytes], at)
        assert finder.n_waiting < 32 or name == "tta"
    assert starts == [len(first)]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *[(name, b"\0" * 5000) for name in ("mp4", "aiff", "caf", "asf", "tta", "flv")],
        *[(name, end * 100) for name in ("aiff", "asf", "tta") for end in (b"ftyp", b"FLV", b"free")],
    ],
)
async def test_bytes_after_a_recording_that_are_no_file_are_ignored(name: str, end: bytes):
    data = first_of(name) + end
    assert onsets_s(decode(data, CONTAINER, LIMITS).samples) == pytest.approx(FIRST_S, abs=0.07)
    assert onsets_s(await streamed(data)) == pytest.approx(FIRST_S, abs=0.07)
