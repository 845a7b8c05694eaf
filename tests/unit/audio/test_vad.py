from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typeless_grpc.audio import vad
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.vad import (
    FRAME_SAMPLES,
    DetectorState,
    SileroDetector,
    Span,
    SpeechSpanOptions,
    recording_probabilities,
    speech_spans,
)
from typeless_grpc.errors import EngineFailed

TIGHT = SpeechSpanOptions(min_silence_ms=192, speech_pad_ms=0)  # 6 frames, and one more to see it


@pytest.fixture(scope="module")
def detector() -> SileroDetector:
    pytest.importorskip("faster_whisper", reason="the model comes with it")
    return SileroDetector()


@pytest.fixture(scope="module")
def noise() -> Audio:
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0, 0.5, 25), 2_000)
    return (loudness * rng.standard_normal(50_000)).astype(np.float32)


def frames(pattern: str) -> Audio:
    """Probabilities of 32 ms frames: S is speech, m in between both thresholds, . silence."""
    return np.array([{"S": 0.9, "m": 0.4, ".": 0.0}[mark] for mark in pattern], dtype=np.float32)


def spans_in_frames(pattern: str, options: SpeechSpanOptions) -> list[tuple[int, int]]:
    spans = speech_spans(frames(pattern), options, len(pattern) * FRAME_SAMPLES)
    return [(span.start // FRAME_SAMPLES, span.end // FRAME_SAMPLES) for span in spans]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 50_000), max_size=30))
def test_any_cutting_of_a_stream_gives_the_same_probabilities(
    cuts: list[int], detector: SileroDetector, noise: Audio
) -> None:
    state, bounds = DetectorState(), [0, *sorted(cuts), len(noise)]
    parts = [detector.probabilities(noise[i:j], state) for i, j in pairwise(bounds)]
    streamed = np.concatenate([*parts, detector.finish(state)])
    np.testing.assert_allclose(streamed, recording_probabilities(detector, noise), atol=1e-4)


def test_a_long_recording_goes_through_in_batches_with_the_same_result(
    detector: SileroDetector, noise: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = recording_probabilities(detector, noise)
    monkeypatch.setattr(vad, "MAX_FRAMES_A_CALL", 7)
    np.testing.assert_allclose(recording_probabilities(detector, noise), at_once, atol=1e-4)


@pytest.mark.parametrize("n_samples", [0, 1, 511, 512, 513])
def test_every_begun_frame_has_a_probability(detector: SileroDetector, n_samples: int) -> None:
    probabilities = recording_probabilities(detector, np.zeros(n_samples, dtype=np.float32))
    assert probabilities.dtype == np.float32
    assert len(probabilities) == -(-n_samples // FRAME_SAMPLES)


def test_streams_do_not_change_the_state_of_each_other(detector: SileroDetector, noise: Audio) -> None:
    alone = recording_probabilities(detector, noise)
    one, other = DetectorState(), DetectorState()
    mixed = []
    for i in range(0, len(noise), 5_000):
        mixed.append(detector.probabilities(noise[i : i + 5_000], one))
        detector.probabilities(noise[::-1][i : i + 5_000], other)
    np.testing.assert_allclose(np.concatenate([*mixed, detector.finish(one)]), alone, atol=1e-4)


def test_a_missing_model_has_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vad, "find_spec", lambda _name: None)
    with pytest.raises(EngineFailed, match=r"faster-whisper 1\.2") as caught:
        SileroDetector()
    assert caught.value.reason == "VAD_UNAVAILABLE"
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        SileroDetector(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("pattern", "options", "expected"),
    [
        pytest.param("..........", TIGHT, [], id="silence"),
        pytest.param("..SSS.............", TIGHT, [(2, 5)], id="one word"),
        pytest.param("..SSS.....SSS.......", TIGHT, [(2, 13)], id="a short pause joins"),
        pytest.param("..SSS.......SSS.......", TIGHT, [(2, 5), (12, 15)], id="a long pause ends"),
        pytest.param("..SSS.......SSS.", TIGHT, [(2, 5), (12, 16)], id="cut off while speaking"),
        pytest.param("mmSmmmmmmmmmmmm", TIGHT, [(2, 15)], id="between the thresholds speech goes on"),
        pytest.param("mmmmmmmm", TIGHT, [], id="between the thresholds none begins"),
        pytest.param(
            "S.......SSSSSS.......",
            SpeechSpanOptions(min_speech_ms=100, min_silence_ms=192, speech_pad_ms=0),
            [(8, 14)],
            id="a click is dropped",
        ),
        pytest.param(
            "....SSSS........SSSS.......",
            SpeechSpanOptions(min_silence_ms=192, speech_pad_ms=64),
            [(2, 10), (14, 22)],
            id="padded",
        ),
        pytest.param(
            ".SSSS.......SSSS.......",
            SpeechSpanOptions(min_silence_ms=192, speech_pad_ms=640),
            [(0, 8), (8, 23)],
            id="padding meets halfway and stays within",
        ),
        pytest.param(
            "SSSSSSSSSS......SSSSSSSSSS.....SSSSSSSSSSSSSSS",
            SpeechSpanOptions(speech_pad_ms=0, max_speech_s=1.28),
            [(0, 10), (16, 46)],
            id="too long: cut at the longest pause within reach",
        ),
        pytest.param(
            "S" * 50,
            SpeechSpanOptions(speech_pad_ms=0, max_speech_s=0.64),
            [(0, 20), (20, 40), (40, 50)],
            id="too long, no pause: cut hard",
        ),
    ],
)
def test_spans_are_where_the_speech_is(
    pattern: str, options: SpeechSpanOptions, expected: list[tuple[int, int]]
) -> None:
    assert spans_in_frames(pattern, options) == expected


@given(
    probabilities=st.lists(st.floats(0, 1, width=32), max_size=300),
    threshold=st.floats(0.05, 1),
    min_speech_ms=st.integers(0, 500),
    min_silence_ms=st.integers(0, 1_000),
    speech_pad_ms=st.integers(0, 600),
    max_speech_s=st.floats(0.5, 20) | st.just(float("inf")),
    n_missing=st.integers(0, FRAME_SAMPLES - 1),
)
def test_spans_are_sorted_apart_within_the_audio_and_no_longer_than_allowed(
    probabilities: list[float], n_missing: int, max_speech_s: float, **options: Any
) -> None:
    n_samples = max(0, len(probabilities) * FRAME_SAMPLES - n_missing)
    chosen = SpeechSpanOptions(max_speech_s=max_speech_s, **options)
    spans = speech_spans(np.array(probabilities, dtype=np.float32), chosen, n_samples)
    bounds = [bound for span in spans for bound in (span.start, span.end)]
    assert bounds == sorted(bounds)
    assert all(0 <= span.start < span.end <= n_samples for span in spans)
    padding = 2 * chosen.speech_pad_ms * SAMPLE_RATE_HZ // 1000 + FRAME_SAMPLES
    longest = max(max_speech_s * SAMPLE_RATE_HZ, padding)
    assert all(span.end - span.start <= longest for span in spans)


@pytest.mark.recordings
@pytest.mark.parametrize(
    ("file", "options"),
    [
        pytest.param("speech/en/misc/two_cities_44s.flac", SpeechSpanOptions(), id="defaults"),
        pytest.param(
            "speech/en/misc/two_cities_44s.flac",
            SpeechSpanOptions(threshold=0.6, min_silence_ms=200, speech_pad_ms=90, min_speech_ms=250),
            id="short silences",
        ),
        pytest.param("speech/de/simplicissimus_68s.mp3", SpeechSpanOptions(min_silence_ms=300), id="German"),
    ],
)
def test_spans_of_a_recording_are_those_of_faster_whisper(
    file: str, options: SpeechSpanOptions, detector: SileroDetector, recordings: Any
) -> None:
    reference = pytest.importorskip("faster_whisper.vad")
    audio = decode(recordings.bytes_of(file), AudioFormat(), DecodeLimits(120)).samples
    expected = reference.get_speech_timestamps(
        audio,
        reference.VadOptions(
            threshold=options.threshold,
            min_speech_duration_ms=options.min_speech_ms,
            min_silence_duration_ms=options.min_silence_ms,
            speech_pad_ms=options.speech_pad_ms,
        ),
    )
    spans = speech_spans(recording_probabilities(detector, audio), options, len(audio))
    assert spans == [Span(span["start"], span["end"]) for span in expected]
    assert spans


def test_the_library_reports_to_nobody(tmp_path: Path) -> None:
    script = "from typeless_grpc.audio.vad import SileroDetector; SileroDetector()"
    keep = {name: value for name, value in os.environ.items() if not name.startswith("ORT_") and name != "CI"}
    subprocess.run([sys.executable, "-c", script], env=keep | {"HOME": str(tmp_path)}, check=True, timeout=60)
    # It would keep an id of this machine there, and a queue of what it is about to send.
    assert not list(tmp_path.rglob("*onnxruntime*"))
