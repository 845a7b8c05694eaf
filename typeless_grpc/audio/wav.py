"""WAV as it arrives: its header read by us, its lengths not believed.

A recorder that writes into a pipe puts anything for a length, one that crashes leaves an old one, and `cat` puts files
one after another. So samples go on until something tells that they do not: the header of another file, or a chunk of
metadata. FFmpeg believes lengths, or else takes what follows the samples for samples; and it looks at the first 64 kB
before it gives one, which is two seconds of speech.
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

# What cannot be samples: seven bytes at least that are right at one place; some of them are looked for first.
_FILE = re.compile(rb"(?:RIFF|RIFX|RF64|BW64)....WAVE|" + re.escape(_W64_RIFF), re.DOTALL)
_METADATA = re.compile(rb"LIST....(?:INFO|adtl)|(?:id3 |ID3 )....ID3[\x02-\x04]", re.DOTALL)
_MARKS = {b"WAVE": 8, b"INFO": 8, b"adtl": 8, b"ID3": 8, _W64_RIFF: 0}
_SIGNATURE_BYTES = 24  # the longest header of a chunk
# At the very place where the samples are said to end, less will do: a name, and a length that metadata may have.
_CHUNK_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_ ]{3}")
_MAX_METADATA_BYTES = 1 << 24
_ID3V1_BYTES = 128


class NotForUs(Exception):
    """No WAV file, or one of a kind that is left to FFmpeg."""


@dataclass(frozen=True)
class WavHeader:
    """A file begins. head: all bytes before its samples, with a length that FFmpeg takes to be open-ended.

    format: raw, with its rate and channels; None where only FFmpeg reads the samples. n_bytes: where the samples
    begin. n_declared: bytes of samples that the header promises; None if it does not know.
    """

    format: AudioFormat | None
    n_bytes: int
    head: bytes = b""
    n_declared: int | None = None


def wav_header(head: bytes) -> WavHeader | None:
    """The header at the beginning of head, None where more bytes are needed to tell. Raises NotForUs."""
    if head[:16] == _W64_RIFF[: len(head[:16])] and head[:1]:
        return _w64_header(head)
    return _riff_header(head)


def _riff_header(head: bytes) -> WavHeader | None:
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
    """Sizes that writers to a pipe put where they cannot know it: 0, and those next to 2^31 and 2^32."""
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
    """Takes the bytes of WAV files that follow one another, and gives their headers and samples, however it is cut."""

    def __init__(self) -> None:
        self.waiting = bytearray()  # not looked at, or not known what it is
        self._header: WavHeader | None = None
        self._is_between = True  # before a header
        self._is_denied = False  # it is none, though it begins like one
        self._n_samples = 0  # bytes of samples of this file so far
        self._n_end: int | None = None  # of them, by its own account
        self._n_skip = 0  # bytes of metadata that are still to come

    @property
    def n_missing(self) -> int:
        """Bytes of samples that the last file promises, and that have not come."""
        return max(0, self._n_end - self._n_samples) if self._n_end is not None else 0

    def feed(self, data: bytes) -> Iterator[WavHeader | bytes]:
        """What these bytes complete: a header where a file begins, then its samples.

        Raises NotForUs instead of the first header; all bytes are in `waiting` then.
        """
        self.waiting += data
        yield from self._parsed(is_end=False)

    def finish(self) -> Iterator[WavHeader | bytes]:
        """What is left once no byte follows."""
        yield from self._parsed(is_end=True)

    def _parsed(self, *, is_end: bool) -> Iterator[WavHeader | bytes]:
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
                    self._n_end = None  # that was not true
                if samples := self._taken(is_end=is_end):
                    yield samples

    def _next_header(self, *, is_end: bool) -> WavHeader | None:
        """None where more bytes are needed, or where it only looked like one, in the middle of samples."""
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
        """Samples up to their declared end or what cannot be some; none where it is something else that comes now."""
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
        """Where the next file or chunk of metadata begins, from start on."""
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
        """Whether what comes now is no sample, but another file, or a chunk, which is passed over.

        After an odd number of bytes there should be one more, which many writers leave out. may_be_any: the samples are
        said to end here.
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
    """How long the chunk that begins so is, without its padding; None if it is none."""
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
    """One file among those that follow one another, as a file that cannot seek; its lengths are open-ended."""

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
    """The WAV files in a file, one after the other; each is to be read to its end before the next."""

    def __init__(self, file: BinaryIO) -> None:
        """file: read from where it stands. Raises NotForUs, having read some of it, if it begins with no WAV file."""
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
                pass  # the decoder had enough

    @property
    def n_missing(self) -> int:
        """See `WavParser`; known once all parts were read."""
        return self._parser.n_missing

    def next_samples(self) -> bytes:
        """More samples of the part; empty at its end."""
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
