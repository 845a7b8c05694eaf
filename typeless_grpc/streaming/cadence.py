"""When the text so far of an utterance is wanted, on the clock of the audio.

Not on that of the machine: which words are certain follows from the interims, and the final keeps what was certain. So
the same audio must have the same interims, however it was cut and however fast it came.
"""

from __future__ import annotations

from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ

# Each interim is the utterance from its beginning, so later ones take longer: they come no more often than at this
# part of its length, and take about the same share of the engine.
LEAST_PART = 1 / 6


@dataclass(frozen=True)
class Cadence:
    """interval_s: from one interim of an utterance to the next, at least. first_s: from its beginning to the first."""

    interval_s: float
    first_s: float

    @property
    def first_samples(self) -> int:
        """From the beginning of speech to the first."""
        return round(min(self.first_s, self.interval_s) * SAMPLE_RATE_HZ)

    def samples_after(self, length: int) -> int:
        """From one that is this many samples long to the next."""
        return max(round(self.interval_s * SAMPLE_RATE_HZ), round(LEAST_PART * length))
