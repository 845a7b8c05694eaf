"""The formats that audio may arrive in, and the one that it is decoded to: float32, mono, 16 kHz."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from typeless_grpc.errors import FieldViolation, InvalidInput

SAMPLE_RATE_HZ = 16_000  # what Whisper was trained on (arXiv:2212.04356, section 2.2) and Silero expects
MIN_RAW_RATE_HZ, MAX_RAW_RATE_HZ = 8_000, 192_000
MAX_RAW_CHANNELS = 8

Audio = npt.NDArray[np.float32]  # shape (n_samples,), or (n_channels, n_samples) where channels are kept apart


class Encoding(Enum):
    """The encoding of samples; CONTAINER means that the file describes itself."""

    CONTAINER = "container"
    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"
    MULAW = "pcm_mulaw"
    ALAW = "pcm_alaw"

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel; 0 for a container."""
        return _SAMPLE_BYTES[self]


_SAMPLE_BYTES = {
    Encoding.CONTAINER: 0,
    Encoding.PCM_S16LE: 2,
    Encoding.PCM_F32LE: 4,
    Encoding.MULAW: 1,
    Encoding.ALAW: 1,
}


@dataclass(frozen=True)
class AudioFormat:
    """The format of audio, as its request declares it.

    sample_rate_hz, n_channels: needed for raw encodings (channels: 1 by default); for a container None, or the values
    of the file. Channels are interleaved. may_be_container: raw only unless the first bytes are those of a container.
    """

    encoding: Encoding = Encoding.CONTAINER
    sample_rate_hz: int | None = None
    n_channels: int | None = None
    may_be_container: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether the bytes are bare samples, without a header."""
        return self.encoding is not Encoding.CONTAINER

    @property
    def frame_bytes(self) -> int:
        """Bytes of one moment of raw audio: a sample of every channel."""
        return self.encoding.sample_bytes * (self.n_channels or 1)

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second of raw audio."""
        return self.frame_bytes * (self.sample_rate_hz or 0)

    def validated(self, field: str = "audio") -> AudioFormat:
        """Return this format with defaults filled in: 0 becomes None, and raw audio has one channel by default.

        field: path of the message that holds `format`, "items[3].audio".
        Raises InvalidInput, naming every wrong field, if the rate of raw audio is not in 8,000..192,000, its channels
        not in 1..8, or any of them is negative.
        """
        rate_hz, n_channels = self.sample_rate_hz or None, self.n_channels or None
        if self.is_raw:
            n_channels = n_channels or 1
        problems = []
        if why := _rate_problem(rate_hz, is_raw=self.is_raw):
            problems.append(FieldViolation(f"{field}.format.sample_rate_hertz", why))
        if why := _channels_problem(n_channels, is_raw=self.is_raw):
            problems.append(FieldViolation(f"{field}.format.channel_count", why))
        if problems:
            raise InvalidInput.of(problems)
        return replace(self, sample_rate_hz=rate_hz, n_channels=n_channels)

    def check_file(self, sample_rate_hz: int | None, n_channels: int | None, *, field: str) -> None:
        """Raise InvalidInput if the request says another rate or number of channels than its file has.

        field: path of the message that holds `format`.
        """
        for name, requested, found in (
            ("sample_rate_hertz", self.sample_rate_hz, sample_rate_hz),
            ("channel_count", self.n_channels, n_channels),
        ):
            if requested and requested != found:
                why = f"the request says {requested}, but the file has {found}; omit the field"
                raise InvalidInput(f"{field}.format.{name}", why)


def _rate_problem(rate_hz: int | None, *, is_raw: bool) -> str | None:
    if is_raw and rate_hz is None:
        return "raw audio needs a sample rate"
    if is_raw and rate_hz is not None and not MIN_RAW_RATE_HZ <= rate_hz <= MAX_RAW_RATE_HZ:
        return f"{rate_hz} Hz is not in {MIN_RAW_RATE_HZ} to {MAX_RAW_RATE_HZ}"
    if rate_hz is not None and rate_hz < 0:
        return f"{rate_hz} Hz is negative"
    return None


def _channels_problem(n_channels: int | None, *, is_raw: bool) -> str | None:
    if is_raw and n_channels is not None and not 1 <= n_channels <= MAX_RAW_CHANNELS:
        return f"{n_channels} channels is not in 1 to {MAX_RAW_CHANNELS}"
    if n_channels is not None and n_channels < 0:
        return f"{n_channels} channels is negative"
    return None
