"""Many channels to one: the speech of each stays clear, and ordinary audio becomes the mean to the bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.harness import AUDIO
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.mixing import LOOKAHEAD_S, Mixer
from typeless_grpc.audio.pcm import PcmReader

N_SAMPLES = 5 * SAMPLE_RATE_HZ


@functools.cache
def speech(name: str = "en_numbers.ogg") -> Audio:
    samples = decode((AUDIO / name).read_bytes(), AudioFormat(), DecodeLimits(60)).samples
    return np.resize(samples, N_SAMPLES).astype(np.float32)


def other_speech() -> Audio:
    return speech("de_sentence.ogg")


def late(samples: Audio, delay_s: float) -> Audio:
    n_late = int(delay_s * SAMPLE_RATE_HZ)
    return np.concatenate([np.zeros(n_late, np.float32), samples])[:N_SAMPLES]


def noise(level: float, seed: int = 0) -> Audio:
    return (level * np.random.default_rng(seed).normal(size=N_SAMPLES)).astype(np.float32)


def hum(level: float) -> Audio:
    times = np.arange(N_SAMPLES) / SAMPLE_RATE_HZ
    return (level * sum(np.sin(2 * np.pi * 50 * n * times) / n for n in (1, 3, 5))).astype(np.float32)


def silence() -> Audio:
    return np.zeros(N_SAMPLES, np.float32)


def mixed(channels: list[Audio], *, lookahead_s: float = LOOKAHEAD_S, step: int = 7_777) -> Audio:
    samples = np.stack(channels)
    mixer = Mixer(SAMPLE_RATE_HZ, len(channels), lookahead_s=lookahead_s)
    parts = [mixer.feed(samples[:, start : start + step]) for start in range(0, N_SAMPLES, step)]
    mono = np.concatenate([*parts, mixer.flush()], axis=1)
    assert mono.shape == (1, N_SAMPLES)
    return mono[0]


def likeness(one: Audio, other: Audio) -> float:
    return float(abs(np.corrcoef(one, other)[0, 1]))


SPOILT = {
    "inverted": lambda: [speech(), -speech()],
    "partly inverted": lambda: [speech(), -0.8 * speech()],
    "inverted, with noise": lambda: [speech() + noise(0.002), -speech() + noise(0.002, 1)],
    "inverted, with hum in both": lambda: [speech() + hum(0.01), -speech() + hum(0.01)],
    "two pairs, inverted": lambda: [speech(), -speech(), speech(), -speech()],
    "surround with one side inverted": lambda: [speech(), -speech(), *[silence()] * 4],
    "a little late": lambda: [speech(), late(speech(), 0.005)],
    "late": lambda: [speech(), late(speech(), 0.3)],
    "very late": lambda: [speech(), late(speech(), 1.0)],
    "the first late": lambda: [late(speech(), 0.3), speech()],
    "late and inverted": lambda: [speech(), -late(speech(), 0.02)],
    "the other dead": lambda: [silence(), speech()],
    "the other only noise": lambda: [speech(), noise(0.1)],
    "the other only hum": lambda: [hum(0.3), speech()],
    "alone among noise": lambda: [noise(0.1), noise(0.1, 1), speech(), noise(0.1, 2)],
}


@pytest.mark.parametrize("channels", SPOILT.values(), ids=SPOILT)
def test_speech_survives_the_mix(channels):
    assert likeness(mixed(channels()), speech()) > 0.95


@pytest.mark.parametrize("channels", SPOILT.values(), ids=SPOILT)
def test_speech_survives_the_mix_of_what_is_mixed_as_it_arrives(channels):
    found = slice(2 * SAMPLE_RATE_HZ, None)  # what it cannot know before
    assert likeness(mixed(channels(), lookahead_s=0)[found], speech()[found]) > 0.9


ORDINARY = {
    "the same in both": lambda: [speech(), speech()],
    "one louder": lambda: [speech() + noise(0.001), 0.4 * speech() + noise(0.001, 1)],
    "a speaker in each": lambda: [speech(), other_speech()],
    "a speaker in each, and the echo of the other": lambda: [
        speech() + 0.1 * late(other_speech(), 0.05),
        other_speech() + 0.1 * late(speech(), 0.05),
    ],
    "two microphones": lambda: [speech() + late(other_speech(), 0.0006), late(speech(), 0.0006) + other_speech()],
    "one dead": lambda: [speech(), silence()],
    "one speaks, the other's room is quiet": lambda: [speech(), noise(0.0005)],
    "surround with speech in the centre": lambda: [silence(), silence(), speech(), silence(), silence(), silence()],
    "silence": lambda: [silence(), silence()],
    "noise in both": lambda: [noise(0.01), noise(0.01, 1)],
}


@pytest.mark.parametrize("lookahead_s", [0.0, LOOKAHEAD_S])
@pytest.mark.parametrize("channels", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_audio_becomes_the_mean_to_the_bit(channels, lookahead_s):
    mean = np.stack(channels()).mean(axis=0, dtype=np.float32)
    np.testing.assert_array_equal(mixed(channels(), lookahead_s=lookahead_s), mean)


def test_an_answer_in_a_channel_that_had_only_the_echo_is_in_the_mix():
    answer = np.where(np.arange(N_SAMPLES) < N_SAMPLES // 2, 0.4 * late(speech(), 0.2), other_speech())
    half = slice(N_SAMPLES // 2 + SAMPLE_RATE_HZ // 2, None)
    mono = mixed([speech(), answer.astype(np.float32)])
    assert likeness(mono[half], speech()[half] + other_speech()[half]) > 0.95


def test_speech_in_a_channel_that_was_only_noise_is_in_the_mix():
    second = noise(0.03)
    second[3 * SAMPLE_RATE_HZ :] += other_speech()[3 * SAMPLE_RATE_HZ :]
    mono = mixed([speech(), second])
    both = slice(int(3.2 * SAMPLE_RATE_HZ), None)
    assert likeness(mono[both], speech()[both] + second[both]) > 0.95


@pytest.mark.parametrize("lookahead_s", [0.0, LOOKAHEAD_S])
@pytest.mark.parametrize("step", [1, 999, N_SAMPLES])
def test_any_cutting_gives_the_same_mix(lookahead_s, step):
    channels = [speech(), late(-speech(), 0.05)]
    if step == 1:
        mixer = Mixer(SAMPLE_RATE_HZ, 2, lookahead_s=lookahead_s)
        samples = np.stack(channels)[:, :4_000]
        parts = [mixer.feed(samples[:, i : i + 1]) for i in range(4_000)]
        whole = Mixer(SAMPLE_RATE_HZ, 2, lookahead_s=lookahead_s)
        expected = np.concatenate([whole.feed(samples), whole.flush()], axis=1)
        np.testing.assert_array_equal(np.concatenate([*parts, mixer.flush()], axis=1), expected)
        return
    np.testing.assert_array_equal(
        mixed(channels, lookahead_s=lookahead_s, step=step), mixed(channels, lookahead_s=lookahead_s)
    )


async def test_recordings_and_streams_of_inverted_channels_have_the_same_speech():
    data = (np.stack([speech(), -speech()], axis=1) * 32767).astype("<i2").tobytes()
    format = AudioFormat(Encoding.PCM_S16LE, SAMPLE_RATE_HZ, 2)
    recording = decode(data, format, DecodeLimits(60)).samples
    for is_live in (True, False):
        reader = live_reader(format, field="config", is_live=is_live)
        blocks = [block async for block in reader.feed(data)] + [block async for block in reader.finish()]
        np.testing.assert_allclose(np.abs(np.concatenate(blocks)), np.abs(recording), atol=1e-4)
    assert likeness(recording, speech()) > 0.99


def test_a_live_stream_is_mixed_a_tenth_of_a_second_later_at_most():
    data = (np.stack([speech(), -speech()], axis=1) * 32767).astype("<i2").tobytes()
    reader = PcmReader(AudioFormat(Encoding.PCM_S16LE, SAMPLE_RATE_HZ, 2), is_live=True)
    n_out = 0
    for start in range(0, len(data), 1280):
        n_out += len(reader.feed(data[start : start + 1280]))
        assert (start + 1280) // 4 - n_out <= SAMPLE_RATE_HZ // 10
