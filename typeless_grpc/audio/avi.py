"""Pauses in AVI files: empty chunks among those of the audio.

AVI has no timestamps. A writer that has no audio for a while writes an empty chunk, which stands for one unit
of the track's time base (in MP3, a frame). FFmpeg ignores it, so `ContainerReader` adds the silence.
"""

from __future__ import annotations

import struct
from collections import Counter, deque

_HEADER_BYTES = 12
_LISTS = (b"AVI ", b"AVIX", b"movi", b"rec ")  # those with chunks of the tracks in them


class AviChunks:
    """Finds the empty chunks of audio in the bytes of a file."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._empty: deque[tuple[int, bytes]] = deque()
        self._n_before: Counter[bytes] = Counter()
        self.position = 0  # of the next byte to feed; it skips the contents of chunks

    def feed(self, data: bytes, position: int) -> None:
        """Take bytes that begin at `self.position` or before it."""
        data = data[self.position - position :]
        self._waiting += data
        self.position += len(data)
        start, at = self.position - len(self._waiting), 0
        while len(self._waiting) >= at + _HEADER_BYTES:
            name, size, kind = struct.unpack_from("<4sI4s", self._waiting, at)
            if name in (b"RIFF", b"LIST") and kind in _LISTS:
                at += _HEADER_BYTES
                continue
            if name[2:] == b"wb" and size == 0:
                self._empty.append((start + at, name))
            at += 8 + size + size % 2
        self.position = max(self.position, start + at)
        del self._waiting[:at]

    def n_empty_before(self, position: int, track: int) -> int:
        """Count the empty chunks of a track, numbered from 0, before a position. Positions may not fall."""
        while self._empty and self._empty[0][0] < position:
            self._n_before[self._empty.popleft()[1]] += 1
        return self._n_before[b"%02dwb" % track]
