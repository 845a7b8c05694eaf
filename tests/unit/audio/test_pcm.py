from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat, Encoding
from typeless_grpc.audio.pcm import PcmReader, samples_of
from typeless_grpc.errors import InvalidInput

RAW = [encoding for encoding in Encoding if encoding is not Encoding.CONTAINER]
RATES_HZ = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]


def tone(hertz: float, rate_hz: int, *, seconds: float = 1.0, level: float = 0.5) -> Audio:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def read(data: bytes, format: AudioFormat, *, separate_channels: bool = False) -> Audio:
    reader = PcmReader(format, separate_channels=separate_channels)
    return np.concatenate([reader.feed(data), reader.flush()], axis=-1)


def level_of(audio: Audio) -> float:
    """The amplitude of a tone, away from the edges."""
    return float(audio[1000:-1000].std() * 2**0.5)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_tone_keeps_its_pitch_its_level_and_its_length_at_every_rate(rate_hz: int) -> None:
    audio = read(tone(440, rate_hz).tobytes(), AudioFormat(Encoding.PCM_F32LE, rate_hz))
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert abs(len(audio) - SAMPLE_RATE_HZ) <= 1
    assert abs(spectrum.argmax() * SAMPLE_RATE_HZ / len(audio) - 440) <= 1
    assert level_of(audio) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 48_000, 96_000, 192_000])
def test_frequencies_above_8_khz_are_removed_without_aliasing(rate_hz: int) -> None:
    audio = read(tone(10_000, rate_hz).tobytes(), AudioFormat(Encoding.PCM_F32LE, rate_hz))
    assert level_of(audio) < 0.5 * 10 ** (-80 / 20)


@pytest.mark.parametrize("encoding", [Encoding.MULAW, Encoding.ALAW], ids=lambda encoding: encoding.value)
def test_every_byte_of_g711_is_decoded_as_by_ffmpeg(encoding: Encoding) -> None:
    data = bytes(range(256))
    codec = av.CodecContext.create(encoding.value, "r")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate, codec.layout = 8_000, "mono"
    (frame,) = codec.decode(av.Packet(data))
    np.testing.assert_array_equal(samples_of(data, encoding), frame.to_ndarray()[0] / np.float32(32768))


@pytest.mark.parametrize("encoding", RAW, ids=lambda encoding: encoding.value)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_cutting_of_a_stream_gives_the_same_samples(encoding: Encoding, data: st.DataObject) -> None:
    format = AudioFormat(encoding, data.draw(st.sampled_from(RATES_HZ)), data.draw(st.integers(1, 3)))
    seed = data.draw(st.integers(0, 99))
    samples = np.random.default_rng(seed).uniform(-1, 1, 3_000 * (format.n_channels or 1))
    whole = (
        samples.astype("<f4").tobytes() if encoding is Encoding.PCM_F32LE else (samples * 127).astype("i1").tobytes()
    )
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))

    reader = PcmReader(format)
    parts = [reader.feed(whole[i:j]) for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert reader.n_pending_bytes == len(whole) % format.frame_bytes
    np.testing.assert_array_equal(np.concatenate([*parts, reader.flush()]), read(whole, format))


def test_mono_is_the_mean_of_all_channels_so_that_none_is_lost() -> None:
    speech = tone(440, 16_000)
    eight = np.zeros((8, len(speech)), dtype=np.float32)
    eight[7] = speech
    audio = read(eight.T.tobytes(), AudioFormat(Encoding.PCM_F32LE, 16_000, 8))
    np.testing.assert_allclose(audio, speech / 8, atol=1e-6)


def test_channels_are_kept_apart_on_request() -> None:
    left, right = tone(440, 8_000), tone(1_000, 8_000)
    data = np.stack([left, right], axis=1).tobytes()
    audio = read(data, AudioFormat(Encoding.PCM_F32LE, 8_000, 2), separate_channels=True)
    np.testing.assert_array_equal(audio[0], read(left.tobytes(), AudioFormat(Encoding.PCM_F32LE, 8_000)))
    np.testing.assert_array_equal(audio[1], read(right.tobytes(), AudioFormat(Encoding.PCM_F32LE, 8_000)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_refused_by_its_place(value: float) -> None:
    reader = PcmReader(AudioFormat(Encoding.PCM_F32LE, 16_000, 2), field="config.audio")
    reader.feed(np.zeros(20, dtype="<f4").tobytes())
    with pytest.raises(InvalidInput, match=r"config\.audio\.content: sample 11 ") as caught:
        reader.feed(np.array([0, 0, 0, value], dtype="<f4").tobytes())
    assert caught.value.reason == "AUDIO_UNDECODABLE"


def test_float_samples_beyond_full_scale_are_clipped() -> None:
    data = np.array([3e38, -3e38, 0.25], dtype="<f4").tobytes()
    np.testing.assert_array_equal(read(data, AudioFormat(Encoding.PCM_F32LE, 16_000)), [1, -1, 0.25])


def test_nothing_in_is_nothing_out() -> None:
    assert read(b"", AudioFormat(Encoding.PCM_S16LE, 44_100)).shape == (0,)
