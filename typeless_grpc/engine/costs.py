"""The cost of decoding a window, for the planner and the scheduler.

Costs are in seconds of an idle engine, measured in docs/measurements/encoder.md. Only their ratios matter: the
scheduler measures how long a second of cost takes on this machine.
"""

from __future__ import annotations

FIXED_COST = 0.04
COST_PER_S = 0.018  # for each encoded second
COST_PER_EXTRA_BEAM = 0.25  # added to COST_PER_S, as a fraction of it
COST_PER_S2 = 0.00023  # for the square of the encoded seconds, because encoding grows faster than its input

# Of a batch: eight short windows, or three of 20 s. It bounds the memory of a batch.
MAX_BATCH_COST = 1.4
# Of a batch while there is live speech, which may have to wait for the batch to end.
MAX_LIVE_BATCH_COST = 1.0


def decode_cost(encoded_s: float, beam_size: int = 1) -> float:
    """Return the cost of encoding and decoding this many seconds."""
    beams = 1 + COST_PER_EXTRA_BEAM * (beam_size - 1)
    return FIXED_COST + COST_PER_S * beams * encoded_s + COST_PER_S2 * encoded_s**2
