from __future__ import annotations

import numpy as np
import pytest

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, Span
from typeless_grpc.engine.planning.speech import unlikely_speech


def recording(*parts: tuple[float, float]) -> tuple[list[Span], np.ndarray]:
    """Spans and frames of (seconds, probability) parts; a part with 0 is silence."""
    spans, frames = [], []
    for seconds, probability in parts:
        n_frames = round(seconds * SAMPLE_RATE_HZ / FRAME_SAMPLES)
        if probability:
            spans.append(Span(len(frames) * FRAME_SAMPLES, (len(frames) + n_frames) * FRAME_SAMPLES))
        frames += [probability] * n_frames
    return spans, np.array(frames, dtype=np.float32)


@pytest.mark.parametrize(
    ("parts", "n_unlikely"),
    [
        pytest.param([(2.0, 0.95)], 0, id="certain"),
        pytest.param([(2.0, 0.7)], 0, id="likely-throughout"),
        pytest.param([(2.0, 0.55)], 1, id="never-certain"),
        pytest.param([(1.0, 0.5), (0.5, 0.0), (1.0, 0.97)], 0, id="faint-beside-clear"),
        pytest.param([(1.0, 0.5), (5.0, 0.0), (1.0, 0.97)], 1, id="faint-far-from-clear"),
        pytest.param([(0.0, 0.0)], 0, id="nothing"),
    ],
)
def test_unlikely_speech_is_found_in_order(parts, n_unlikely):
    spans, frames = recording(*parts)
    unlikely = unlikely_speech(spans, frames)
    assert len(unlikely) == n_unlikely
    assert [span for span in spans if span in unlikely] == unlikely


def test_a_span_that_ends_inside_a_frame_is_judged_with_it():
    assert not unlikely_speech([Span(0, FRAME_SAMPLES // 2)], np.array([0.99], dtype=np.float32))
