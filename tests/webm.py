"""WebM as a browser's MediaRecorder writes it: nothing in it says how long anything is, and no index follows."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av

_UNKNOWN = b"\x01" + b"\xff" * 7
_OPUS_RATE_HZ = 48_000.0


def recorded(path: Path, *, cluster_ms: int) -> Iterator[bytes]:
    """A file's Opus packets as a recorder would write them: the header, then bytes for each packet of 20 ms.

    cluster_ms: how long a cluster is; Chrome and Firefox differ in that.
    """
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        head = stream.codec_context.extradata
        assert head is not None
        yield _header(head, stream.codec_context.channels)
        cluster_at_ms = -cluster_ms
        for packet in file.demux(stream):
            if packet.pts is None:
                continue
            at_ms = max(0, packet.pts)
            start = b""
            if at_ms - cluster_at_ms >= cluster_ms:
                cluster_at_ms = at_ms
                start = bytes.fromhex("1F43B675") + _UNKNOWN + _element("E7", struct.pack(">Q", at_ms))
            block = b"\x81" + struct.pack(">hB", at_ms - cluster_at_ms, 0x80) + bytes(packet)
            yield start + _element("A3", block)


def _header(opus_head: bytes, n_channels: int) -> bytes:
    version = _element("4286", b"\1") + _element("42F7", b"\1") + _element("42F2", b"\4") + _element("42F3", b"\x08")
    kind = _element("4282", b"webm") + _element("4287", b"\4") + _element("4285", b"\2")
    info = _element("2AD7B1", struct.pack(">I", 1_000_000)) + _element("4D80", b"Chrome") + _element("5741", b"Chrome")
    sound = _element("B5", struct.pack(">d", _OPUS_RATE_HZ)) + _element("9F", bytes([n_channels]))
    track = _element("D7", b"\1") + _element("73C5", b"\x2a") + _element("83", b"\2") + _element("86", b"A_OPUS")
    track += _element("63A2", opus_head) + _element("E1", sound)
    segment = bytes.fromhex("18538067") + _UNKNOWN
    return _element("1A45DFA3", version + kind) + segment + _element("1549A966", info) + _tracks(track)


def _tracks(entry: bytes) -> bytes:
    return _element("1654AE6B", _element("AE", entry))


def _element(number: str, content: bytes) -> bytes:
    return bytes.fromhex(number) + struct.pack(">Q", len(content) | 1 << 56) + content
