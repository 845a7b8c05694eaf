"""WAV as it arrives: its header read by us, its samples as raw ones.

FFmpeg looks at the first 64 kB before it gives a sample, which is two seconds of speech. Lengths in the header are not
believed: a recorder that writes into a pipe puts anything there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from typeless_grpc.audio.formats import MAX_RAW_CHANNELS, MAX_RAW_RATE_HZ, MIN_RAW_RATE_HZ, AudioFormat, Encoding

_MAX_HEADER_BYTES = 1 << 16
_EXTENSIBLE = 0xFFFE  # the format follows, in the first two bytes of a GUID
_ENCODINGS = {
    (1, 16): Encoding.PCM_S16LE,
    (3, 32): Encoding.PCM_F32LE,
    (7, 8): Encoding.MULAW,
    (6, 8): Encoding.ALAW,
}


class NotForUs(Exception):
    """No WAV file, or one of a kind that is left to FFmpeg."""


@dataclass(frozen=True)
class WavHeader:
    """format: raw, with its rate and channels. n_bytes: where the samples begin."""

    format: AudioFormat
    n_bytes: int


def wav_header(head: bytes) -> WavHeader | None:
    """The header at the beginning of head, None where more bytes are needed to tell. Raises NotForUs."""
    start = b"RIFF" + head[4:8] + b"WAVE"
    if not start.startswith(head[:12]):
        raise NotForUs
    encoding: Encoding | None = None
    n_channels = rate_hz = 0
    at = 12
    while len(head) >= at + 8:
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"data" and encoding is not None:
            return WavHeader(AudioFormat(encoding, rate_hz, n_channels), at + 8)
        if name == b"data" or at + size > _MAX_HEADER_BYTES:
            raise NotForUs
        body = head[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) == size:
            encoding, n_channels, rate_hz = _format(body)
        at += 8 + size + size % 2
    return None


def _format(body: bytes) -> tuple[Encoding, int, int]:
    if len(body) < 16:
        raise NotForUs
    tag, n_channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from("<H", body, 24)
    is_usual = MIN_RAW_RATE_HZ <= rate_hz <= MAX_RAW_RATE_HZ and 1 <= n_channels <= MAX_RAW_CHANNELS
    if (tag, bits) not in _ENCODINGS or not is_usual:
        raise NotForUs
    return _ENCODINGS[tag, bits], n_channels, rate_hz
