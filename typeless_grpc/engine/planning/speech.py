"""Finds the parts of a recording that are speech, and those of them that may be something else.

Music and animals reach the threshold of the voice activity detector for a moment, and Whisper then writes words for
them. In most speech the probability is near 1 at least once: over 190 recordings, the 90th percentile of frames was at
least 0.93 and their mean 0.73, against 0.86 and 0.61 for music and animals. Some voices do not reach this, so unlikely
speech is decoded too, and the hallucination filter keeps its text only if the model is confident of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import FRAME_SAMPLES, Probabilities, Span, SpeechSpanOptions, speech_spans

# Lower than Silero's 0.5: missing faint speech loses a word, and decoding noise only takes time
# (docs/measurements/speech.md).
SPEECH_THRESHOLD = 0.4
# Fine enough to find every pause; the planner decides which of them become cuts.
MIN_SPEECH_MS = 60
MIN_SILENCE_MS = 160

# A group of spans that reaches either is likely speech.
LIKELY_PERCENTILE_90 = 0.9
LIKELY_MEAN = 0.66
# Spans closer than this, in samples, are classified as one group, because a faint word is near clear ones.
MAX_GROUP_GAP = 3 * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class DetectedSpeech:
    """The speech of a recording, in samples, in order and without overlap.

    unlikely: those of the spans whose text is kept only if the model is confident of it.
    """

    spans: tuple[Span, ...]
    unlikely: tuple[Span, ...] = ()

    @property
    def seconds(self) -> float:
        """How much speech there is."""
        return sum(span.end - span.start for span in self.spans) / SAMPLE_RATE_HZ


def detect_speech(probabilities: Probabilities, n_samples: int, threshold: float | None = None) -> DetectedSpeech:
    """Find the speech of a recording of n_samples.

    probabilities: one for each frame. threshold: see `VoiceActivityOptions`; a caller that sets it decides what speech
    is, so no span is unlikely then.
    """
    options = SpeechSpanOptions(
        threshold=SPEECH_THRESHOLD if threshold is None else threshold,
        min_speech_ms=MIN_SPEECH_MS,
        min_silence_ms=MIN_SILENCE_MS,
        speech_pad_ms=0,
    )
    spans = speech_spans(probabilities, options, n_samples)
    return DetectedSpeech(tuple(spans), tuple(unlikely_speech(spans, probabilities)) if threshold is None else ())


def unlikely_speech(spans: Sequence[Span], probabilities: Probabilities) -> list[Span]:
    """Return those of the spans, in order, that may not be speech.

    probabilities: of the whole recording, one for each frame.
    """
    groups: list[list[Span]] = []
    for span in spans:
        if groups and span.start - groups[-1][-1].end < MAX_GROUP_GAP:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [span for group in groups if not _is_likely(group, probabilities) for span in group]


def _is_likely(group: Sequence[Span], probabilities: Probabilities) -> bool:
    frames = np.concatenate(
        [probabilities[span.start // FRAME_SAMPLES : -(-span.end // FRAME_SAMPLES)] for span in group]
    )
    if not len(frames):
        return False
    return bool(np.quantile(frames, 0.9) >= LIKELY_PERCENTILE_90 or frames.mean() >= LIKELY_MEAN)
