"""Streams that survive their connection: two shells around `ledger.py`, one for asyncio and one for threads.

Each reads the caller's audio beside the call, sends what the ledger holds, and makes a new call when one breaks or its
server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
import grpc.aio

from typeless_grpc.client.attempts import wait_s
from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.ledger import Ledger
from typeless_grpc.client.options import Control, Item, StreamOptions
from typeless_grpc.client.retry import RetryPolicy, RetryState
from typeless_grpc.client.silence import CHECK_EVERY_S, ServerSilent, SilenceMonitor
from typeless_grpc.client.threads import from_thread
from typeless_grpc.pb.v1 import transcription_pb2_grpc
from typeless_grpc.pb.v1.transcription_pb2 import (
    STREAM_END_REASON_DRAINING,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)

T = TypeVar("T")

# A new stream is given up soon, so that its caller learns that the server refuses it.
OPENING = RetryPolicy(max_attempts=4, max_quota_attempts=1, first_delay_s=0.1, max_delay_s=2.0)
# A session is worth every attempt within the resume window. Each attempt is charged to the caller's quota.
RESUMING = replace(OPENING, max_attempts=None, max_quota_attempts=None, max_quota_s=math.inf)
NEVER = RetryPolicy(max_attempts=1, max_quota_attempts=1)

_MAX_WAITING = 4  # items that a thread has read and the stream has not


def policy_for(ledger: Ledger, *, reconnect: bool) -> RetryPolicy:
    """Return the policy for the next call of a stream."""
    if not reconnect:
        return NEVER
    return replace(RESUMING if ledger.is_begun else OPENING, max_total_s=ledger.resume_window_s)


class AsyncStreaming:
    """One stream on an event loop."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[transcription_pb2_grpc.TranscriptionServiceAsyncStub]],
        options: StreamOptions,
    ) -> None:
        """connect: returns the stub of the service."""
        self._connect = connect
        self._reconnect = options.reconnect
        self._ledger = Ledger(options)
        self._retry = RetryState()
        self._silence = SilenceMonitor(options)
        self._changed = asyncio.Event()

    async def events(
        self, audio: AsyncIterable[Item] | Iterable[Item]
    ) -> AsyncGenerator[StreamTranscribeResponse, None]:
        """See `AsyncClient.stream`."""
        stub = await self._connect()
        reading = asyncio.create_task(self._read(audio))
        try:
            while not self._ledger.is_complete:
                try:
                    async with contextlib.aclosing(self._one_call(stub, reading)) as responses:
                        async for response in responses:
                            yield response
                except (grpc.aio.AioRpcError, ServerSilent) as error:
                    self._ledger.failed(CallFailed.of(error).reason)
                    policy = policy_for(self._ledger, reconnect=self._reconnect)
                    await asyncio.sleep(wait_s(self._retry, error, policy))
            _raise_if_incomplete(self._ledger)
        finally:
            await _cancelled(reading)

    async def _read(self, audio: AsyncIterable[Item] | Iterable[Item]) -> None:
        """Move the caller's items into the ledger, no faster than the server acknowledges them."""
        async for item in _as_async(audio):
            while not self._ledger.has_room:
                await self._change()
            self._ledger.add(item)
            self._notify()
            if self._ledger.has_ended:
                return
        self._ledger.add(Control.END)
        self._notify()

    async def _one_call(
        self, stub: transcription_pb2_grpc.TranscriptionServiceAsyncStub, reading: asyncio.Task[None]
    ) -> AsyncGenerator[StreamTranscribeResponse, None]:
        call = stub.StreamTranscribe(metadata=self._ledger.metadata)
        sending: asyncio.Task[None] | None = None
        try:
            opening = self._ledger.opening()
            self._silence.reads()
            self._silence.sent(opening)
            await self._unless_failed(reading, call.write(opening))
            while True:
                response = await self._unless_failed(reading, call.read())
                if not isinstance(response, StreamTranscribeResponse):
                    return
                self._silence.received()
                self._retry.progressed()
                is_wanted = self._ledger.take(response)
                self._notify()
                if sending is None:
                    # Only now is the position known. And grpc.aio loses the status of a refusal that meets a write.
                    sending = asyncio.create_task(self._send(call))
                if is_wanted:
                    yield response
                if _is_last(response):
                    return
                self._silence.reads()
        finally:
            call.cancel()
            if sending is not None:
                await _cancelled(sending)
            self._silence.received()

    async def _send(self, call: Any) -> None:
        """Send the requests of the ledger until it has ended. The reader of the events sees a broken connection."""
        position = self._ledger.first()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                found = self._ledger.at(position)
                if found is None:
                    if self._ledger.has_ended:
                        await call.done_writing()
                        return
                    await self._change()
                    continue
                request, position = found
                self._silence.sent(request)
                await call.write(request)

    async def _unless_failed(self, reading: asyncio.Task[None], step: Coroutine[Any, Any, T]) -> T:
        """Await a step. Raises the exception of the caller's audio as soon as there is one, and ServerSilent."""
        doing = asyncio.ensure_future(step)
        try:
            while not doing.done():
                if reading.done() and not reading.cancelled() and (error := reading.exception()) is not None:
                    raise error
                waited_for = [doing] if reading.done() else [doing, reading]
                await asyncio.wait(waited_for, timeout=CHECK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if not doing.done():
                    self._check_silence()
            return doing.result()
        finally:
            doing.cancel()

    def _check_silence(self) -> None:
        if self._silence.is_lost:
            raise ServerSilent
        if self._silence.take_probe():
            self._ledger.probe()
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


class Streaming:
    """One stream in threads."""

    def __init__(self, stub: transcription_pb2_grpc.TranscriptionServiceStub, options: StreamOptions) -> None:
        self._stub = stub
        self._reconnect = options.reconnect
        self._ledger = Ledger(options)
        self._retry = RetryState()
        self._silence = SilenceMonitor(options)
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._source_failure: BaseException | None = None
        self._call: Any = None

    def events(self, audio: Iterable[Item]) -> Iterator[StreamTranscribeResponse]:
        """See `Client.stream`."""
        threading.Thread(target=self._read, args=(audio,), name="typeless audio", daemon=True).start()
        threading.Thread(target=self._watch, name="typeless watch", daemon=True).start()
        try:
            while not self._ledger.is_complete:
                try:
                    yield from self._one_call()
                except grpc.RpcError as error:
                    self._raise_if_source_failed()
                    self._ledger.failed(CallFailed.of(error).reason)
                    policy = policy_for(self._ledger, reconnect=self._reconnect)
                    time.sleep(wait_s(self._retry, error, policy))
            _raise_if_incomplete(self._ledger)
        finally:
            with self._changed:
                self._closed.set()
                self._changed.notify_all()

    def _read(self, audio: Iterable[Item]) -> None:
        try:
            for item in audio:
                with self._changed:
                    self._changed.wait_for(lambda: self._ledger.has_room or self._closed.is_set())
                    if self._closed.is_set():
                        return
                    self._ledger.add(item)
                    self._changed.notify_all()
                    if self._ledger.has_ended:
                        return
            with self._changed:
                self._ledger.add(Control.END)
                self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._source_failure = error
                self._changed.notify_all()
                if self._call is not None:
                    self._call.cancel()

    def _watch(self) -> None:
        """Cancel the call whose server is lost."""
        while not self._closed.wait(CHECK_EVERY_S):
            with self._changed:
                if self._silence.is_lost and self._call is not None:
                    self._call.cancel()
                elif self._silence.take_probe():
                    self._ledger.probe()
                    self._changed.notify_all()

    def _one_call(self) -> Iterator[StreamTranscribeResponse]:
        state = _CallState()
        call = self._call = self._stub.StreamTranscribe(self._requests(state), metadata=self._ledger.metadata)
        try:
            self._raise_if_source_failed()
            with self._changed:
                self._silence.reads()
            for response in call:
                self._retry.progressed()
                with self._changed:
                    self._silence.received()
                    is_wanted = self._ledger.take(response)
                    state.may_send = True
                    self._changed.notify_all()
                if is_wanted:
                    yield response
                if _is_last(response):
                    return
                with self._changed:
                    self._silence.reads()
            self._raise_if_source_failed()
        except grpc.RpcError:
            if self._silence.is_lost:
                raise ServerSilent from None
            raise
        finally:
            call.cancel()
            with self._changed:
                state.is_over = True
                self._silence.received()
                self._changed.notify_all()

    def _requests(self, state: _CallState) -> Iterator[StreamTranscribeRequest]:
        """Yield the requests of one call: its opening and then, once it may send them, those of the ledger."""
        opening = self._ledger.opening()
        with self._changed:
            self._silence.sent(opening)
        yield opening
        position: int | None = None
        while True:
            with self._changed:
                self._changed.wait_for(functools.partial(self._can_continue, state, position))
                if self._is_over(state):
                    return
                position = self._ledger.first() if position is None else position
                found = self._ledger.at(position)
                if found is None:
                    if self._ledger.has_ended:
                        return
                    continue
                request, position = found
                self._silence.sent(request)
            yield request

    def _can_continue(self, state: _CallState, position: int | None) -> bool:
        if self._is_over(state):
            return True
        at = self._ledger.first() if position is None else position
        return state.may_send and (self._ledger.has_ended or self._ledger.at(at) is not None)

    def _is_over(self, state: _CallState) -> bool:
        return state.is_over or self._closed.is_set() or self._source_failure is not None

    def _raise_if_source_failed(self) -> None:
        if self._source_failure is not None:
            raise self._source_failure


@dataclass
class _CallState:
    """One call of a stream in threads. may_send: the server has accepted it, and reported from where to send."""

    may_send: bool = False
    is_over: bool = False


def _is_last(response: StreamTranscribeResponse) -> bool:
    """Whether the server discards what it still reads."""
    return response.completed.end_reason == STREAM_END_REASON_DRAINING


def _raise_if_incomplete(ledger: Ledger) -> None:
    if ledger.failure:
        raise CallFailed(grpc.StatusCode.UNAVAILABLE, ledger.failure, reason="DRAINING", retry_after_s=1.0)


async def _as_async(audio: AsyncIterable[Item] | Iterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(audio, AsyncIterable):
        async for item in audio:
            yield item
    elif isinstance(audio, list | tuple):
        for item in audio:
            yield item
            await asyncio.sleep(0)
    else:
        async with contextlib.aclosing(from_thread(_generated(audio), max_waiting=_MAX_WAITING)) as items:
            async for item in items:
                yield item


def _generated(audio: Iterable[Item]) -> Generator[Item, None, None]:
    yield from audio


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
