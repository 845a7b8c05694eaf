"""A recording to upload: a file with a size and a SHA-256, which any call may read from any offset."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import grpc

from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.requests import AudioLike, display_name, is_uri
from typeless_grpc.pb.v1 import uploads_pb2

INLINE_BYTES = 4 * 1024 * 1024
"""Larger recordings are uploaded in chunks, so that a broken connection costs little."""

CHUNK_BYTES = 1024 * 1024

MAX_PIPED_BYTES = 2 * 1024**3
"""Of a recording that can be read only once, if the server does not report its limit: the server's default."""

# Reports the bytes sent so far, and in all.
Progress = Callable[[int, int], None]


def is_large(audio: AudioLike | BinaryIO) -> bool:
    """Whether to upload audio before submitting it: it is large, or its size is unknown. Raises OSError."""
    if isinstance(audio, bytes):
        return len(audio) > INLINE_BYTES
    if not isinstance(audio, str | os.PathLike) or is_piped(audio):
        return True
    return not is_uri(audio) and os.path.getsize(audio) > INLINE_BYTES


def is_piped(audio: AudioLike | BinaryIO) -> bool:
    """Whether audio can be read only once: an open file, a pipe, a device. Raises OSError for a missing file."""
    if isinstance(audio, bytes) or is_uri(audio):
        return False
    if isinstance(audio, str | os.PathLike):
        mode = os.stat(audio).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return True


class Recording:
    """The audio of an upload. A broken call may still read it, in a thread of gRPC's, while the next one does."""

    def __init__(self, audio: AudioLike | BinaryIO, max_bytes: int = MAX_PIPED_BYTES) -> None:
        """max_bytes: the limit for a pipe, which is first copied to a temporary file. Raises OSError, CallFailed."""
        self._file: BinaryIO
        self.filename = ""
        if isinstance(audio, bytes):
            self._file = io.BytesIO(audio)
        elif isinstance(audio, str | os.PathLike) and not is_piped(audio):
            self._file = Path(audio).open("rb")  # noqa: SIM115
            self.filename = display_name(Path(audio).name)
        else:
            self._file = _copied(audio, max_bytes)
        self.n_bytes = self._file.seek(0, io.SEEK_END)
        self._reading = threading.Lock()
        self._sha256 = b""
        # gRPC reports a failure to read as a broken connection, which would be retried.
        self.failure: Exception | None = None

    def requests(self, upload_id: str, offset: int, progress: Progress) -> Iterator[uploads_pb2.UploadAudioRequest]:
        """Yield the requests of one call, from an offset to the finish. `failure` keeps an exception while reading."""
        request = uploads_pb2.UploadAudioRequest
        yield request(header=uploads_pb2.UploadHeader(upload_id=upload_id, offset=offset))
        try:
            while chunk := self._chunk(offset):
                yield request(chunk=chunk)
                offset += len(chunk)
                progress(offset, self.n_bytes)
            yield request(finish=uploads_pb2.UploadFinish(sha256=self.sha256()))
        except Exception as error:
            self.failure = error
            raise

    def sha256(self) -> bytes:
        """Return the digest of the whole recording."""
        if not self._sha256:
            digest, n_read = hashlib.sha256(), 0
            while chunk := self._chunk(n_read):
                digest.update(chunk)
                n_read += len(chunk)
            self._sha256 = digest.digest()
        return self._sha256

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _chunk(self, offset: int) -> bytes:
        with self._reading:
            self._file.seek(offset)
            return self._file.read(CHUNK_BYTES)


def _copied(audio: str | os.PathLike[str] | BinaryIO, max_bytes: int) -> BinaryIO:
    """Copy a pipe to a file without a name, which disappears with the process that reads it."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Path(audio).open("rb")) if isinstance(audio, str | os.PathLike) else audio
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        stack.push(lambda kind, *_: copy.close() if kind else None)
        n_bytes = 0
        while chunk := _read(source):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                why = f"the recording has more than {max_bytes} bytes"
                raise CallFailed(grpc.StatusCode.INVALID_ARGUMENT, why, reason="UPLOAD_TOO_LARGE")
            try:
                copy.write(chunk)
                copy.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
        return cast("BinaryIO", copy)


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:  # it does not name the file
        raise OSError(error.errno, error.strerror, getattr(source, "name", "")) from error
