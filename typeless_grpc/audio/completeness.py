"""Checks whether a recording is complete.

Decoders are lenient: half a file often decodes to half the audio, or to nothing, without an error. But nearly every
container says in its header how much there should be. So three things are compared with it:

- bytes: a structure that reaches beyond the end of the file, or has holes (`structures.py`);
- packets: the share of them that their decoder refused;
- seconds: fewer than the header declares, for formats whose header counts samples.

A header that declares less than there is does no harm, and one that was written before the length was known (0, all
ones) declares nothing. Small losses are accepted, because nearly all of the audio is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from typeless_grpc.errors import InvalidInput

_SLACK_BYTES, _SLACK_BYTES_SHARE = 1024, 0.01  # the smaller counts: writers that are off by a header or a padding byte
_SLACK_PACKETS_SHARE = 0.02
_SLACK_S, _SLACK_S_SHARE, _MAX_SLACK_S = 0.3, 0.02, 2.0

# Demuxers whose declared duration is a count of samples, not an estimate from the bit rate.
_EXACT_DURATIONS = frozenset({"flac", "aiff", "au", "caf", "nistsphere", "w64", "tta", "wv", "ape"})


@dataclass
class Yield:
    """The yield of a container: bytes of packets, of those that the decoder refused, and seconds of audio."""

    packet_bytes: int = 0
    lost_bytes: int = 0
    decoded_s: float = 0.0


def is_much(n_missing: int, n_bytes: int) -> bool:
    """Whether n_missing bytes are more than writers of inexact headers leave out."""
    return n_missing > min(_SLACK_BYTES, _SLACK_BYTES_SHARE * (n_bytes + n_missing))


def check(result: Yield, *, container: str, declared_s: float | None, field: str) -> None:
    """Raise InvalidInput if too little was decoded.

    container: the demuxer's name; declared_s: the duration in its header, None if unknown. Reasons: AUDIO_UNDECODABLE
    if everything was refused, AUDIO_EMPTY if nothing was there, AUDIO_TRUNCATED if some was.
    """
    content = f"{field}.content"
    if result.decoded_s == 0:
        if result.lost_bytes:
            raise InvalidInput(content, "no part of it can be decoded", reason="AUDIO_UNDECODABLE")
        if declared_s is not None and declared_s > 0:
            why = f"it declares {declared_s:.1f} s of audio and holds none"
            raise InvalidInput(content, why, reason="AUDIO_TRUNCATED")
        raise InvalidInput(content, "it holds no audio", reason="AUDIO_EMPTY")
    if result.lost_bytes > _SLACK_PACKETS_SHARE * result.packet_bytes:
        why = f"{result.lost_bytes} of its {result.packet_bytes} bytes of audio are damaged"
        raise InvalidInput(content, why, reason="AUDIO_TRUNCATED")
    if container in _EXACT_DURATIONS and declared_s is not None:
        slack_s = min(max(_SLACK_S, _SLACK_S_SHARE * declared_s), _MAX_SLACK_S)
        if declared_s - result.decoded_s > slack_s:
            why = f"it declares {declared_s:.1f} s of audio and holds {result.decoded_s:.1f}"
            raise InvalidInput(content, why, reason="AUDIO_TRUNCATED")
