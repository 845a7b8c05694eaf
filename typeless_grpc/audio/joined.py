"""Files that follow one another in one recording, as `cat` leaves them.

FFmpeg reads on where a format is a stream of packets: MP3, FLAC, Ogg, Matroska, AVI, MPEG-TS. In the formats here it
stops where the first file says that it ends. So their structure is followed from element to element (boxes, tags,
chunks) up to the next file, of any format. `wav.py` does the same for WAV.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, cast

# Enough of the audio to recognize a container.
HEAD_BYTES = 12
_ELEMENT_BYTES = 32  # of its head: enough for all formats but TTA
_READ_BYTES = 4096
_MAX_ELEMENTS = 4_000_000  # 16 hours of FLV
_APE_HEADER_BYTES, _ID3V1_BYTES = 32, 128
_MAX_TTA_FRAMES = 1 << 18  # 70 hours

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_FILE = re.compile(
    rb"\x00\x00..ftyp|RIFF....WAVE|RF64....WAVE|FORM....AIF[FC]|caff\x00\x01|fLaC|OggS\x00|\x1aE\xdf\xa3|TTA1|\.snd|FLV\x01|wvpk|"
    + re.escape(_ASF_HEADER),
    re.DOTALL,
)
_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_FLV_TAGS = (8, 9, 15, 18)


def begins_file(head: bytes) -> bool:
    """Whether these bytes begin a file of a format that is recognized by its first bytes."""
    return _FILE.match(head) is not None


class FileStarts:
    """Finds where other files begin in the bytes of a recording."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._size: Callable[[bytearray, int, int], int | None] | None = None
        self._start = 0  # of the current file
        self._has_audio = False
        self._n_elements = 0
        self.is_over = False  # no further file can be found
        self.position = 0  # of the next byte to be fed: those before it are done, or need not be read

    @property
    def n_waiting(self) -> int:
        """Bytes at the end of those fed that may belong to the next file."""
        return 0 if self.is_over else len(self._waiting)

    def feed(self, data: bytes, position: int) -> list[int]:
        """Take bytes that begin at `self.position` or before it; return where files begin, but for the first."""
        starts: list[int] = []
        if self.is_over:
            return starts
        data = data[max(0, self.position - position) :]
        self._waiting += data
        self.position += len(data)
        begin, at = self.position - len(self._waiting), 0
        while len(self._waiting) >= at + _ELEMENT_BYTES and not self.is_over:
            place = begin + at
            if place == 0 or (self._has_audio and _FILE.match(self._waiting, at)):
                starts += [place] if place else []
                self._start, self._size, self._has_audio = place, _size_of(self._waiting, at), False
            size = self._size(self._waiting, at, place - self._start) if self._size is not None else 0
            if size is None:
                break
            self._n_elements += 1
            self.is_over = size <= 0 or self._n_elements > _MAX_ELEMENTS
            kind = bytes(self._waiting[at + 4 : at + 8])
            self._has_audio |= self._size is not _mp4_size or kind in (b"mdat", b"moof")
            at += size
        self.position = max(self.position, begin + at)
        del self._waiting[:at]
        return starts


def _size_of(data: bytearray, at: int) -> Callable[[bytearray, int, int], int | None] | None:
    """Return how to measure the elements of the file that begins there.

    What is returned takes bytes, a place in them, and its offset in the file. It returns the size of the element there,
    0 where that is unknown, None where more bytes are needed.
    """
    head = bytes(data[at : at + _ELEMENT_BYTES])
    if head[4:8] in _MP4_FIRST:
        return _mp4_size
    by_magic = {b"FLV\x01": _flv_size, b"FORM": _aiff_size, b"caff": _caf_size, b"TTA1": _tta_size, b".snd": _au_size}
    return _asf_size if head.startswith(_ASF_HEADER) else by_magic.get(head[:4])


def _mp4_size(data: bytearray, at: int, offset: int) -> int:
    size, kind = struct.unpack_from(">I4s", data, at)
    if size == 1:
        (size,) = struct.unpack_from(">Q", data, at + 8)
    return int(size) if size >= 8 and kind.isalnum() else 0


def _flv_size(data: bytearray, at: int, offset: int) -> int:
    if offset == 0:
        return int(struct.unpack_from(">I", data, at + 5)[0]) + 4
    return 15 + int.from_bytes(data[at + 1 : at + 4], "big") if data[at] & 0x1F in _FLV_TAGS else 0


def _aiff_size(data: bytearray, at: int, offset: int) -> int:
    (size,) = struct.unpack_from(">I", data, at + 4)
    return 0 if offset or not 0 < size < 0x7FFF0000 else 8 + int(size) + size % 2


def _caf_size(data: bytearray, at: int, offset: int) -> int:
    if offset == 0:
        return 8
    kind, size = struct.unpack_from(">4sq", data, at)
    return 12 + int(size) if size >= 0 and kind.isalnum() else 0


def _asf_size(data: bytearray, at: int, offset: int) -> int:
    (size,) = struct.unpack_from("<Q", data, at + 16)
    return int(size) if size >= 24 else 0


def _au_size(data: bytearray, at: int, offset: int) -> int:
    header, size = struct.unpack_from(">II", data, at + 4)
    return 0 if offset or header < 24 or not 0 < size < 0xFFFFFFFF else int(header + size)


def _tta_size(data: bytearray, at: int, offset: int) -> int | None:
    """Return the size of the next part of a TTA file: header, table of frame sizes and frames together, or a tag."""
    if data[at : at + 8] == b"APETAGEX":
        return _APE_HEADER_BYTES + int(struct.unpack_from("<I", data, at + 12)[0])
    if data[at : at + 3] == b"TAG":
        return _ID3V1_BYTES
    rate_hz, n_samples = struct.unpack_from("<II", data, at + 10)
    n_frame = 256 * rate_hz // 245
    n_frames = -(-n_samples // n_frame) if n_frame else 0
    if offset or not 0 < n_frames <= _MAX_TTA_FRAMES:
        return 0
    table = at + 22
    if len(data) < table + 4 * n_frames:
        return None
    return 22 + 4 * int(n_frames) + 4 + int(sum(struct.unpack_from(f"<{n_frames}I", data, table)))


def parts(file: BinaryIO) -> list[BinaryIO]:
    """Return the files in a seekable file; itself if it is one."""
    n_bytes = file.seek(0, io.SEEK_END)
    finder, starts = FileStarts(), [0]
    while not finder.is_over and finder.position < n_bytes:
        position = file.seek(finder.position)
        if not (data := file.read(_READ_BYTES)):
            break
        starts += finder.feed(data, position)
    file.seek(0)
    if len(starts) == 1:
        return [file]
    # A part has the methods of a file that ContainerReader and PyAV use.
    return [cast(BinaryIO, FilePart(file, *span)) for span in zip(starts, [*starts[1:], n_bytes], strict=True)]


class FilePart:
    """The bytes of a seekable file from start to end."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._n_bytes = file, start, end - start
        self._position = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, n_bytes: int = -1) -> bytes:
        n_left = max(0, self._n_bytes - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(n_left if n_bytes < 0 else min(n_bytes, n_left))
        self._position += len(data)
        return data
