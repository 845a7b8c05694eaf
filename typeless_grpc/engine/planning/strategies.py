"""The contract's chunking strategies: which chunks of a recording are decoded, and how they depend on each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.interface import Chunking
from typeless_grpc.engine.model import FULL_WINDOW_S
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.planning.cuts import CutPolicy, cut
from typeless_grpc.engine.planning.speech import DetectedSpeech

# FIXED: windows that leave the encoder some room, and an overlap of several words.
FIXED_WINDOW_S = 24.0
FIXED_OVERLAP_S = 4.0
# HYBRID, where speech is cut without a pause: enough for a few words that both chunks hold whole, and what the longest
# chunk leaves of the encoder's 30 s.
HARD_CUT_OVERLAP_S = 1.5


@dataclass(frozen=True)
class Plan:
    """What to decode.

    chunking: the strategy, never AUTO. chunks: in order; the texts of chunks that overlap are merged by their words.
    """

    chunking: Chunking
    chunks: tuple[Chunk, ...]
    speech: DetectedSpeech

    @property
    def is_sequential(self) -> bool:
        """Whether each chunk is decoded after the one before it, conditioned on its text."""
        return self.chunking is Chunking.WHOLE and len(self.chunks) > 1

    def overlaps(self, index: int) -> bool:
        """Whether a chunk shares audio with a neighbour, so that merging needs its words."""
        before, after = self.chunks[max(0, index - 1) : index], self.chunks[index + 1 : index + 2]
        chunk = self.chunks[index]
        return any(one.end > chunk.start for one in before) or any(chunk.end > one.start for one in after)


def plan_recording(chunking: Chunking, speech: DetectedSpeech, n_samples: int, policy: CutPolicy) -> Plan:
    """Cut a recording of n_samples by a strategy."""
    if chunking is Chunking.AUTO:
        chunking = Chunking.WHOLE if n_samples <= FULL_WINDOW_S * SAMPLE_RATE_HZ else Chunking.HYBRID
    if chunking is Chunking.FIXED:
        return Plan(chunking, tuple(_fixed_windows(speech.spans, n_samples, policy)), speech)
    if chunking is Chunking.WHOLE:
        policy = replace(policy, longest_s=policy.longest_sequential_s)
    chunks = cut(speech.spans, n_samples, policy)
    if chunking is Chunking.HYBRID:
        chunks = _with_overlap(chunks)
    return Plan(chunking, tuple(chunks), speech)


def plan_utterance(speech: DetectedSpeech, n_samples: int) -> Plan:
    """Plan an utterance of n_samples as one chunk, with its pauses as they are."""
    return Plan(Chunking.WHOLE, (Chunk(0, n_samples, speech.spans, max_pause=n_samples),), speech)


def _fixed_windows(speech: Sequence[Span], n_samples: int, policy: CutPolicy) -> list[Chunk]:
    """Return windows of one length with overlap, from the start of the recording, without those that hold no speech."""
    length_s = min(FIXED_WINDOW_S, policy.longest_s)
    overlap_s = min(FIXED_OVERLAP_S, length_s / 4)
    length, step = round(length_s * SAMPLE_RATE_HZ), round((length_s - overlap_s) * SAMPLE_RATE_HZ)
    last_start = max(0, n_samples - (length - step))  # a later window would lie inside the one before
    windows = []
    for start in range(0, max(1, last_start), step):
        end = min(n_samples, start + length)
        inside = tuple(_clip(speech, start, end))
        if inside:
            windows.append(Chunk(start, end, inside, policy.max_pause))
    return windows


def _clip(speech: Sequence[Span], start: int, end: int) -> list[Span]:
    clipped = (Span(max(start, span.start), min(end, span.end)) for span in speech)
    return [span for span in clipped if span.start < span.end]


def _with_overlap(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return the chunks, but one that follows a cut inside speech begins a little before the cut."""
    extended = list(chunks[:1])
    for before, after in itertools.pairwise(chunks):
        if before.speech[-1].end < after.speech[0].start:
            extended.append(after)
            continue
        # Never so far that a chunk meets one that is not its neighbour.
        overlap = min(round(HARD_CUT_OVERLAP_S * SAMPLE_RATE_HZ), (before.end - before.start) // 2)
        start = after.start - overlap
        extended.append(replace(after, start=start, speech=(replace(after.speech[0], start=start), *after.speech[1:])))
    return extended
