"""Samples of another size than they should have, and speech that is too faint."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from tests.unit.audio.files import CONTAINER, LIMITS, reason_of
from tests.unit.audio.test_mixing import N_SAMPLES, noise, speech
from typeless_grpc.audio.decode import decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat, Encoding
from typeless_grpc.audio.level import LOOKAHEAD_S, FullScale, Leveler
from typeless_grpc.audio.pcm import PcmReader
from typeless_grpc.audio.vad import SileroDetector, recording_probabilities

FLOATS = AudioFormat(Encoding.PCM_F32LE, SAMPLE_RATE_HZ)


def leveled(samples: Audio, *, lookahead_s: float = LOOKAHEAD_S, step: int = 777) -> Audio:
    leveler = Leveler(lookahead_s=lookahead_s)
    parts = [leveler.feed(samples[start : start + step]) for start in range(0, len(samples), step)]
    return np.concatenate([*parts, leveler.flush()])


def at_peak(peak_db: float) -> Audio:
    return (speech() / np.abs(speech()).max() * 10 ** (peak_db / 20)).astype(np.float32)


def rounded(samples: Audio) -> Audio:
    return (np.round(samples * 32768) / 32768).astype(np.float32)


def float_wav(samples: np.ndarray, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE_HZ, layout="mono")
        assert isinstance(stream, av.AudioStream)
        kind = {"pcm_f32le": ("f4", "flt"), "pcm_f64le": ("f8", "dbl")}[codec]
        frame = av.AudioFrame.from_ndarray(samples.astype(kind[0])[None], format=kind[1], layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


@pytest.mark.parametrize("full_scale", [2**15, 2**23, 2**31], ids=["16 bits", "24 bits", "32 bits"])
@pytest.mark.parametrize("kind", ["raw", "pcm_f32le", "pcm_f64le"])
def test_integers_that_were_written_as_floats_are_scaled(full_scale: int, kind: str):
    samples = np.round(speech().astype(np.float64) * full_scale)
    if kind == "raw":
        got = decode(samples.astype("<f4").tobytes(), FLOATS, LIMITS).samples
    else:
        got = decode(float_wav(samples, kind), CONTAINER, LIMITS).samples
    n_found = 10_000  # how large they are is known once somebody speaks
    np.testing.assert_allclose(got[n_found:], speech()[n_found:], atol=1e-4)
    assert np.abs(got).max() <= 1.0


def test_silence_before_integers_written_as_floats_does_not_hide_them():
    samples = np.concatenate([np.zeros(SAMPLE_RATE_HZ, np.float32), speech() * 32768])
    got = decode(samples.astype("<f4").tobytes(), FLOATS, LIMITS).samples
    np.testing.assert_allclose(got[20_000:], samples[20_000:] / 32768, atol=1e-4)


@pytest.mark.parametrize("peak", [1.0, 1.4, 2.5])
def test_floats_that_are_a_little_too_loud_are_clipped(peak: float):
    samples = at_peak(0) * np.float32(peak)
    got = decode(samples.astype("<f4").tobytes(), FLOATS, LIMITS).samples
    np.testing.assert_array_equal(got, np.clip(samples, -1, 1))


def test_one_wild_sample_scales_nothing():
    samples = speech().copy()
    samples[1000:1010] = 1e30
    got = decode(samples.astype("<f4").tobytes(), FLOATS, LIMITS).samples
    np.testing.assert_array_equal(got[1010:], samples[1010:])


@pytest.mark.parametrize("kind", ["raw", "pcm_f32le"])
def test_floats_larger_than_any_format_has_are_refused(kind: str):
    samples = speech() * np.float32(1e30)
    if kind == "raw":
        assert reason_of(samples.astype("<f4").tobytes(), FLOATS) == "AUDIO_UNDECODABLE"
    else:
        assert reason_of(float_wav(samples, kind)) == "AUDIO_UNDECODABLE"


@pytest.mark.parametrize(
    ("peak_db", "bits"),
    [
        *((peak_db, "16 bits") for peak_db in (-60, -66, -70)),
        *((db, "float") for db in (-60, -75, -80, -90, -100)),
    ],
)
def test_speech_too_faint_for_the_detector_is_raised(peak_db: float, bits: str):
    faint = at_peak(peak_db) if bits == "float" else rounded(at_peak(peak_db))
    detector = SileroDetector()
    got = leveled(faint)
    assert (recording_probabilities(detector, got) > 0.4).mean() > 0.5
    assert 0.05 < np.abs(got).max() < 0.5


ENOUGH = {
    "loud": lambda: speech(),
    "soft": lambda: at_peak(-45),
    "soft, after silence": lambda: np.concatenate([np.zeros(SAMPLE_RATE_HZ, np.float32), at_peak(-40)]),
    "after the noise of a room": lambda: np.concatenate([noise(2e-4), speech()]),
    "a room where nobody speaks": lambda: noise(2e-4),
    "a room, after digital silence": lambda: np.concatenate([np.zeros(SAMPLE_RATE_HZ, np.float32), noise(2e-4)]),
    "the noise of rounding": lambda: rounded(noise(0.4 / 32768)),
    "digital silence": lambda: np.zeros(N_SAMPLES, np.float32),
    "nothing": lambda: np.zeros(0, np.float32),
}


@pytest.mark.parametrize("lookahead_s", [0.0, LOOKAHEAD_S])
@pytest.mark.parametrize("samples", ENOUGH.values(), ids=ENOUGH)
def test_audio_that_is_loud_enough_or_no_speech_stays_as_it_is(samples, lookahead_s: float):
    np.testing.assert_array_equal(leveled(samples(), lookahead_s=lookahead_s), samples())


def test_audio_that_gets_loud_is_not_raised_any_more():
    got = leveled(np.concatenate([at_peak(-66), speech()]))
    np.testing.assert_array_equal(got[N_SAMPLES + SAMPLE_RATE_HZ :], speech()[SAMPLE_RATE_HZ:])


def test_a_constant_offset_does_not_make_faint_speech_loud():
    detector = SileroDetector()
    got = leveled(at_peak(-66) + np.float32(0.01))
    assert (recording_probabilities(detector, got) > 0.4).mean() > 0.6


@pytest.mark.parametrize("offset", [0.1, -0.5, 0.8])
@pytest.mark.parametrize("peak_db", [-50, -30, -16])
def test_a_constant_offset_does_not_hide_speech(offset: float, peak_db: float):
    detector = SileroDetector()
    got = leveled(at_peak(peak_db) + np.float32(offset))
    assert (recording_probabilities(detector, got) > 0.4).mean() > 0.8


@pytest.mark.parametrize("lookahead_s", [0.0, LOOKAHEAD_S])
@pytest.mark.parametrize("step", [100, 1600, N_SAMPLES])
def test_any_cutting_gives_the_same_level(lookahead_s: float, step: int):
    samples = np.concatenate([at_peak(-66), speech()])
    np.testing.assert_array_equal(
        leveled(samples, lookahead_s=lookahead_s, step=step), leveled(samples, lookahead_s=lookahead_s)
    )


def test_a_live_stream_of_one_channel_waits_for_nothing():
    reader = PcmReader(AudioFormat(Encoding.PCM_S16LE, SAMPLE_RATE_HZ), is_live=True)
    data = (at_peak(-66) * 32768).astype("<i2").tobytes()
    assert sum(len(reader.feed(data[start : start + 200])) for start in range(0, 20_000, 200)) == 10_000


@pytest.mark.parametrize("cut", [1, 7, 64, 1000])
def test_any_cutting_gives_the_same_scale(cut: int):
    generator = np.random.default_rng(1)
    samples = np.float32(10.0) ** generator.uniform(-2, 10, 1000).astype(np.float32)
    parts = FullScale()
    got = [parts.scaled(samples[at : at + cut]) for at in range(0, len(samples), cut)]
    whole = FullScale().scaled(samples)
    assert whole is not None
    np.testing.assert_array_equal(np.concatenate([one for one in got if one is not None]), whole)
