"""One chunk of a recording, and the window that the model decodes for it.

The window is the chunk's audio with its long pauses shortened, because Whisper's decoder takes a long pause for the end
and stops. `Chunk.recording_s` converts times in the window back to times in the recording. Planning makes chunks, and
decoding reads them.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span


@dataclass(frozen=True)
class Chunk:
    """A part of a recording that is decoded by itself. All positions are samples of the recording, end exclusive.

    speech: in order, without overlap. max_pause: in the window, longer pauses are shortened to this many samples.
    """

    start: int
    end: int
    speech: tuple[Span, ...]
    max_pause: int

    @functools.cached_property
    def window_spans(self) -> tuple[Span, ...]:
        """The parts of the recording that make up the window: everything but the middle of long pauses."""
        spans, start, half = [], self.start, self.max_pause // 2
        for before, after in itertools.pairwise(self.speech):
            if after.start - before.end > self.max_pause:
                spans.append(Span(start, before.end + half))
                start = after.start - half
        return (*spans, Span(start, self.end))

    @property
    def window_s(self) -> float:
        """Length of the window, in seconds."""
        return sum(span.end - span.start for span in self.window_spans) / SAMPLE_RATE_HZ

    @property
    def speech_s(self) -> float:
        """How much speech it holds, in seconds."""
        return sum(span.end - span.start for span in self.speech) / SAMPLE_RATE_HZ

    def window_audio(self, recording: Audio) -> Audio:
        """Return the samples of the window."""
        parts = [recording[span.start : span.end] for span in self.window_spans]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def window_speech(self) -> tuple[Span, ...]:
        """Return the speech in samples of the window."""
        speech, offset = [], 0
        for part in self.window_spans:
            inside = [span for span in self.speech if part.start <= span.start and span.end <= part.end]
            speech += [Span(span.start - part.start + offset, span.end - part.start + offset) for span in inside]
            offset += part.end - part.start
        return tuple(speech)

    def recording_s(self, window_s: float) -> float:
        """Convert a time in the window to a time in the recording."""
        n_left = window_s * SAMPLE_RATE_HZ
        for span in self.window_spans:
            if n_left <= span.end - span.start:
                return (span.start + max(0.0, n_left)) / SAMPLE_RATE_HZ
            n_left -= span.end - span.start
        return self.end / SAMPLE_RATE_HZ

    def split(self, window_s: float) -> tuple[Chunk, Chunk]:
        """Split the chunk at a time in its window."""
        at = round(self.recording_s(window_s) * SAMPLE_RATE_HZ)
        before = tuple(Span(span.start, min(span.end, at)) for span in self.speech if span.start < at)
        after = tuple(Span(max(span.start, at), span.end) for span in self.speech if span.end > at)
        return replace(self, end=at, speech=before), replace(self, start=at, speech=after)
