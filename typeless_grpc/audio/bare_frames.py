"""Streams of frames without timestamps, such as MP3: how much audio is missing where they are damaged.

FFmpeg gives these frames times by counting those that it finds. Bytes between them that are no frame are part of a
packet, or are left out. From the bit rate of the intact frames follows how much time they took.
"""

from __future__ import annotations

import re

# How a frame begins in each of these formats: a mask of two bytes, and what is under it.
_SYNC_WORDS = {
    "mp3": (0xFFE0, 0xFFE0),
    "aac": (0xFFF0, 0xFFF0),
    "ac3": (0xFFFF, 0x0B77),
    "eac3": (0xFFFF, 0x0B77),
    "loas": (0xFFE0, 0x56E0),
}
CONTAINERS = frozenset(_SYNC_WORDS)
_MIN_MEASURED_S = 0.2  # before that, the bit rate is not known
_TAG = re.compile(rb"ID3[\x02-\x04]\x00.([\x00-\x7f]{4})", re.DOTALL)  # ID3v2, at the start of a file that was joined


class BareFrames:
    """Follows the packets of one stream."""

    def __init__(self, container: str) -> None:
        """container: FFmpeg's name, one of CONTAINERS."""
        self._mask, self._sync_word = _SYNC_WORDS[container]
        self._n_bytes, self._length_s = 0, 0.0  # of frames that are whole
        self._n_lost = 0  # bytes since the last of them
        self._end: int | None = None  # of the last packet, in the file
        self._tag_end = 0

    def skip(self, data: bytes, position: int | None) -> int:
        """Note a packet that cannot be decoded; return how many of its bytes are not of a tag.

        position: of its first byte in the file, None if unknown.
        """
        n_new = self._n_new(data, position)
        self._n_lost += n_new
        return n_new

    def lost_before_s(self, data: bytes, position: int | None, length_s: float) -> float:
        """Return the seconds that are lost before a frame of length_s, which is all that is decoded from a packet."""
        is_whole = len(data) > 1 and (data[0] << 8 | data[1]) & self._mask == self._sync_word
        end = self._end
        if is_whole and end is not None and position == end >= self._tag_end and not self._n_lost:
            self._end = end + len(data)
            self._n_bytes, self._length_s = self._n_bytes + len(data), self._length_s + length_s
            return 0.0
        if self._length_s < _MIN_MEASURED_S:
            self._n_new(data, position)
            lost_s, self._n_lost = 0.0, 0
        else:
            n_frame = round(length_s * self._n_bytes / self._length_s)
            n_new = self._n_new(data, position)
            self._n_lost += max(0, n_new - (len(data) if is_whole else n_frame))
            lost_s, self._n_lost = self._n_lost * self._length_s / self._n_bytes, 0
        if is_whole:
            self._n_bytes, self._length_s = self._n_bytes + len(data), self._length_s + length_s
        return lost_s

    def _n_new(self, data: bytes, position: int | None) -> int:
        """Return the bytes from the last packet's end to this one's, without those of tags."""
        begin = self._end if self._end is not None else position or 0
        end = (begin if position is None else max(begin, position)) + len(data)
        self._end = end
        n_new = end - max(begin, min(end, self._tag_end))
        tag = _TAG.search(data) if b"ID3" in data else None
        if tag is not None:
            a, b, c, d = tag[1]
            n_tag = 10 + (a << 21 | b << 14 | c << 7 | d)
            start = end - len(data) + tag.start()
            self._tag_end = start + n_tag
            n_new -= min(end, self._tag_end) - start
        return max(0, n_new)
