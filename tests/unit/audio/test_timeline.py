"""Text has the times of the recording: of tracks that start late, of pauses, and behind damage, in every container."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.media import KINDS, TONES_S, damaged, media, onsets_s, tones
from tests.speech import cut
from tests.unit.audio.files import CONTAINER, LIMITS, Pipe, reason_of
from typeless_grpc.audio.decode import DecodeLimits, decode, iter_decode
from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.timeline import Timeline

WITH_VIDEO = [name for name, kind in KINDS.items() if kind.video_codec]
# Of a lone track, these say when it starts by the clock of the file. The others may be live captures.
FILE_CLOCKS = [name for name in WITH_VIDEO if name not in {"fragmented mp4", "mkv, live", "mpegts", "mpeg", "vob"}]
# What writers leave out of these is nowhere in the file: FFmpeg writes samples without times into them.
NO_TIMES = {"mov, PCM", "avi, PCM"}
AT_ITS_TIMES = [
    *[(name, "a track that starts late") for name in WITH_VIDEO if name != "avi, PCM"],
    *[(name, "a lone track that starts late") for name in FILE_CLOCKS if name != "avi, PCM"],
    *[(name, "a pause") for name in WITH_VIDEO if name not in NO_TIMES],
    *[(name, "a pause of a lone track") for name in [*WITH_VIDEO, "ogg", "ogg, FLAC"] if name not in NO_TIMES],
]
# FFmpeg does not say how much of an ADTS file it passes over. An Ogg page of FLAC has its time at its end, and the one
# after a lost page begins too early by it. Zeros in mu-law are noise.
NOT_DAMAGED = {"adts", "ogg, FLAC", "au"}


def late(at_s: float) -> float:
    return at_s + 2.4


def after_a_pause(at_s: float) -> float:
    return at_s + 3.0 if at_s > 2.5 else at_s


async def streamed(data: bytes, *, is_live: bool = False) -> Audio:
    reader = live_reader(CONTAINER, field="config", is_live=is_live)
    blocks = [block for part in cut(data, [4000]) async for block in reader.feed(part)]
    blocks += [block async for block in reader.finish()]
    return np.concatenate(blocks)


async def check_times(data: bytes, expected_s: list[float]) -> None:
    """Of the whole recording, and as it arrives."""
    assert onsets_s(decode(data, CONTAINER, LIMITS).samples) == pytest.approx(expected_s, abs=0.07)
    assert onsets_s(await streamed(data)) == pytest.approx(expected_s, abs=0.07)


@pytest.mark.parametrize(("name", "case"), AT_ITS_TIMES)
async def test_tones_are_where_the_container_has_them(name: str, case: str):
    moved: Callable[[float], float] = late if "late" in case else after_a_pause
    data = media(KINDS[name], moved=moved, with_video="lone" not in case)
    await check_times(data, [moved(at_s) for at_s in TONES_S])


@pytest.mark.parametrize("name", ["mkv, live", "webm", "fragmented mp4", "mpegts", "ogg"])
async def test_live_streams_have_the_times_of_their_containers(name: str):
    data = media(KINDS[name], moved=after_a_pause)
    expected_s = pytest.approx([after_a_pause(at_s) for at_s in TONES_S], abs=0.07)
    assert onsets_s(await streamed(data, is_live=True)) == expected_s
    assert onsets_s(decode(Pipe(data), CONTAINER, LIMITS).samples) == expected_s


@pytest.mark.parametrize("name", KINDS)
async def test_tones_are_where_they_are_without_any_of_that(name: str):
    kind = KINDS[name]
    await check_times(media(kind), list(TONES_S))
    if kind.video_codec:
        await check_times(media(kind, with_video=True), list(TONES_S))


@pytest.mark.parametrize("name", [name for name in KINDS if name not in NOT_DAMAGED])
async def test_tones_behind_damaged_frames_are_where_they_were(name: str):
    at_s = (0.5, 1.5, 3.5, 12.5, 23.5)
    kind = KINDS[name]
    data = damaged(media(kind, tones(kind.rate_hz, seconds=25.0, at_s=at_s)), 2.0, 2.4)
    await check_times(data, list(at_s))


@pytest.mark.parametrize("name", ["mpegts", "mpeg", "mkv, live", "ogg", "fragmented mp4"])
async def test_a_live_capture_starts_where_it_was_begun(name: str):
    data = media(KINDS[name], moved=lambda at_s: at_s + 5000.0)
    await check_times(data, list(TONES_S))


# Clocks that tell nonsense.


@pytest.mark.parametrize("name", ["mkv", "webm", "flv", "asf"])
def test_a_pause_that_is_longer_than_a_recording_may_be_is_refused_before_it_is_made(name: str):
    data = media(KINDS[name], moved=lambda at_s: at_s + 1e6 if at_s > 2.5 else at_s)
    assert reason_of(data, limits=DecodeLimits(max_duration_s=3600)) == "AUDIO_TOO_LONG"


def test_pauses_count_as_audio():
    data = media(KINDS["mkv"], moved=after_a_pause)
    assert decode(data, CONTAINER, DecodeLimits(8.0)).duration_s == pytest.approx(7.5, abs=0.1)
    assert reason_of(data, limits=DecodeLimits(7.0)) == "AUDIO_TOO_LONG"


@pytest.mark.parametrize("name", ["mkv, live", "mpegts", "mpeg", "nut", "ogg"])
def test_a_clock_that_is_set_moves_nothing(name: str):
    data = media(KINDS[name], moved=lambda at_s: at_s + 1e6 if at_s > 2.5 else at_s)
    assert decode(data, CONTAINER, LIMITS).duration_s == pytest.approx(4.5, abs=0.2)


FRAME_S = 0.02


def silences(starts_s: list[float | None], timeline: Timeline) -> list[float]:
    return [round(timeline.silence_before_s(start_s, FRAME_S), 6) for start_s in starts_s]


def frames(*spans: tuple[float, float]) -> list[float | None]:
    """Frames of 20 ms, one after another, from the first time of each span to its second."""
    return [start_s + FRAME_S * i for start_s, end_s in spans for i in range(round((end_s - start_s) / FRAME_S))]


def live() -> Timeline:
    return Timeline(first_s=None, is_files_clock=False, end_s=None)


@pytest.mark.parametrize(
    ("timeline", "starts_s", "expected_s"),
    [
        (live(), frames((70.0, 75.0)), 0.0),
        (live(), frames((70.0, 75.0), (78.0, 79.0)), 3.0),
        (live(), frames((70.0, 75.0), (3.0, 9.0), (10.0, 11.0)), 1.0),
        (live(), frames((0.0, 5.0), (605.0, 606.0)), 600.0),
        (live(), frames((0.0, 5.0), (605.1, 606.0)), 0.0),
        (Timeline(first_s=None, is_files_clock=False, end_s=9000.0), frames((0.0, 5.0), (8005.0, 8006.0)), 8000.0),
        (Timeline(first_s=5.0, is_files_clock=False, end_s=None), frames((7.0, 8.0)), 2.0),
        (Timeline(first_s=5.0, is_files_clock=True, end_s=None), frames((7.0, 8.0)), 7.0),
        (Timeline(first_s=5000.0, is_files_clock=True, end_s=None), frames((5002.0, 5003.0)), 2.0),
        (Timeline(first_s=0.0, is_files_clock=True, end_s=None), frames((0.025, 1.0)), 0.0),
        (Timeline(first_s=-0.007, is_files_clock=True, end_s=None), frames((-0.007, 1.0)), 0.0),
        (Timeline(first_s=0.0, is_files_clock=True, end_s=None), [None] * 5, 0.0),
    ],
    ids=[
        *("a capture", "a pause", "a clock that is set back", "the longest pause", "a clock that is set forward"),
        *("a long pause in a long file", "a track after another", "tracks of a file", "tracks of a capture"),
        *("priming", "a start before 0", "no times"),
    ],
)
def test_silence_makes_up_for_what_is_not_there(timeline: Timeline, starts_s: list[float | None], expected_s: float):
    assert sum(silences(starts_s, timeline)) == pytest.approx(expected_s, abs=0.001)


def test_frames_that_arrive_in_bunches_make_no_silence():
    bunches = [0.3 * bunch for bunch in range(40) for _ in range(15)]
    assert set(silences(list(bunches), live())) == {0.0}


def test_a_clock_that_is_faster_than_the_samples_is_followed():
    starts_s = [1.01 * FRAME_S * i for i in range(10_000)]
    found = silences(list(starts_s), live())
    assert sum(found) == pytest.approx(0.01 * 200, abs=0.1)
    assert max(found) < 0.12


def test_after_a_loss_short_frames_count_too():
    timeline = live()
    assert set(silences(frames((0.0, 1.0)), timeline)) == {0.0}
    timeline.skip()
    assert silences(frames((1.02, 1.1)), timeline) == [0.02, 0.0, 0.0, 0.0]
    assert set(silences(frames((1.12, 1.2)), timeline)) == {0.0}


async def test_silence_is_made_a_second_at_a_time():
    data = media(KINDS["mkv"], moved=lambda at_s: at_s + 500.0 if at_s > 2.5 else at_s)
    lengths = [len(block) for block in iter_decode(data, CONTAINER, DecodeLimits(3600))]
    assert max(lengths) <= 1.2 * 16_000
    reader = live_reader(CONTAINER, field="config", is_live=False)
    assert max([len(block) async for block in reader.feed(data)]) <= 3 * 16_000
    reader.close()


def test_a_video_whose_audio_comes_after_megabytes_is_read_from_a_pipe():
    data = media(KINDS["flv, MP3"], moved=lambda at_s: at_s + 60.0, with_video=True)
    onsets = onsets_s(decode(Pipe(data), CONTAINER, DecodeLimits(max_duration_s=100)).samples)
    assert onsets == pytest.approx([at_s + 60.0 for at_s in TONES_S], abs=0.07)
