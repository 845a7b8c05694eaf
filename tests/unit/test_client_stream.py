from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from typeless_grpc.client import CallFailed
from typeless_grpc.client_ledger import Ledger, StreamOptions
from typeless_grpc.client_stream import _MAX_BACKOFF_S, _MAX_OPENINGS, AsyncStreaming, _Patience
from typeless_grpc.pb.v1.transcription_pb2 import (
    StreamCompleted,
    StreamProgress,
    StreamStarted,
    StreamTranscribeRequest,
    StreamTranscribeResponse,
)


def patience(*, is_open: bool = True, reconnect: bool = True, resume_window_s: float = 60.0) -> _Patience:
    ledger = Ledger(StreamOptions())
    ledger.session_id = "session" if is_open else ""
    ledger.resume_window_s = resume_window_s
    return _Patience(ledger, reconnect)


def failed(
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, reason: str = "", retry_after_s: float | None = None
) -> CallFailed:
    return CallFailed(code, "It failed.", reason=reason, retry_after_s=retry_after_s)


SPENT = failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", 6.0)


def test_breaks_are_waited_for_longer_each_time_until_an_event_comes():
    ours = patience()
    waits_s = [ours.spent(failed()) for _ in range(8)]
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] == _MAX_BACKOFF_S
    ours.restored()
    assert ours.spent(failed()) == waits_s[0]


def test_an_open_session_waits_for_its_callers_quota():
    assert patience().spent(SPENT) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        (patience(is_open=False), SPENT),
        (patience(resume_window_s=5.0), SPENT),
        (patience(reconnect=False), failed()),
        (patience(), failed(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")),
        (patience(), failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")),
    ],
    ids=["nothing to lose", "the session would be gone", "not wanted", "wrong for good", "no time to come again"],
)
def test_what_waiting_does_not_mend_is_raised(ours: _Patience, error: CallFailed):
    with pytest.raises(CallFailed) as caught:
        ours.spent(error)
    assert caught.value is error


def test_a_session_that_cannot_be_opened_is_given_up():
    ours = patience(is_open=False)
    for _ in range(_MAX_OPENINGS - 1):
        ours.spent(failed())
    with pytest.raises(CallFailed):
        ours.spent(failed())


class Eager:
    """A call whose server acknowledges each piece so fast that its event is read before the write has returned."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._n_events = self._n_read = 0

    async def write(self, request: StreamTranscribeRequest) -> None:
        match request.WhichOneof("request"):
            case "config":
                self._say(started=StreamStarted(session_id="session"))
            case "audio":
                self.heard.append(request.audio)
                self._say(progress=StreamProgress())
                await self._events.join()

    async def read(self) -> Any:
        if self._n_read:
            self._events.task_done()  # whoever reads on has done with what came before
        self._n_read += 1
        return await self._events.get()

    async def done_writing(self) -> None:
        self._say(completed=StreamCompleted())
        self._events.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        """Nothing to do."""

    def _say(self, **event: Any) -> None:
        self._n_events += 1
        n_bytes = sum(map(len, self.heard))
        self._events.put_nowait(StreamTranscribeResponse(sequence=self._n_events, acknowledged_bytes=n_bytes, **event))


class Hesitant(Eager):
    """A call whose server says only when told to that it takes the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.may_start = asyncio.Event()

    async def write(self, request: StreamTranscribeRequest) -> None:
        self.is_asked.set()
        if request.WhichOneof("request") == "config":
            asyncio.get_running_loop().create_task(self._start(request))
        else:
            await super().write(request)

    async def _start(self, request: StreamTranscribeRequest) -> None:
        await self.may_start.wait()
        await super().write(request)


class EagerServer:
    def __init__(self, call: Eager | None = None) -> None:
        self.call = call or Eager()

    def StreamTranscribe(self) -> Eager:
        return self.call


async def test_no_audio_is_sent_before_the_server_has_taken_the_stream():
    call = Hesitant()
    events = AsyncStreaming(cast("Any", EagerServer(call)), StreamOptions()).events([b"one"])
    first = asyncio.ensure_future(anext(events))
    await call.is_asked.wait()
    for _ in range(20):  # more steps than the audio would take
        await asyncio.sleep(0)
    assert call.heard == []
    call.may_start.set()
    kinds = [(await first).WhichOneof("event"), *[event.WhichOneof("event") async for event in events]]
    assert call.heard == [b"one"]
    assert kinds == ["started", "progress", "completed"]


async def test_what_is_acknowledged_before_its_write_returns_does_not_hide_the_next_piece():
    server = EagerServer()
    pieces = [bytes([n]) * 4 for n in range(20)]
    events = AsyncStreaming(cast("Any", server), StreamOptions()).events(pieces)
    kinds = [event.WhichOneof("event") async for event in events]
    assert server.call.heard == pieces
    assert kinds == ["started", *["progress"] * len(pieces), "completed"]
