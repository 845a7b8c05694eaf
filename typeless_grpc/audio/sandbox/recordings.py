"""Recordings that are decoded in a process of their own."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import BinaryIO

from typeless_grpc.audio.containers import DecodeCancelled, SourceInfo, too_long
from typeless_grpc.audio.decode import DecodeLimits, channels_too_long, never
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.sandbox import messages
from typeless_grpc.audio.sandbox.failures import Failure, failure_of, stalled
from typeless_grpc.audio.sandbox.messages import Kind, ProtocolViolation, Request
from typeless_grpc.audio.sandbox.processes import DecoderProcesses
from typeless_grpc.errors import InvalidInput

log = logging.getLogger(__name__)

_STEP_S = 0.1  # how often a cancelled call is noticed while its decoder computes


class SandboxedReader:
    """A `Reader` whose container is decoded in a process of its own."""

    source: SourceInfo

    def __init__(
        self,
        processes: DecoderProcesses,
        data: bytes | BinaryIO,
        format: AudioFormat,
        limits: DecodeLimits,
        *,
        field: str = "audio",
        cancelled: Callable[[], bool] = never,
        separate_channels: bool = False,
        block_s: float = 1.0,
    ) -> None:
        """data: a file must be seekable.

        The rest, and the errors, are as for `AudioReader`. It and its methods also raise InvalidInput (DECODER_FAILED)
        and Overloaded (DECODER_UNAVAILABLE).
        """
        format = format.validated(field)
        self._limits, self._field, self._cancelled = limits, field, cancelled
        self._file = data if not isinstance(data, bytes) else io.BytesIO(data)
        self._n_bytes = self._file.seek(0, io.SEEK_END)
        self._stall_s = processes.options.stall_s
        self._position = 0
        self._is_closed = self._has_ended = False
        request = Request(
            sample_rate_hz=format.sample_rate_hz,
            n_channels=format.n_channels,
            memory_bytes=processes.options.memory_bytes,
            cpu_s=processes.options.allowed_cpu_s(self._n_bytes, 0.0),
            n_bytes=self._n_bytes,
            max_duration_s=limits.max_duration_s,
            max_channels=limits.max_channels,
            separate_channels=separate_channels,
            block_s=block_s,
        )
        self._process = processes.take()
        try:
            self._process.connection.settimeout(_STEP_S)
            self._request(request, data)
            with self._distrustful():
                kind, payload = self._next()
                if kind is not Kind.OPENED:
                    raise ProtocolViolation(f"{kind} in place of the format")
                self.source = messages.source_of(payload)
        except BaseException:
            self.close()
            raise

    @property
    def position(self) -> int:
        """See `Reader`."""
        return self._position

    def close(self) -> None:
        """See `Reader`."""
        if not self._is_closed:
            self._is_closed = True
            if not self._has_ended:
                self._process.end()
            self._process.close()

    def blocks(self) -> Iterator[Audio]:
        """See `Reader`."""
        n_samples, n_channels = 0, None
        with closing(self), self._distrustful():
            while True:
                kind, payload = self._next()
                if kind is Kind.END and n_channels is not None:
                    self._has_ended = True
                    return
                if kind is not Kind.BLOCK:
                    raise ProtocolViolation(f"{kind} in place of audio")
                block, position = messages.block_of(payload, n_channels=n_channels)
                n_channels = block.shape[0] if block.ndim > 1 else 0
                if n_channels > self._limits.max_channels:
                    raise ProtocolViolation(f"{n_channels} channels")
                n_samples += block.shape[-1]
                if n_samples > self._limits.max_duration_s * SAMPLE_RATE_HZ:
                    raise too_long(self._limits.max_duration_s, self._field)
                self._position = min(position, self._n_bytes)
                self._process.allow_cpu(self._n_bytes, n_samples / SAMPLE_RATE_HZ)
                yield block

    def channels_too_long(self) -> InvalidInput:
        """See `Reader`."""
        return channels_too_long(self._limits, self._field)

    def _request(self, request: Request, data: bytes | BinaryIO) -> None:
        message = messages.request_message(Kind.RECORDING, request)
        descriptor = _descriptor(data)
        try:
            descriptors = [] if descriptor is None else [descriptor]
            with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the next read tells how
                socket.send_fds(self._process.connection, [message], descriptors)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @contextmanager
    def _distrustful(self) -> Iterator[None]:
        """End a process that violates the protocol: its input may have taken it over."""
        try:
            yield
        except ProtocolViolation as error:
            self._process.end()
            log.warning("a decoder process sent %s", error)
            raise self._process.failed(Failure.VIOLATED_PROTOCOL, self._field) from error

    def _next(self) -> tuple[Kind, bytes]:
        """Return the next message that is not about the file.

        Raises the error that the decoder reports, or the one for its failure.
        """
        while True:
            kind, payload = messages.parsed(self._received())
            if kind is not Kind.READ:
                self._has_ended = kind in (Kind.INVALID, Kind.FAULT)
                messages.raise_error(kind, payload, self._field)
                return kind, payload
            self._send_part(payload)

    def _received(self) -> bytes:
        """Wait for a message. Raises DecodeCancelled, and the error for a process that ended or makes no progress."""
        n_steps = 0
        while not self._cancelled():
            try:
                data = self._process.connection.recv(messages.MAX_BYTES)
            except TimeoutError:
                # Counted, not measured: where all processes were frozen for a while, only one wait is over.
                n_steps += 1
                if n_steps * _STEP_S >= self._stall_s:
                    self._process.end()
                    failure = stalled(self._process.ended(), self._stall_s)
                    raise self._process.failed(failure, self._field) from None
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._process.failed(failure_of(self._process.ended()), self._field)
            return data
        raise DecodeCancelled

    def _send_part(self, payload: bytes) -> None:
        """Send the part of the file that the process requests."""
        if len(payload) != messages.READ.size:
            raise ProtocolViolation("a read without a place")
        position, n_bytes = messages.READ.unpack(payload)
        if position >= self._n_bytes or n_bytes > messages.DATA_BYTES:
            raise ProtocolViolation("a read beyond the end")
        self._file.seek(position)
        data = self._file.read(n_bytes)
        with suppress(OSError):  # it has ended: the next read tells how
            self._process.connection.send(messages.message(Kind.DATA, data))


def _descriptor(data: bytes | BinaryIO) -> int | None:
    """Return a descriptor that reads these bytes and can do nothing else; None if there can be none."""
    if isinstance(data, bytes):
        return _sealed(data)
    try:
        own = data.fileno()
    except (AttributeError, OSError):
        return None
    if not stat.S_ISREG(os.fstat(own).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{own}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # without /proc
        return None


def _sealed(data: bytes) -> int:
    """Return a file in memory that nobody can change."""
    descriptor = os.memfd_create("recording", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
