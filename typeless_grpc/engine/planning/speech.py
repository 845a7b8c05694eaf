"""Which of the detected speech may be something else.

Music and animals reach the threshold of the voice activity detector for a moment, and Whisper then writes words for
them. In most speech the detector is nearly certain at least once: over 190 recordings, the 90th percentile of frames
was at least 0.93 and their mean 0.73, against 0.86 and 0.61 for music and animals. Some voices do not reach this, so
unlikely speech is decoded too, and the hallucination filter keeps its text only if the model is confident of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, Probabilities, Span

# Either of them is enough.
CERTAIN = 0.9  # of the upper tenth of the frames
LIKELY = 0.66  # of all of them in the mean

# Spans closer than this are judged together: a faint word stands beside clear ones.
TOGETHER = 3 * SAMPLE_RATE_HZ


def unlikely_speech(spans: Sequence[Span], probabilities: Probabilities) -> list[Span]:
    """Return those of the spans, in order, that may not be speech.

    probabilities: of the whole recording, one for each frame.
    """
    groups: list[list[Span]] = []
    for span in spans:
        if groups and span.start - groups[-1][-1].end < TOGETHER:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [span for group in groups if not _is_likely(group, probabilities) for span in group]


def _is_likely(group: Sequence[Span], probabilities: Probabilities) -> bool:
    frames = [probabilities[span.start // FRAME_SAMPLES : -(-span.end // FRAME_SAMPLES)] for span in group]
    together = np.concatenate(frames)
    if not len(together):
        return False
    return bool(np.quantile(together, 0.9) >= CERTAIN or together.mean() >= LIKELY)
