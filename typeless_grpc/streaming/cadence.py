"""When the interims of an utterance are due: after so much audio, never after so much time.

Interims commit words, and the final keeps them. So the same audio must have the same interims, whatever the size of its
packets and the speed of their arrival.
"""

from __future__ import annotations

from dataclasses import dataclass

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ

# Each interim decodes the utterance from its beginning, so later ones take longer. With an interval of at least this
# part of the utterance's length, they take about the same share of the engine.
MIN_PART = 1 / 6


@dataclass(frozen=True)
class Cadence:
    """interval_s: minimum from one interim to the next. first_s: from the beginning of speech to the first one."""

    interval_s: float
    first_s: float

    @property
    def first_samples(self) -> int:
        """Samples from the beginning of speech to the first interim."""
        return round(min(self.first_s, self.interval_s) * SAMPLE_RATE_HZ)

    def samples_after(self, length: int) -> int:
        """Return the samples from an interim of this length to the next one."""
        return max(round(self.interval_s * SAMPLE_RATE_HZ), round(MIN_PART * length))
