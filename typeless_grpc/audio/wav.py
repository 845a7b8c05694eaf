"""Parses WAV as it arrives, without trusting its lengths.

A recorder that writes to a pipe cannot know the length, one that crashes leaves an old one, and `cat` joins files. So
samples continue until the header of another file or a chunk of metadata follows. FFmpeg trusts lengths, or else reads
what follows as samples, and it reads 64 kB, two seconds of speech, before it returns any.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from typeless_grpc.audio.formats import MAX_RAW_CHANNELS, MAX_RAW_RATE_HZ, MIN_RAW_RATE_HZ, AudioFormat, Encoding

_MAX_HEADER_BYTES = 1 << 20  # before the samples: pictures, and what recorders leave room for
_READ_BYTES = 1 << 16
_EXTENSIBLE = 0xFFFE  # the format follows, in the first two bytes of a GUID
_ENCODINGS = {
    (1, 16): Encoding.PCM_S16LE,
    (3, 32): Encoding.PCM_F32LE,
    (7, 8): Encoding.MULAW,
    (6, 8): Encoding.ALAW,
}

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the GUIDs of Sony Wave64, after a name of four letters
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_WAVE = b"wave" + _W64_TAIL
_W64_OPEN_ENDED = 1 << 62  # FFmpeg reads until the file ends

# Signatures of at least seven bytes, which samples do not have by chance. The marks within them are searched first.
_FILE = re.compile(rb"(?:RIFF|RIFX|RF64|BW64)....WAVE|" + re.escape(_W64_RIFF), re.DOTALL)
_METADATA = re.compile(rb"LIST....(?:INFO|adtl)|(?:id3 |ID3 )....ID3[\x02-\x04]", re.DOTALL)
_MARKS = {b"WAVE": 8, b"INFO": 8, b"adtl": 8, b"ID3": 8, _W64_RIFF: 0}
_SIGNATURE_BYTES = 24  # the longest header of a chunk
# Where the header says that the samples end, a name and a plausible length are enough.
_CHUNK_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_ ]{3}")
_MAX_METADATA_BYTES = 1 << 24
_ID3V1_BYTES = 128


class NotForUs(Exception):
    """The bytes are not a WAV file, or one of a kind that FFmpeg must read."""


@dataclass(frozen=True)
class WavHeader:
    """The beginning of a file. head: all bytes before its samples, with a length that means open-ended to FFmpeg.

    format: raw, with its rate and channels; None if only FFmpeg reads the samples. n_bytes: where the samples begin.
    n_declared: bytes of samples by the header; None if it does not say.
    """

    format: AudioFormat | None
    n_bytes: int
    head: bytes = b""
    n_declared: int | None = None


def wav_header(head: bytes) -> WavHeader | None:
    """Return the header at the beginning of head, None if more bytes are needed. Raises NotForUs."""
    if head[:16] == _W64_RIFF[: len(head[:16])] and head[:1]:
        return _w64_header(head)
    return _riff_header(head)


def _riff_header(head: bytes) -> WavHeader | None:
    """Return the header of a RIFF, RIFX, RF64 or BW64 file, or None if more bytes are needed."""
    is_riff = any((name + head[4:8] + b"WAVE").startswith(head[:12]) for name in (b"RIFF", b"RIFX", b"RF64", b"BW64"))
    if not is_riff:
        raise NotForUs
    order = ">" if head[:4] == b"RIFX" else "<"
    format: AudioFormat | None = None
    has_format, long_size = False, None
    at = 12
    while len(head) >= at + 8:
        name, size = struct.unpack_from(order + "4sI", head, at)
        if name == b"data" and has_format:
            n_declared = long_size if size == 0xFFFFFFFF and long_size else None if is_open_ended(size) else size
            patched = head[: at + 4] + b"\xff\xff\xff\xff"
            return WavHeader(format, at + 8, patched, n_declared)
        if name == b"data" or at + size > _MAX_HEADER_BYTES:
            raise NotForUs
        body = head[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) == size:
            format, has_format = _format(body, order), True
        if name == b"ds64" and len(body) == size >= 16:
            (long_size,) = struct.unpack_from("<Q", body, 8)
        at += 8 + size + size % 2
    return None


def _w64_header(head: bytes) -> WavHeader | None:
    """Return the header of a Wave64 file, or None if more bytes are needed."""
    if len(head) < 40:
        return None
    if head[24:40] != _W64_WAVE:
        raise NotForUs
    at = 40
    while len(head) >= at + 24:
        name, size = head[at : at + 16], struct.unpack_from("<Q", head, at + 16)[0]
        if name == b"data" + _W64_TAIL:
            n_declared = size - 24 if 24 < size < _W64_OPEN_ENDED else None
            patched = head[: at + 16] + struct.pack("<Q", _W64_OPEN_ENDED)
            return WavHeader(None, at + 24, patched, n_declared)
        if not name.endswith(_W64_TAIL) or size < 24 or at + size > _MAX_HEADER_BYTES:
            raise NotForUs
        at += size + -size % 8
    return None


def is_open_ended(size: int) -> bool:
    """Whether a size stands for an unknown one: 0, or next to 2^31 or 2^32, as writers to a pipe have it."""
    return size == 0 or 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _format(body: bytes, order: str) -> AudioFormat | None:
    if len(body) < 16:
        raise NotForUs
    tag, n_channels, rate_hz, _, _, bits = struct.unpack_from(order + "HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        (tag,) = struct.unpack_from(order + "H", body, 24)
    is_usual = MIN_RAW_RATE_HZ <= rate_hz <= MAX_RAW_RATE_HZ and 1 <= n_channels <= MAX_RAW_CHANNELS
    if (tag, bits) not in _ENCODINGS or not is_usual or order == ">":
        return None
    return AudioFormat(_ENCODINGS[tag, bits], rate_hz, n_channels)


class WavParser:
    """Parses WAV files that follow one another into headers and samples, however the input is cut."""

    def __init__(self) -> None:
        self.waiting = bytearray()  # not parsed yet
        self._header: WavHeader | None = None
        self._is_between = True  # before a header
        self._is_denied = False  # it begins like a header, and is none
        self._n_samples = 0  # bytes of samples of this file so far
        self._n_end: int | None = None  # of them, by the header
        self._n_skip = 0  # bytes of metadata that are still to come

    @property
    def n_missing(self) -> int:
        """Bytes of samples that the last file declares and does not have."""
        return max(0, self._n_end - self._n_samples) if self._n_end is not None else 0

    def feed(self, data: bytes) -> Iterator[WavHeader | bytes]:
        """Yield the headers and samples that these bytes complete.

        Raises NotForUs instead of the first header; all bytes are then in `waiting`.
        """
        self.waiting += data
        yield from self._parsed(is_end=False)

    def finish(self) -> Iterator[WavHeader | bytes]:
        """Yield the rest, at the end of the input."""
        yield from self._parsed(is_end=True)

    def _parsed(self, *, is_end: bool) -> Iterator[WavHeader | bytes]:
        """Yield headers and samples of the bytes that wait. Several files may follow one another."""
        while self.waiting:
            if self._n_skip:
                n_skipped = min(self._n_skip, len(self.waiting))
                del self.waiting[:n_skipped]
                self._n_skip -= n_skipped
            elif self._is_between:
                header = self._next_header(is_end=is_end)
                if header is not None:
                    yield header
                elif self._is_between:
                    return
            elif len(self.waiting) < _SIGNATURE_BYTES and not is_end:
                return
            elif self._n_samples == self._n_end and len(self.waiting) == self._n_end % 2:
                self.waiting.clear()  # the padding at the end of the file
            elif not (self._n_samples == self._n_end and self._has_passed_chunk(may_be_any=True)):
                if self._n_samples == self._n_end:
                    self._n_end = None  # the header is wrong
                if samples := self._taken(is_end=is_end):
                    yield samples

    def _next_header(self, *, is_end: bool) -> WavHeader | None:
        """Return the next header; None if more bytes are needed, or if these are samples that resemble one."""
        try:
            header = wav_header(bytes(self.waiting))
            is_none = header is None and is_end
        except NotForUs:
            if self._header is None:
                raise
            header, is_none = None, True
        if is_none and self._header is not None:
            self._is_between, self._n_end = False, None
            self._is_denied = True
        if header is not None:
            self._header, self._is_between = header, False
            self._n_samples, self._n_end = 0, header.n_declared
            del self.waiting[: header.n_bytes]
        return header

    def _taken(self, *, is_end: bool) -> bytes:
        """Take samples, up to their declared end or the next signature; none if a file or a chunk begins here."""
        at = self._signature(0)
        if at == 0:
            if self._is_denied:
                at, self._is_denied = self._signature(1), False
            elif self._has_passed_chunk(may_be_any=False):
                return b""
            else:
                at = self._signature(1)
        n_taken = len(self.waiting) if is_end else max(1, len(self.waiting) - _SIGNATURE_BYTES + 1)
        n_taken = min(n_taken, at if at is not None else n_taken)
        if self._n_end is not None:
            n_taken = min(n_taken, self._n_end - self._n_samples)
        samples = bytes(self.waiting[:n_taken])
        del self.waiting[:n_taken]
        self._n_samples += n_taken
        return samples

    def _signature(self, start: int) -> int | None:
        """Return where the next file or chunk of metadata begins, at or after start."""
        found = []
        for mark, n_before in _MARKS.items():
            at = self.waiting.find(mark, start + n_before)
            while at >= 0:
                if _FILE.match(self.waiting, at - n_before) or _METADATA.match(self.waiting, at - n_before):
                    found.append(at - n_before)
                    break
                at = self.waiting.find(mark, at + 1)
        return min(found, default=None)

    def _has_passed_chunk(self, *, may_be_any: bool) -> bool:
        """Skip a chunk, or begin another file, if one follows; return whether one did.

        An odd number of bytes should have one byte of padding, which many writers omit. may_be_any: by the header, the
        samples end here.
        """
        for n_padding in (0, 1) if may_be_any else (0,):
            head = bytes(self.waiting[n_padding : n_padding + _SIGNATURE_BYTES])
            if _FILE.match(head):
                del self.waiting[:n_padding]
                self._is_between = self._header is not None
                return True
            if may_be_any and head[:4] == b"data" and len(head) >= 8:
                (size,) = struct.unpack_from("<I", head, 4)
                self._n_skip = n_padding + 8
                self._n_end = None if is_open_ended(size) else self._n_samples + size
                return True
            if may_be_any or _METADATA.match(head):
                n_bytes = _metadata_bytes(head)
                if n_bytes is not None:
                    self._n_skip = n_padding + n_bytes
                    self._n_end = self._n_samples  # what follows it may be another
                    return True
        return False


def _metadata_bytes(head: bytes) -> int | None:
    """Return the length of the chunk with this head, without its padding; None if it is not a chunk."""
    if head[:3] == b"TAG":
        return _ID3V1_BYTES
    if re.match(rb"ID3[\x02-\x04]", head) and len(head) >= 10 and max(head[6:10]) < 128:
        a, b, c, d = head[6:10]
        return 10 + (a << 21 | b << 14 | c << 7 | d)
    if head[4:16] == _W64_TAIL and len(head) >= 24:
        (size,) = struct.unpack_from("<Q", head, 16)
        return int(size + -size % 8) if 24 <= size <= _MAX_METADATA_BYTES else None
    if len(head) < 8 or not _CHUNK_NAME.match(head):
        return None
    (size,) = struct.unpack_from("<I", head, 4)
    return 8 + int(size) if size <= _MAX_METADATA_BYTES else None


class WavPart:
    """One of several WAV files, as a file object that cannot seek. Its header declares no length."""

    def __init__(self, header: WavHeader, parts: WavParts) -> None:
        self._data, self._parts = header.head, parts

    def read(self, n_bytes: int) -> bytes:
        while not self._data:
            data = self._parts.next_samples()
            if not data:
                return b""
            self._data = data
        data, self._data = self._data[:n_bytes], self._data[n_bytes:]
        return data

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("a part cannot seek")

    tell = seek


class WavParts:
    """The WAV files within a file. Read each to its end before the next."""

    def __init__(self, file: BinaryIO) -> None:
        """file: read from its position. Raises NotForUs, after reading some of it, if it is not WAV."""
        self._file = file
        self._parser = WavParser()
        self._items = self._all()
        first = next(self._items, None)
        if not isinstance(first, WavHeader):
            raise NotForUs
        self._next: WavHeader | None = first

    def __iter__(self) -> Iterator[WavPart]:
        while self._next is not None:
            header, self._next = self._next, None
            yield WavPart(header, self)
            while self.next_samples():
                pass  # the decoder stopped early

    @property
    def n_missing(self) -> int:
        """See `WavParser`. Known once all parts are read."""
        return self._parser.n_missing

    def next_samples(self) -> bytes:
        """Return more samples of the current part; empty at its end."""
        if self._next is not None:
            return b""
        item = next(self._items, b"")
        if isinstance(item, WavHeader):
            self._next = item
            return b""
        return item

    def _all(self) -> Iterator[WavHeader | bytes]:
        while data := self._file.read(_READ_BYTES):
            yield from self._parser.feed(data)
        yield from self._parser.finish()
