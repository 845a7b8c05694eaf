"""Tables for telephone audio (ITU-T G.711): the sample of each byte, as float32 in [-1, 1]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def _mulaw_table() -> npt.NDArray[np.float32]:
    """Return the table of mu-law: bits inverted; sign, 3 bits of exponent, 4 bits of mantissa."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = ((mantissa << 3) + 0x84 << exponent) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> npt.NDArray[np.float32]:
    """Return the table of A-law: every second bit inverted; the sign is set for positive values."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    linear = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, linear, linear + 0x100 << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


MULAW = _mulaw_table()
ALAW = _alaw_table()
