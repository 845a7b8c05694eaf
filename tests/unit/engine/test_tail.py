from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.harness import AUDIO
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine import tail
from typeless_grpc.engine.model import FULL_POSITIONS, POSITIONS_PER_S
from typeless_grpc.engine.tail import (
    LENGTHS,
    MIN_TAIL_POSITIONS,
    Positions,
    Sample,
    Tail,
    calibrate,
    calibration_samples,
    n_encoded,
    padded_length,
)
from typeless_grpc.engine.tail_files import FILE_NAME, fingerprint_of, is_stored, load_or_calibrate

SPEECH = 5.0  # what the encoder below makes of speech; of silence it makes the position's number, in thousandths
N_TOKENS = 10


class FakeEncoder:
    """An encoder whose decoder writes ten words, and runs away unless silence follows the speech.

    needs_silence: whether it does. is_wrong: whether silence far from the speech depends on the speech.
    """

    def __init__(self, *, needs_silence: bool = True, is_wrong: bool = False) -> None:
        self.needs_silence, self.is_wrong = needs_silence, is_wrong

    def encode_positions(self, audio: Audio, n_positions: int) -> Positions:
        n_speech = round(len(audio) / SAMPLE_RATE_HZ * POSITIONS_PER_S)
        silence = np.arange(n_positions, dtype=np.float32)[:, None] / 1000 + float(audio[0]) * self.is_wrong
        return np.where(np.arange(n_positions)[:, None] < n_speech, np.float32(SPEECH), silence).astype(np.float32)

    def decode_greedily(self, positions: Positions, language: str) -> list[int]:
        return list(range(N_TOKENS if self.has_silence(positions) else 100))

    def log_probability(self, positions: Positions, language: str, tokens: Sequence[int]) -> float:
        return -0.2 if self.has_silence(positions) else -1.5

    def has_silence(self, positions: Positions) -> bool:
        n_silent = int((np.abs(positions[:, 0] - np.arange(len(positions)) / 1000) < 0.01).sum())
        return not self.needs_silence or n_silent > MIN_TAIL_POSITIONS // 2


def speech(*lengths_s: float) -> list[Sample]:
    return [
        Sample(np.full(round(length_s * SAMPLE_RATE_HZ), index, np.float32), "en")
        for index, length_s in enumerate(lengths_s, 1)
    ]


# ---- calibration ------------------------------------------------------------------------------------------------


def test_the_silence_of_each_position_is_the_mean_over_speech_that_has_ended_there():
    tail = calibrate(FakeEncoder(), speech(1.0, 2.0, 6.0))
    assert tail is not None
    assert tail.silence.shape == (FULL_POSITIONS, 1)
    assert tail.silence[75:, 0] == pytest.approx(np.arange(75, FULL_POSITIONS) / 1000)  # 1.0 s and half a second
    assert tail.silence[:75, 0] == pytest.approx(75 / 1000)  # no speech ends so early


def test_silence_that_does_not_help_the_decoder_is_not_used(caplog: pytest.LogCaptureFixture):
    assert calibrate(FakeEncoder(needs_silence=False), speech(1.0, 2.0)) is None
    assert "windows of 30 s are used" in caplog.text


def test_silence_that_causes_runaway_texts_is_not_used():
    assert calibrate(FakeEncoder(is_wrong=True), speech(1.0, 2.0)) is None


def test_the_calibration_speech_has_several_languages_and_lengths():
    found = calibration_samples()
    assert len({one.language for one in found}) >= 4
    lengths_s = sorted(len(one.audio) / SAMPLE_RATE_HZ for one in found)
    assert lengths_s[0] <= 1.0
    assert lengths_s[-1] >= 4.0
    assert all(np.abs(one.audio).max() > 0.05 for one in found)


def test_the_calibration_speech_is_that_of_the_fixtures():
    directory = Path(tail.__file__).parent / "calibration"
    files = sorted(directory.glob("*.ogg"))
    assert len(files) == len(calibration_samples())
    for file in files:
        language, _, name = file.stem.split("_")
        assert file.read_bytes() == (AUDIO / f"{language}_{name}.ogg").read_bytes()


# ---- after the speech -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio_s", "silence_s", "expected"),
    [(0.0, 0.5, 25), (1.0, 0.5, 75), (1.001, 0.5, 76), (29.9, 0.5, 1500), (30.0, 0.5, 1500), (2.0, 40.0, 1500)],
)
def test_the_encoded_positions_cover_audio_and_silence(audio_s: float, silence_s: float, expected: int):
    assert n_encoded(audio_s, silence_s) == expected


@pytest.mark.parametrize("n_positions", [0, 25, 300, 301, 700, 701, 1200, 1500])
def test_silence_pads_the_speech_to_one_of_a_few_lengths(n_positions: int):
    tail = Tail(np.arange(FULL_POSITIONS, dtype=np.float32)[:, None])
    encoded = np.full((n_positions, 1), -1.0, np.float16)
    whole = tail.append_to(encoded)
    assert len(whole) == padded_length(n_positions)
    assert len(whole) in LENGTHS
    assert len(whole) >= min(FULL_POSITIONS, n_positions + MIN_TAIL_POSITIONS)
    assert (whole[:n_positions] == -1).all()
    assert whole[n_positions:, 0].tolist() == np.arange(n_positions, len(whole)).astype(np.float16).tolist()
    assert whole.dtype == encoded.dtype


# ---- stored beside the model ------------------------------------------------------------------------------------

TAIL = Tail(np.linspace(-1, 1, FULL_POSITIONS * 2, dtype=np.float32).reshape(FULL_POSITIONS, 2))


class Calibration:
    """Counts its calls."""

    def __init__(self, tail: Tail | None = TAIL) -> None:
        self.n_calls, self._tail = 0, tail

    def __call__(self) -> Tail | None:
        self.n_calls += 1
        return self._tail


def test_a_tail_is_calibrated_once_and_stored(tmp_path: Path):
    calibration = Calibration()
    first = load_or_calibrate([tmp_path], "model", calibration)
    second = load_or_calibrate([tmp_path], "model", calibration)
    assert calibration.n_calls == 1
    assert first is TAIL
    assert second is not None
    assert np.array_equal(second.silence, TAIL.silence)  # the first start writes what later ones write
    assert second.silence.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_stored_tail_is_known_without_loading_the_model(tmp_path: Path):
    assert not is_stored([tmp_path], "model")
    load_or_calibrate([tmp_path], "model", lambda: Tail(np.ones((1500, 4), np.float32)))
    assert is_stored([tmp_path / "absent", tmp_path], "model")
    assert not is_stored([tmp_path], "another model")


def test_a_failed_calibration_is_stored_too(tmp_path: Path):
    calibration = Calibration(None)
    assert load_or_calibrate([tmp_path], "model", calibration) is None
    assert load_or_calibrate([tmp_path], "model", calibration) is None
    assert calibration.n_calls == 1


def test_the_tail_of_other_weights_is_calibrated_again(tmp_path: Path):
    calibration = Calibration()
    for fingerprint in ("model", "another", "another"):
        load_or_calibrate([tmp_path], fingerprint, calibration)
    assert calibration.n_calls == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text"])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str):
    calibration = Calibration()
    load_or_calibrate([tmp_path], "model", calibration)
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes({"cut": content[:1000], "changed": content, "empty": b"", "text": b"hello"}[damage])
    found = load_or_calibrate([tmp_path], "model", calibration)
    assert found is TAIL
    assert calibration.n_calls == 2
    load_or_calibrate([tmp_path], "model", calibration)
    assert calibration.n_calls == 2


def test_the_tail_is_stored_elsewhere_if_the_models_directory_is_not_writable(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("a directory cannot be made here")
    calibration = Calibration()
    for _ in range(2):
        assert load_or_calibrate([blocked, tmp_path / "cache" / "model"], "model", calibration) is not None
    assert calibration.n_calls == 1
    assert (tmp_path / "cache" / "model" / FILE_NAME).is_file()


def test_every_start_calibrates_if_nothing_is_writable(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert load_or_calibrate([blocked], "model", Calibration()) is TAIL
    assert "every start calibrates again" in caplog.text


def test_a_fingerprint_differs_with_the_weights_and_with_the_compute_type(tmp_path: Path):
    weights = tmp_path / "model.bin"
    found = set()
    for content, compute_type in itertools.product(
        [b"a" * 5_000_000, b"a" * 4_999_999 + b"b", b"a"], ["int8", "float32"]
    ):
        weights.write_bytes(content)
        found |= {fingerprint_of(weights, "cpu", compute_type), fingerprint_of(weights, "cpu", compute_type)}
    assert len(found) == 6
