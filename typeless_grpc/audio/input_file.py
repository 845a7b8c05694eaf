"""A recording's bytes as FFmpeg reads them."""

from __future__ import annotations

import io
from typing import BinaryIO

from typeless_grpc.audio.avi import AviChunks

_AVI_READ_BYTES = 4096
_RECENT_BYTES = 1 << 16  # more than tags usually have, without a picture


class InputFile:
    """The methods of a file that PyAV uses. It has no name, and no read returns more bytes than requested."""

    def __init__(self, file: BinaryIO) -> None:
        """file: seekable, or a pipe. The bytes read from a pipe are kept until `settle`."""
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._history: bytearray | None = None if file.seekable() else bytearray()
        self._unread = bytearray()
        self._n_read = 0
        self._recent = b""  # the last bytes that were read
        self._avi_chunks: AviChunks | None = AviChunks() if file.seekable() else None

    def read(self, n_bytes: int) -> bytes:
        """Read up to n_bytes; nothing is left where it returns none."""
        if self._unread:
            data = bytes(self._unread[:n_bytes])
            del self._unread[:n_bytes]
        else:
            data = self._file.read(n_bytes)
        if len(data) > n_bytes:  # PyAV copies what it gets into a buffer of n_bytes, unchecked.
            raise ValueError(f"requested {n_bytes} bytes, got {len(data)}")
        if not self.seekable():
            self._note(data)
        return data

    def rewind(self) -> None:
        """Read from the start again. Not after `settle`."""
        if self._history is None:
            self.seek(0)
            return
        self._unread, self._history, self._n_read = self._history + self._unread, bytearray(), 0

    def settle(self) -> None:
        """Keep nothing from now on."""
        self._history = None

    def avi_chunks(self, position: int) -> AviChunks | None:
        """Return the chunks of the file up to a position, None if it is no AVI file."""
        if self._avi_chunks is not None and self.seekable():
            current = self.tell()  # FFmpeg has read ahead, and continues there
            while self._avi_chunks.position < position:
                start = self.seek(self._avi_chunks.position)
                if not (data := self._file.read(_AVI_READ_BYTES)):
                    break
                self._avi_chunks.feed(data, start)
            self.seek(current)
        return self._avi_chunks

    def ends_in_a_tag(self) -> bool:
        """Whether the last bytes, of a pipe those read so far, are metadata: an APE or an ID3v1 tag."""
        if self.seekable():
            self.seek(max(0, self.seek(0, io.SEEK_END) - _RECENT_BYTES))
            self._recent = self._file.read(_RECENT_BYTES)
        return b"APETAGEX" in self._recent or self._recent[-128:-125] == b"TAG"

    def _note(self, data: bytes) -> None:
        self._recent = (self._recent + data)[-_RECENT_BYTES:]
        if self._history is not None:
            self._history += data
        if self._n_read == 0:
            self._avi_chunks = AviChunks() if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None
        if self._avi_chunks is not None:
            self._avi_chunks.feed(data, self._n_read)
        self._n_read += len(data)
