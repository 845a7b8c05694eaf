"""Whether a recording is all there.

Decoders are lenient: half a file often decodes to half the audio, or to nothing, without an error. But nearly every
container says in its header how much there should be. So three things are held against it:

- bytes: a RIFF, Matroska, MP4 or Ogg structure, or a Xing header, that reaches beyond the end of the file;
- packets: the share of them that their decoder refused;
- seconds: fewer than the header declares, for formats whose header counts samples.

A header that promises less than there is breaks no promise, and one written before the length was known (0, all ones)
promises nothing. Small losses are let pass: what decodes is honest, and nearly everything.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from typeless_grpc.errors import InvalidInput

_SLACK_BYTES, _SLACK_BYTES_SHARE = 1024, 0.01  # the smaller counts: writers that are off by a header or a padding byte
_SLACK_PACKETS_SHARE = 0.02
_SLACK_S, _SLACK_S_SHARE, _MAX_SLACK_S = 0.3, 0.02, 2.0
_MAX_ELEMENTS = 100_000  # chunks or boxes looked at, against files made of headers
_MAX_EBML_HEADER_BYTES = 4096  # some 40 in practice
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255

# Demuxers whose declared duration is a count of samples, and not a guess from the bit rate.
_EXACT_DURATIONS = frozenset({"flac", "aiff", "au", "caf", "nistsphere", "w64", "tta", "wv", "ape", "asf"})


@dataclass
class Yield:
    """What came out of a container: bytes of packets, of those that their decoder refused, and seconds of audio."""

    packet_bytes: int = 0
    lost_bytes: int = 0
    decoded_s: float = 0.0


def missing_bytes(file: BinaryIO, *, n_bytes: int) -> int:
    """How many bytes the file's own structure says should follow its end; 0 if it says nothing.

    file: seekable, n_bytes long; left at its start.
    """
    file.seek(0)
    head = file.read(12)
    promised = 0
    try:
        if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
            promised = _riff_end(file, head)
        elif head[:4] == b"\x1aE\xdf\xa3":
            promised = _matroska_end(file)
        elif head[:4] == b"OggS":
            promised = _ogg_end(file, n_bytes)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            promised = _mp4_end(file, n_bytes)
        elif head[:3] == b"ID3" or head[:1] == b"\xff":
            promised = _mp3_end(file, head)
    except (struct.error, IndexError, ValueError):
        pass  # The structure itself is cut or nonsense: its decoder will say so.
    file.seek(0)
    return max(0, promised - n_bytes)


def is_much(n_missing: int, n_bytes: int) -> bool:
    """Whether so many missing bytes are more than a careless writer's header."""
    return n_missing > min(_SLACK_BYTES, _SLACK_BYTES_SHARE * (n_bytes + n_missing))


def check(result: Yield, *, container: str, declared_s: float | None, field: str) -> None:
    """Raise InvalidInput if too little came out.

    container: the demuxer's name; declared_s: the duration in its header, None if unknown.
    Reasons: AUDIO_UNDECODABLE if everything was refused, AUDIO_EMPTY if nothing was there, AUDIO_TRUNCATED if some was.
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


def _riff_end(file: BinaryIO, head: bytes) -> int:
    """Where the samples of a WAV end, or the whole of another RIFF file."""
    order = ">" if head[:4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack(order + "I", head[4:8])
    long_size = None
    if head[8:12] == b"WAVE":
        for _ in range(_MAX_ELEMENTS):
            chunk = file.read(8)
            if len(chunk) < 8:
                break
            name, size = struct.unpack(order + "4sI", chunk)
            start = file.tell()
            if name == b"ds64":
                long_size = struct.unpack("<Q", file.read(16)[8:16])[0]
            elif name == b"data":
                if size == 0xFFFFFFFF and long_size:
                    return int(start + long_size)
                return 0 if _is_open_ended(size) else int(start + size)
            file.seek(start + size + size % 2)
    return 0 if _is_open_ended(riff_size) else 8 + int(riff_size)


def _is_open_ended(size: int) -> bool:
    """Sizes that writers to a pipe put where they cannot know it: 0, and those next to 2^31 and 2^32."""
    return size == 0 or 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends, which holds everything (RFC 8794: identifier and size are of variable length)."""
    file.seek(4)
    header_size = _ebml_size(file)
    if header_size is None or header_size > _MAX_EBML_HEADER_BYTES:
        return 0
    file.seek(header_size, io.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _ebml_size(file)
    return 0 if size is None else file.tell() + size


def _ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)[0]
    n_more = 8 - first.bit_length()
    if n_more > 7:
        return None
    rest = file.read(n_more)
    if len(rest) < n_more:
        return None
    n_bits = 7 * (n_more + 1)
    value = int.from_bytes(bytes([first]) + rest, "big") & (1 << n_bits) - 1
    return None if value == (1 << n_bits) - 1 else value  # all ones: unknown, as live recordings have it


def _ogg_end(file: BinaryIO, n_bytes: int) -> int:
    """Where the last page ends (RFC 3533, section 6)."""
    file.seek(max(0, n_bytes - _MAX_OGG_PAGE_BYTES))
    offset, tail = file.tell(), file.read(_MAX_OGG_PAGE_BYTES)
    start = tail.rfind(b"OggS\x00")
    if start < 0:
        return 0
    page = tail[start:]
    n_segments = page[26] if len(page) > 26 else 0
    table = page[27 : 27 + n_segments]
    if len(page) < 27 or len(table) < n_segments:
        return offset + start + _MAX_OGG_PAGE_BYTES
    return offset + start + 27 + n_segments + sum(table)


def _mp4_end(file: BinaryIO, n_bytes: int) -> int:
    """Where the last box ends (ISO 14496-12, section 4.2)."""
    end = 0
    for _ in range(_MAX_ELEMENTS):
        if end >= n_bytes:
            break
        file.seek(end)
        header = file.read(16)
        if len(header) < 8 or not header[4:8].isalnum():
            break
        (size,) = struct.unpack(">I", header[:4])
        if size == 1:
            (size,) = struct.unpack(">Q", header[8:16])
        if size < 8:  # 0: up to the end of the file
            break
        end += size
    return end


def _mp3_end(file: BinaryIO, head: bytes) -> int:
    """Where the audio ends, by the byte count in the first frame's Xing or Info header, if it has one."""
    start = 0
    if head[:3] == b"ID3":
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    file.seek(start)
    frame = file.read(64)
    for tag in (b"Xing", b"Info"):
        at = frame.find(tag)
        if at >= 0 and frame[at + 7] & 3 == 3:  # frame count and byte count are there
            return int(start + struct.unpack(">I", frame[at + 12 : at + 16])[0])
    return 0
