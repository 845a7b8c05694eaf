"""Computes how many bytes a recording should have, from its own chunks, boxes and pages."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from typeless_grpc.audio.wav import is_open_ended

_MAX_ELEMENTS = 100_000  # chunks, boxes or pages read; bounds files that are made of headers
_MAX_EBML_HEADER_BYTES = 4096  # some 40 in practice
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_OGG_HEADER_PAGES = 4  # page numbers may jump after them in a recording of a broadcast
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 1  # a flag: sizes and durations were not known when the header was written
_W64_HEADER = b"riff\x2e\x91\xcf\x11"


def missing_bytes(file: BinaryIO, *, n_bytes: int) -> int:
    """Return how many bytes are missing at the end, by the file's own structure; 0 if it does not say.

    file: seekable, n_bytes long; left at its start.
    """
    file.seek(0)
    head = file.read(12)
    declared_end = 0
    try:
        if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
            declared_end = _riff_end(file, head)
        elif head[:4] == b"\x1aE\xdf\xa3":
            declared_end = _matroska_end(file)
        elif head[:4] == b"OggS":
            declared_end = _ogg_end(file, n_bytes)
        elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            declared_end = _aiff_end(head)
        elif head[:4] == b"caff":
            declared_end = _caf_end(file, n_bytes)
        elif head[:8] == _W64_HEADER:
            declared_end = _w64_end(file)
        elif head == _ASF_HEADER[:12]:
            declared_end = _asf_end(file)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            declared_end = _mp4_end(file, n_bytes)
        elif head[:3] == b"ID3" or head[:1] == b"\xff":
            declared_end = _mp3_end(file, head)
    except (struct.error, IndexError, ValueError):
        pass  # The structure itself is damaged, which its decoder reports.
    file.seek(0)
    return max(0, declared_end - n_bytes)


def _riff_end(file: BinaryIO, head: bytes) -> int:
    """Return where the samples of a WAV end, or the whole of another RIFF file."""
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
                return 0 if is_open_ended(size) else int(start + size)
            file.seek(start + size + size % 2)
    return 0 if is_open_ended(riff_size) else 8 + int(riff_size)


def _matroska_end(file: BinaryIO) -> int:
    """Return where the segment ends, which holds everything (RFC 8794: identifier and size are of variable length)."""
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
    """Return where the last page ends (RFC 3533, section 6)."""
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
    """Return where the last box ends (ISO 14496-12, section 4.2)."""
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
    """Return where the audio ends, by the byte count in the first frame's Xing or Info header, if it has one."""
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


def ogg_holes_bytes(file: BinaryIO, *, n_bytes: int) -> int:
    """Return how many bytes of an Ogg file are outside its pages, or missing by the page numbers (RFC 3533, section 6).

    Decoders continue after a hole as if it were not there.
    """
    n_lost, at = 0, 0
    n_pages, n_missing_pages = 0, 0
    seen: dict[bytes, tuple[int, int]] = {}  # of each stream: how many pages, and the number of the last one
    for _ in range(_MAX_ELEMENTS):
        file.seek(at)
        header = file.read(27)
        if len(header) < 27:
            break
        if header[:5] != b"OggS\x00":
            following = _next_page(file, at + 1)
            n_lost += following - at
            at = following
            continue
        serial, number = header[14:18], int.from_bytes(header[18:22], "little")
        n_before, last = seen.get(serial, (0, 0))
        if n_before > _OGG_HEADER_PAGES:
            n_missing_pages += max(0, number - last - 1)
        seen[serial] = (n_before + 1, number)
        n_pages += 1
        at += 27 + header[26] + sum(file.read(header[26]))
    return min(n_bytes, n_lost + n_missing_pages * (n_bytes // max(1, n_pages)))


def _next_page(file: BinaryIO, start: int) -> int:
    """Return where the next page begins, or the file ends."""
    file.seek(start)
    at, tail = start, b""
    while block := file.read(1 << 16):
        found = (tail + block).find(b"OggS\x00")
        if found >= 0:
            return at - len(tail) + found
        at += len(block)
        tail = (tail + block)[-4:]
    return at


def _aiff_end(head: bytes) -> int:
    (size,) = struct.unpack(">I", head[4:8])
    return 0 if is_open_ended(size) else 8 + int(size)


def _caf_end(file: BinaryIO, n_bytes: int) -> int:
    """Return where the last chunk ends (Apple Core Audio Format 1.0); that of the samples may be open-ended."""
    end = 8
    for _ in range(_MAX_ELEMENTS):
        if end >= n_bytes:
            break
        file.seek(end)
        header = file.read(12)
        if len(header) < 12 or not header[:4].isalnum():
            break
        (size,) = struct.unpack(">q", header[4:12])
        if size < 0:
            return 0
        end += 12 + size
    return end


def _w64_end(file: BinaryIO) -> int:
    """Return the size that a Sony Wave64 file declares, after a GUID of 16 bytes."""
    file.seek(16)
    (size,) = struct.unpack("<Q", file.read(8))
    return 0 if size >= 1 << 62 else int(size)


def _asf_end(file: BinaryIO) -> int:
    """Return the size in the file properties (Advanced Systems Format, section 3.2), unless it is a broadcast."""
    file.seek(0)
    header = file.read(1 << 16)
    at = header.find(_ASF_FILE_PROPERTIES)
    if at < 0:
        return 0
    size, flags = struct.unpack("<Q", header[at + 40 : at + 48])[0], struct.unpack("<I", header[at + 88 : at + 92])[0]
    return 0 if flags & _ASF_BROADCAST or size >= 1 << 62 else int(size)
