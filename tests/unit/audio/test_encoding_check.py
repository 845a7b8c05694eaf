from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.harness import AUDIO
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.encoding_check import EncodingCheck, recognized_encoding
from typeless_grpc.audio.formats import Audio, AudioFormat, Encoding
from typeless_grpc.audio.g711 import ALAW, MULAW
from typeless_grpc.audio.live import live_reader
from typeless_grpc.errors import InvalidInput

RATE = 16_000
SPEECH = np.fromfile(AUDIO / "en_short_s16le_16k.raw", "<i2").astype(np.float32) / 32768
RANDOM = np.random.default_rng(5)
TIMES = np.arange(3 * RATE) / RATE


def integers(dtype: str) -> Callable[[Audio], bytes]:
    info = np.iinfo(dtype)
    return lambda audio: np.clip(np.round(audio * -float(info.min)), info.min, info.max).astype(dtype).tobytes()


def int24(order: int) -> Callable[[Audio], bytes]:
    def written(audio: Audio) -> bytes:
        samples = np.round(audio * (1 << 23)).clip(-(1 << 23), (1 << 23) - 1).astype("<i4")
        return samples.view(np.uint8).reshape(-1, 4)[:, :3][:, ::order].tobytes()

    return written


def by_table(table: Audio) -> Callable[[Audio], bytes]:
    order = np.argsort(table)
    edges = (table[order][1:] + table[order][:-1]) / 2
    return lambda audio: order[np.searchsorted(edges, audio)].astype(np.uint8).tobytes()


WRITTEN: dict[str, Callable[[Audio], bytes]] = {
    "16-bit little-endian integers": integers("<i2"),
    "16-bit big-endian integers": integers(">i2"),
    "24-bit little-endian integers": int24(1),
    "24-bit big-endian integers": int24(-1),
    "32-bit little-endian integers": integers("<i4"),
    "32-bit big-endian integers": integers(">i4"),
    "32-bit little-endian floats": lambda audio: audio.astype("<f4").tobytes(),
    "32-bit big-endian floats": lambda audio: audio.astype(">f4").tobytes(),
    "64-bit little-endian floats": lambda audio: audio.astype("<f8").tobytes(),
    "8-bit unsigned integers": lambda audio: np.round(audio * 127 + 128).astype(np.uint8).tobytes(),
    "8-bit signed integers": integers("i1"),
    "mu-law bytes": by_table(MULAW),
    "A-law bytes": by_table(ALAW),
}
DECLARED = {
    Encoding.PCM_S16LE: "16-bit little-endian integers",
    Encoding.PCM_F32LE: "32-bit little-endian floats",
    Encoding.MULAW: "mu-law bytes",
    Encoding.ALAW: "A-law bytes",
}
# Of eight bits read as others of eight, and 64-bit floats read as mu-law, too much is smooth to be certain.
UNCERTAIN = {(Encoding.MULAW, name) for name in WRITTEN if name.startswith(("8-bit", "A-law", "64-bit"))} | {
    (Encoding.ALAW, name) for name in WRITTEN if name.startswith(("8-bit", "mu-law"))
}
WRONG = [
    (encoding, name)
    for encoding, own in DECLARED.items()
    for name in WRITTEN
    if name != own and (encoding, name) not in UNCERTAIN
]
ALARMS_NEVER: dict[str, Audio] = {
    "speech": SPEECH,
    "faint speech": SPEECH * 0.001,
    "very faint speech": SPEECH * 0.0002,
    "clipped speech": np.clip(SPEECH * 30, -1, 1),
    "speech without its low half": np.diff(SPEECH, 2).astype(np.float32),
    "white noise": RANDOM.normal(0, 0.2, 3 * RATE),
    "loud white noise": RANDOM.uniform(-1, 1, 3 * RATE),
    "blue noise": np.diff(RANDOM.normal(0, 0.1, 3 * RATE)),
    "dither": RANDOM.integers(-1, 2, 3 * RATE) / 32768,
    "silence": np.zeros(3 * RATE),
    "an offset": np.full(3 * RATE, 0.3) + RANDOM.normal(0, 1e-4, 3 * RATE),
    "clicks": (RANDOM.random(3 * RATE) < 0.0005) * 0.9,
    "square wave": np.sign(np.sin(2 * np.pi * 3000 * TIMES)) * 0.9,
    "alternating samples": (-1.0) ** np.arange(3 * RATE) * 0.5,
    **{f"{hz} Hz": 0.5 * np.sin(2 * np.pi * hz * TIMES) for hz in (50, 440, 2000, 4000, 5000, 6000, 7000, 7900)},
    "DTMF": 0.3 * (np.sin(2 * np.pi * 697 * TIMES) + np.sin(2 * np.pi * 1477 * TIMES)),
}


@pytest.mark.parametrize(("declared", "name"), WRONG, ids=lambda value: getattr(value, "value", value))
def test_bytes_of_another_encoding_are_refused_by_name(declared: Encoding, name: str) -> None:
    format = AudioFormat(declared, RATE, 1)
    data = WRITTEN[name](SPEECH)
    with pytest.raises(InvalidInput) as caught:
        decode(data[: len(data) // format.frame_bytes * format.frame_bytes], format, DecodeLimits(600.0))
    error = caught.value
    assert (error.reason, error.violations[0].field) == ("AUDIO_UNDECODABLE", "audio.format.encoding")
    assert f"do not look like {declared.name}: they look like {name}" in error.message


@pytest.mark.parametrize("declared", DECLARED, ids=lambda encoding: encoding.value)
@pytest.mark.parametrize("audio", ALARMS_NEVER.values(), ids=ALARMS_NEVER)
def test_audio_that_is_declared_right_is_never_refused(declared: Encoding, audio: Audio) -> None:
    data = WRITTEN[DECLARED[declared]](audio.astype(np.float32))
    for n_channels in (1, 2):
        format = AudioFormat(declared, RATE, n_channels)
        second = RATE * format.frame_bytes
        for start in range(0, len(data) - second, second):  # each second as if it were the first
            check = EncodingCheck(format, "audio")
            check.feed(data[start : start + second])
            check.finish()


@pytest.mark.parametrize("other", ["white noise", "silence", "7000 Hz", "loud white noise", "clicks"])
@pytest.mark.parametrize("declared", DECLARED, ids=lambda encoding: encoding.value)
def test_a_channel_without_speech_is_no_sign_of_another_encoding(declared: Encoding, other: str) -> None:
    noise = np.resize(ALARMS_NEVER[other], len(SPEECH))
    for pair in ((SPEECH, noise), (noise, SPEECH)):
        data = WRITTEN[DECLARED[declared]](np.stack(pair, axis=1).astype(np.float32).ravel())
        assert recognized_encoding(data, AudioFormat(declared, RATE, 2))[0] == ""


def test_the_check_does_not_depend_on_how_the_bytes_are_cut_and_begins_behind_silence() -> None:
    data = bytes(5 * 2 * RATE) + WRITTEN["16-bit big-endian integers"](SPEECH)
    for n_bytes in (320, 4096, len(data)):
        check = EncodingCheck(AudioFormat(Encoding.PCM_S16LE, RATE, 1), "audio")
        parts = [data[start : start + n_bytes] for start in range(0, len(data), n_bytes)]
        n_refused = next(i for i, part in enumerate(parts) if is_refused(check, part))
        assert (n_refused + 1) * n_bytes >= min(6 * 2 * RATE, len(data))


def is_refused(check: EncodingCheck, data: bytes) -> bool:
    try:
        check.feed(data)
    except InvalidInput:
        return True
    return False


async def test_a_stream_of_another_encoding_is_refused_after_its_first_second_of_sound() -> None:
    reader = live_reader(AudioFormat(Encoding.PCM_S16LE, RATE, 1), field="config")
    n_fed = 0

    async def feed(data: bytes) -> None:
        nonlocal n_fed
        for start in range(0, len(data), 640):
            n_fed += 640
            async for _ in reader.feed(data[start : start + 640]):
                pass

    with pytest.raises(InvalidInput) as caught:
        await feed(WRITTEN["16-bit big-endian integers"](SPEECH))
    assert caught.value.violations[0].field == "config.format.encoding"
    assert n_fed <= 2 * 2 * RATE


def test_a_recording_of_less_than_a_second_is_checked_at_its_end() -> None:
    data = WRITTEN["16-bit big-endian integers"](SPEECH[RATE : RATE + RATE // 2])
    with pytest.raises(InvalidInput):
        decode(data, AudioFormat(Encoding.PCM_S16LE, RATE, 1), DecodeLimits(600.0))
