"""Streams whose container is decoded in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from typeless_grpc.audio.containers import DecodeCancelled
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.live_container import of_the_stream
from typeless_grpc.audio.sandbox import messages
from typeless_grpc.audio.sandbox.failures import Failure, failure_of, stalled
from typeless_grpc.audio.sandbox.messages import Kind, ProtocolViolation, Request
from typeless_grpc.audio.sandbox.processes import DecoderProcess, DecoderProcesses
from typeless_grpc.errors import InvalidInput

log = logging.getLogger(__name__)

_STEP_S = 1.0


class SandboxedLiveReader:
    """A `LiveReader` of a container; belongs to the event loop that feeds it.

    The process computes only between a message of the server and its answer that it needs more. So nothing runs ahead,
    and neither side waits for room in the socket while the other does.
    """

    def __init__(self, processes: DecoderProcesses, format: AudioFormat, *, field: str, is_live: bool) -> None:
        self._processes, self._format, self._field, self._is_live = processes, format, field, is_live
        self._process: DecoderProcess | None = None
        self._n_bytes = self._n_samples = 0
        self._is_closed = self._is_busy = self._has_ended = False
        self.declared_s: float | None = None

    async def feed(self, data: bytes) -> AsyncIterator[Audio]:
        """See `LiveReader`. Bytes after the end of the container are ignored.

        Raises InvalidInput (also DECODER_FAILED) and Overloaded (DECODER_UNAVAILABLE).
        """
        for start in range(0, len(data), messages.DATA_BYTES):
            part = messages.message(Kind.DATA, data[start : start + messages.DATA_BYTES])
            self._n_bytes += len(part)
            async for block in self._answers(part):
                yield block

    async def finish(self) -> AsyncIterator[Audio]:
        """See `LiveReader`."""
        if self._process is not None:  # else not a byte came: silence, and no error
            async for block in self._answers(messages.message(Kind.FINISH)):
                yield block

    def close(self) -> None:
        """See `LiveReader`."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._process is not None:
            self._process.end()
            if not self._is_busy:  # else the loop still watches the connection, which ends now
                self._process.close()

    async def _answers(self, message: bytes) -> AsyncGenerator[Audio, None]:
        """Send a message, and return the audio up to the decoder's need of more."""
        try:
            if self._process is None and not self._is_closed:
                self._process = self._begun()
                await self._step(self._process)  # until it needs the first bytes
            if self._process is None or self._has_ended:
                return
            self._send(self._process, message)
            while (block := await self._step(self._process)) is not None:
                yield block
        except InvalidInput as error:
            self._has_ended = True
            raise of_the_stream(error, self._field) from error

    def _begun(self) -> DecoderProcess:
        request = Request(
            sample_rate_hz=self._format.sample_rate_hz,
            n_channels=self._format.n_channels,
            memory_bytes=self._processes.options.memory_bytes,
            cpu_s=self._processes.options.cpu_s,
            is_live=self._is_live,
        )
        process = self._processes.take()
        process.connection.setblocking(False)
        self._send(process, messages.request_message(Kind.STREAM, request))
        return process

    def _send(self, process: DecoderProcess, message: bytes) -> None:
        """Send a message that the decoder waits for, so that the socket has room for it."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the next read tells how
            process.connection.send(message)

    async def _step(self, process: DecoderProcess) -> Audio | None:
        """Return the next block, None once the decoder needs more or has come to the end."""
        try:
            while True:
                kind, payload = messages.parsed(await self._received(process))
                messages.raise_error(kind, payload, self._field)
                match kind:
                    case Kind.BLOCK:
                        return self._block(process, payload)
                    case Kind.OPENED:
                        self.declared_s = messages.declared_s_of(payload)
                    case Kind.NEED:
                        return None
                    case Kind.END:
                        self._has_ended = True
                        return None
                    case _:
                        raise ProtocolViolation(f"{kind} in place of audio")
        except ProtocolViolation as error:
            process.end()
            log.warning("a decoder process sent %s", error)
            raise process.failed(Failure.VIOLATED_PROTOCOL, self._field) from error

    def _block(self, process: DecoderProcess, payload: bytes) -> Audio:
        block, _ = messages.block_of(payload, n_channels=0)
        self._n_samples += len(block)
        process.allow_cpu(self._n_bytes, self._n_samples / SAMPLE_RATE_HZ)
        return block

    async def _received(self, process: DecoderProcess) -> bytes:
        """Return the next message. Raises what is wrong if there is none, and DecodeCancelled after `close`."""
        self._is_busy = True
        try:
            data = await self._waited(process)
        finally:
            self._is_busy = False
            if self._is_closed:
                process.close()
        if self._is_closed:
            raise DecodeCancelled
        if data:
            return data
        if data is None:
            process.end()
        ended = await asyncio.to_thread(process.ended)
        failure = failure_of(ended) if data is not None else stalled(ended, self._processes.options.stall_s)
        raise process.failed(failure, self._field)

    async def _waited(self, process: DecoderProcess) -> bytes | None:
        """Return the next message; empty if the process has ended, None if it makes no progress."""
        loop, step_s = asyncio.get_running_loop(), min(_STEP_S, self._processes.options.stall_s)
        for _ in range(math.ceil(self._processes.options.stall_s / step_s)):  # not measured: see `recordings.py`
            try:
                async with asyncio.timeout(step_s):
                    return await loop.sock_recv(process.connection, messages.MAX_BYTES)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return b""
        return None
