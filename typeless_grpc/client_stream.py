"""Streams that survive their connection: what the caller gives goes in, one sequence of events comes out.

Two shells around `client_ledger.py`, one for asyncio and one for threads: each reads the caller's audio beside the
call, sends what the ledger holds, and begins a new call when one breaks or its server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio

from typeless_grpc.client import BREAKS, CallFailed
from typeless_grpc.client_ledger import Control, Item, Ledger, StreamOptions
from typeless_grpc.pb.v1 import transcription_pb2_grpc
from typeless_grpc.pb.v1.transcription_pb2 import (
    STREAM_END_REASON_DRAINING,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)

__all__ = ["AsyncStreaming", "Control", "Item", "StreamOptions", "Streaming"]

T = TypeVar("T")

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 2.0
_MAX_OPENINGS = 4  # tries to open a session, before there is any to lose

# What an open session is refused with where its caller has had its share for now.
_QUOTAS = {"RATE_LIMITED", "TOO_MANY_STREAMS"}


@dataclass
class _Patience:
    """How long to go on trying. `spent` is told of each failure and answers how long to wait, or raises it."""

    ledger: Ledger
    reconnect: bool
    _since_s: float = 0.0
    _n_failures: int = 0

    def restored(self) -> None:
        """An event came: the connection works."""
        self._n_failures = 0

    def spent(self, failed: CallFailed) -> float:
        """Seconds until the next try. Raises failed where there is none."""
        now_s = time.monotonic()
        self._n_failures += 1
        if self._n_failures == 1:
            self._since_s = now_s
        is_break = failed.code in BREAKS and failed.reason in ("", "DRAINING", "OVERLOADED")
        # An open session is worth waiting for a quota: coming back after breaks spends it, too.
        is_quota = self.ledger.is_begun and failed.reason in _QUOTAS and failed.retry_after_s is not None
        if not (self.reconnect and (is_break or is_quota)):
            raise failed
        wait_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (self._n_failures - 1))
        if is_quota:
            wait_s = max(wait_s, failed.retry_after_s or 0.0)
        if now_s + wait_s - self._since_s > self.ledger.resume_window_s:
            raise failed
        if not self.ledger.is_begun and self._n_failures >= _MAX_OPENINGS:
            raise failed
        return wait_s


class AsyncStreaming:
    """One stream on an event loop."""

    def __init__(self, stub: transcription_pb2_grpc.TranscriptionServiceAsyncStub, options: StreamOptions) -> None:
        self._stub = stub
        self._ledger = Ledger(options)
        self._patience = _Patience(self._ledger, options.reconnect)
        self._changed = asyncio.Event()

    async def events(
        self, audio: AsyncIterable[Item] | Iterable[Item]
    ) -> AsyncGenerator[StreamTranscribeResponse, None]:
        """See `AsyncClient.stream`."""
        reading = asyncio.create_task(self._read(audio))
        try:
            while not self._ledger.is_complete:
                try:
                    async with contextlib.aclosing(self._one_call(reading)) as responses:
                        async for response in responses:
                            yield response
                except grpc.aio.AioRpcError as error:
                    failed = CallFailed.of(error)
                    try:
                        wait_s = self._patience.spent(failed)
                    except CallFailed:
                        raise failed from error
                    await asyncio.sleep(wait_s)
            _raise_if_incomplete(self._ledger)
        finally:
            await _over(reading)

    async def _read(self, audio: AsyncIterable[Item] | Iterable[Item]) -> None:
        """Move the caller's items into the ledger, no faster than the server acknowledges them."""
        async for item in _as_async(audio):
            while not self._ledger.has_room:
                await self._change()
            self._ledger.add(item)
            self._tell()
            if self._ledger.has_ended:
                return
        self._ledger.add(Control.END)
        self._tell()

    async def _one_call(self, reading: asyncio.Task[None]) -> AsyncGenerator[StreamTranscribeResponse, None]:
        call = self._stub.StreamTranscribe()
        sending: asyncio.Task[None] | None = None
        try:
            await _unless_failed(reading, call.write(self._ledger.opening()))
            while True:
                response = await _unless_failed(reading, call.read())
                if not isinstance(response, StreamTranscribeResponse):
                    return
                self._patience.restored()
                is_wanted = self._ledger.take(response)
                self._tell()
                if sending is None:  # now it is known from where, and a refusal has met no write: grpc.aio loses those
                    sending = asyncio.create_task(self._send(call))
                if is_wanted:
                    yield response
                if _is_last(response):
                    return
        finally:
            call.cancel()
            if sending is not None:
                await _over(sending)

    async def _send(self, call: Any) -> None:
        """Send what the ledger holds and will hold; a break shows where the events are read."""
        place = self._ledger.first()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                found = self._ledger.at(place)
                if found is None:
                    if self._ledger.has_ended:
                        await call.done_writing()
                        return
                    await self._change()
                    continue
                request, place = found
                await call.write(request)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


class Streaming:
    """One stream in threads."""

    def __init__(self, stub: transcription_pb2_grpc.TranscriptionServiceStub, options: StreamOptions) -> None:
        self._stub = stub
        self._ledger = Ledger(options)
        self._patience = _Patience(self._ledger, options.reconnect)
        self._changed = threading.Condition()
        self._is_closed = False
        self._broken_source: BaseException | None = None
        self._call: Any = None

    def events(self, audio: Iterable[Item]) -> Iterator[StreamTranscribeResponse]:
        """See `Client.stream`."""
        threading.Thread(target=self._read, args=(audio,), name="typeless audio", daemon=True).start()
        try:
            while not self._ledger.is_complete:
                try:
                    yield from self._one_call()
                except grpc.RpcError as error:
                    self._raise_if_source_broke()
                    failed = CallFailed.of(error)
                    try:
                        wait_s = self._patience.spent(failed)
                    except CallFailed:
                        raise failed from error
                    time.sleep(wait_s)
            _raise_if_incomplete(self._ledger)
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()

    def _read(self, audio: Iterable[Item]) -> None:
        try:
            for item in audio:
                with self._changed:
                    self._changed.wait_for(lambda: self._ledger.has_room or self._is_closed)
                    if self._is_closed:
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
                self._broken_source = error
                self._changed.notify_all()
                if self._call is not None:
                    self._call.cancel()

    def _one_call(self) -> Iterator[StreamTranscribeResponse]:
        turn = _Turn()
        call = self._call = self._stub.StreamTranscribe(self._requests(turn))
        try:
            self._raise_if_source_broke()
            for response in call:
                self._patience.restored()
                with self._changed:
                    is_wanted = self._ledger.take(response)
                    turn.may_send = True
                    self._changed.notify_all()
                if is_wanted:
                    yield response
                if _is_last(response):
                    return
            self._raise_if_source_broke()
        finally:
            call.cancel()
            with self._changed:
                turn.is_over = True
                self._changed.notify_all()

    def _requests(self, turn: _Turn) -> Iterator[StreamTranscribeRequest]:
        """What one call sends: its opening, and once it may, what the ledger holds."""
        yield self._ledger.opening()
        place: int | None = None
        while True:
            with self._changed:
                self._changed.wait_for(functools.partial(self._can_go_on, turn, place))
                if turn.is_over or self._is_closed or self._broken_source is not None:
                    return
                place = self._ledger.first() if place is None else place
                found = self._ledger.at(place)
                if found is None:
                    if self._ledger.has_ended:
                        return
                    continue
                request, place = found
            yield request

    def _can_go_on(self, turn: _Turn, place: int | None) -> bool:
        if turn.is_over or self._is_closed or self._broken_source is not None:
            return True
        at = self._ledger.first() if place is None else place
        return turn.may_send and (self._ledger.has_ended or self._ledger.at(at) is not None)

    def _raise_if_source_broke(self) -> None:
        if self._broken_source is not None:
            raise self._broken_source


@dataclass
class _Turn:
    """One call of a stream in threads. may_send: the server has said that, and from where, it takes what is kept."""

    may_send: bool = field(default=False)
    is_over: bool = field(default=False)


def _is_last(response: StreamTranscribeResponse) -> bool:
    """Whether the server reads what is still sent only so that this event arrives."""
    return response.completed.end_reason == STREAM_END_REASON_DRAINING


def _raise_if_incomplete(ledger: Ledger) -> None:
    if ledger.failure:
        raise CallFailed(grpc.StatusCode.UNAVAILABLE, ledger.failure, reason="DRAINING", retry_after_s=1.0)


async def _as_async(audio: AsyncIterable[Item] | Iterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(audio, AsyncIterable):
        async for item in audio:
            yield item
    else:
        for item in audio:
            yield item
            await asyncio.sleep(0)


async def _over(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _unless_failed(reading: asyncio.Task[None], step: Coroutine[Any, Any, T]) -> T:
    """The step's result; or what the caller's own audio raised, as soon as it does."""
    doing = asyncio.ensure_future(step)
    try:
        while not doing.done():
            if reading.done() and not reading.cancelled() and (error := reading.exception()) is not None:
                raise error
            waited_for = [doing] if reading.done() else [doing, reading]
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        return doing.result()
    finally:
        doing.cancel()
