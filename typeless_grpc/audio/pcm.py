"""Converts raw samples, as telephones and microphones send them, to float32 at 16 kHz."""

from __future__ import annotations

import numpy as np

from typeless_grpc.audio.converter import Converter
from typeless_grpc.audio.encoding_check import EncodingCheck
from typeless_grpc.audio.formats import Audio, AudioFormat, Encoding
from typeless_grpc.audio.g711 import ALAW, MULAW
from typeless_grpc.audio.level import FullScale
from typeless_grpc.errors import InvalidInput


class PcmReader:
    """Reads a stream of raw audio, cut anywhere; any cutting gives the same samples.

    Memory is bounded by the data that is fed: between two feeds it keeps less than one frame of bytes, and the samples
    that `Converter` holds.
    """

    def __init__(
        self,
        format: AudioFormat,
        *,
        field: str = "audio",
        separate_channels: bool = False,
        is_live: bool = False,
        checks_encoding: bool = True,
    ) -> None:
        """format: raw. separate_channels, is_live: see `Converter`. checks_encoding: a caller declared the format.

        Raises InvalidInput as AudioFormat.validated does.
        """
        assert format.is_raw, "a container is decoded by decode.py"
        self._format = format.validated(field)
        self._field = field
        self._n_channels = self._format.n_channels or 1
        self._full_scale = FullScale()
        self._check = EncodingCheck(self._format, field) if checks_encoding else None
        self._converter = Converter(separate_channels=separate_channels, is_live=is_live)
        self._converter.feed(np.zeros((self._n_channels, 0), np.float32), self._format.sample_rate_hz or 0)
        self._pending = b""
        self._n_frames = 0

    @property
    def n_pending_bytes(self) -> int:
        """Bytes of an incomplete frame. If it is not 0 at the end, the stream was cut within a sample."""
        return len(self._pending)

    def begin_anew(self) -> None:
        """Drop an incomplete frame: the next data begins with a whole one."""
        self._pending = b""

    def feed(self, data: bytes) -> Audio:
        """Return the 16 kHz audio that these bytes complete; may be empty.

        Raises InvalidInput (AUDIO_UNDECODABLE) if a PCM_F32LE sample is NaN or infinite, if they are too large, or if
        the bytes are certainly of another encoding.
        """
        data = self._pending + data
        n_whole = len(data) - len(data) % self._format.frame_bytes
        self._pending = data[n_whole:]
        whole = data[:n_whole]
        if self._check is not None:
            self._check.feed(whole)
        samples = self._samples(whole)
        self._n_frames += samples.shape[1]
        return self._converter.feed(samples, self._format.sample_rate_hz or 0)

    def flush(self) -> Audio:
        """End the stream and return the samples still held; an incomplete last frame is dropped."""
        if self._check is not None:
            self._check.finish()
        return self._converter.flush()

    def _samples(self, data: bytes) -> Audio:
        flat = samples_of(data, self._format.encoding)
        if self._format.encoding is Encoding.PCM_F32LE:
            if not np.isfinite(flat).all():
                n_before = self._n_frames + int(np.argmin(np.isfinite(flat))) // self._n_channels
                raise self._refusal(data, f"sample {n_before} is not a finite number")
            scaled = self._full_scale.scaled(flat)
            if scaled is None:
                raise self._refusal(data, "the samples are too large for any format: they may be of another encoding")
            flat = scaled
        return flat.reshape(-1, self._n_channels).T

    def _refusal(self, data: bytes, why: str) -> InvalidInput:
        if self._check is not None and (known := self._check.refusal(data)):
            return known
        return InvalidInput(f"{self._field}.content", why, reason="AUDIO_UNDECODABLE")


def samples_of(data: bytes, encoding: Encoding) -> Audio:
    """Return the samples of raw bytes, interleaved float32 in [-1, 1]; PCM_F32LE is taken as it is.

    data: whole samples.
    """
    if encoding is Encoding.PCM_S16LE:
        return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)
    if encoding is Encoding.PCM_F32LE:
        return np.frombuffer(data, dtype="<f4").astype(np.float32)
    table = MULAW if encoding is Encoding.MULAW else ALAW
    return table[np.frombuffer(data, dtype=np.uint8)]
