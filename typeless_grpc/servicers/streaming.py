"""StreamTranscribe: one call's part in a session, which may see several calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc.access import principal, rate_limit
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.errors import DeadlineExceeded, InvalidInput, Overloaded, RateLimited, TypelessError
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.recordings import fields_at
from typeless_grpc.servicers.stream_messages import (
    EventMessages,
    StreamConfig,
    StreamDefaults,
    check_resume,
    cursors,
    effective_config,
    stream_config,
    stream_request,
)
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.events import Completed, EndReason, Entry, Started
from typeless_grpc.streaming.requests import Control, Update
from typeless_grpc.streaming.resume import Call, Sessions

# When a call is cancelled, its requests end as if half-closed, and the handler learns the truth a moment later. An end
# that is believed too early would end the session for good, so it waits this long for a contradiction.
HALF_CLOSE_GRACE_S = 0.02
# For a call's first request while the server drains: it comes with the call itself, or not for a while.
DRAINING_OPENING_S = 2.0
# For a caller to stop sending once it has `completed` of audio that the server ended: a gRPC client that writes to a
# call that is over may lose what it has not read yet.
LAST_REQUESTS_S = 2.0

Requests = AsyncIterator[transcription_pb2.StreamTranscribeRequest]
Responses = AsyncGenerator[transcription_pb2.StreamTranscribeResponse, None]


@dataclass(frozen=True)
class StreamLimits:
    """The bounds of each stream, and what `started` tells of them; see the settings of the same names.

    drain_pause_s: how long a stream goes on for its speaker to pause, once the server is about to stop.
    """

    options: StreamOptions
    resume_window_s: float
    drain_pause_s: float = 5.0


class StreamService:
    """Opens sessions and takes them up again, and carries requests and events between them and calls."""

    def __init__(
        self,
        dependencies: Dependencies,
        sessions: Sessions[StreamConfig],
        defaults: StreamDefaults,
        limits: StreamLimits,
        code_of: Callable[[TypelessError], int],
    ) -> None:
        """code_of: the google.rpc.Code of an error."""
        self._dependencies, self._sessions = dependencies, sessions
        self._defaults, self._limits, self._code_of = defaults, limits, code_of
        self._openings: set[asyncio.Timeout] = set()

    async def responses(self, requests: Requests) -> Responses:
        """One call, from its first request to its last event."""
        async with self._opening() as limit:
            first = await anext(requests, None)
            if first is None or first.WhichOneof("request") != "config":
                raise InvalidInput("config", "must be the first request", reason="STREAM_ORDER")
            if not self._sessions.is_draining:
                limit.reschedule(None)  # a model may have to be loaded
            after = first.config.resume_after_sequence
            call = await self._opened(first.config)
        started = self._started(call)
        messages = EventMessages(call.config, self._defaults, self._code_of)
        async with self._fed(call, requests) as feeding, aclosing(call.events_after(after)) as entries:
            if call.is_resumed:
                yield self._resumed(call, started)
            async for entry in entries:
                await _charge(call, entry, may_refuse=not self._sessions.is_draining)
                if not (call.is_resumed and isinstance(entry.event, Started)):
                    yield messages.message(entry, started)
            if call.stream.end_reason is EndReason.DRAINING:
                await asyncio.wait([feeding], timeout=LAST_REQUESTS_S)

    @property
    def is_well(self) -> bool:
        """Whether sessions are looked after: idle ones are ended, and those past their window are dropped."""
        return self._sessions.is_kept

    def draining(self) -> None:
        """Tell every caller that the server is about to go, and end what they say: all that was taken is understood."""
        message = "This server is going away: it takes no more audio after the next pause. Send the rest to another."
        self._sessions.drain(Overloaded(message, reason="DRAINING"), self._limits.drain_pause_s)
        soon_s = asyncio.get_running_loop().time() + DRAINING_OPENING_S
        for limit in self._openings:
            if not limit.expired():
                limit.reschedule(soon_s)

    async def drained(self) -> None:
        """Wait until no caller whose call broke has to come back for what was said."""
        await self._sessions.drained()

    @asynccontextmanager
    async def _opening(self) -> AsyncIterator[asyncio.Timeout]:
        """Bound what a call does before it has a session.

        Raises DeadlineExceeded, or Overloaded where the server is about to stop.
        """
        is_draining = self._sessions.is_draining
        try:
            async with asyncio.timeout(DRAINING_OPENING_S if is_draining else self._idle_timeout_s) as limit:
                self._openings.add(limit)
                try:
                    yield limit
                finally:
                    self._openings.discard(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            if self._sessions.is_draining:
                raise _going_away() from error
            message = f"No `config` came within {self._idle_timeout_s:g} s."
            raise DeadlineExceeded(message, reason="STREAM_IDLE") from error

    @property
    def _idle_timeout_s(self) -> float:
        return self._limits.options.idle_timeout_s

    async def _opened(self, message: transcription_pb2.StreamConfig) -> Call[StreamConfig]:
        who = principal.current()
        if message.resume_session_id:
            check_resume(message)
            return self._sessions.resume(message.resume_session_id, who.owner, message.resume_after_sequence)
        if self._sessions.is_draining:
            raise _going_away()
        config = stream_config(message, self._defaults)
        self._dependencies.audio.check()
        await self._check(config.options, "config.options")
        if self._sessions.is_draining:
            raise _going_away()
        options = replace(
            self._limits.options,
            options=config.options,
            segmentation=self._defaults.segmentation(config.options.voice_activity, is_file=config.is_file),
            interim_interval_s=config.interim_interval_s,
            caller=who.id,
        )
        return self._sessions.open(
            who.id,
            who.owner,
            config,
            lambda: Stream(
                self._dependencies, live_reader(config.format, field="config", is_live=not config.is_file), options
            ),
            is_shared=who.is_shared,
        )

    async def _check(self, options: DecodeOptions, field: str) -> None:
        """Find out now, and not at the first utterance, whether there is such a model and whether it has the language.

        A moment of silence takes the engine no work but to load the model. field: where the request has the options.
        """
        silence = np.zeros(FRAME_SAMPLES, dtype=np.float32)
        with fields_at(field):
            await self._dependencies.engine.transcribe(silence, options, Ticket(Lane.UNARY, principal.current().id))

    @asynccontextmanager
    async def _fed(self, call: Call[StreamConfig], requests: Requests) -> AsyncIterator[asyncio.Task[None]]:
        """Pass requests on for as long as events are read; the session outlives both."""
        feeding = asyncio.create_task(self._feed(call, requests))
        try:
            yield feeding
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            self._sessions.leave(call)

    async def _feed(self, call: Call[StreamConfig], requests: Requests) -> None:
        try:
            async for message in requests:
                request = stream_request(message, self._defaults, is_file=call.config.is_file)
                if isinstance(request, Update):
                    with call.stream.busy():
                        await self._check(request.options, "update")
                if isinstance(request, bytes) and call.has_ended:
                    raise InvalidInput("audio", "the session's audio has ended", reason="STREAM_ORDER")
                if request is Control.END:
                    await _nothing_follows(requests)
                    break
                await call.put(request)
            else:
                await asyncio.sleep(HALF_CLOSE_GRACE_S)
            await call.put(Control.END)
        except Overloaded as error:
            call.fail(error)  # of an update: the session can be taken up, and the update sent again
        except Exception as error:
            # It ends the session too: a caller that missed why, as its connection broke over it, may ask again.
            if call.is_current:
                call.stream.fail(error)
            call.fail(error)

    def _started(self, call: Call[StreamConfig]) -> transcription_pb2.StreamStarted:
        return transcription_pb2.StreamStarted(
            session_id=call.session_id,
            resumed=call.is_resumed,
            resume_window=convert.duration(self._limits.resume_window_s),
            effective_config=effective_config(call.config, self._defaults),
            max_audio_duration=convert.duration(self._limits.options.max_audio_s),
        )

    def _resumed(
        self, call: Call[StreamConfig], started: transcription_pb2.StreamStarted
    ) -> transcription_pb2.StreamTranscribeResponse:
        """First in a call that takes a session up: in no sequence, since it is news of the call and not the session."""
        return transcription_pb2.StreamTranscribeResponse(
            started=started, cursors=cursors(call.stream.cursors), acknowledged_bytes=call.acknowledged_bytes
        )


async def _nothing_follows(requests: Requests) -> None:
    """Wait a moment for what must not come behind the end. Raises InvalidInput."""
    following = asyncio.ensure_future(anext(requests, None))
    try:
        await asyncio.wait([following], timeout=HALF_CLOSE_GRACE_S)
        if following.done() and following.result() is not None:
            raise InvalidInput("request", "nothing follows STREAM_CONTROL_END", reason="STREAM_ORDER")
    finally:
        following.cancel()


def _going_away() -> Overloaded:
    return Overloaded("This server is going away; another replica may serve.", reason="DRAINING")


async def _charge(call: Call[StreamConfig], entry: Entry, *, may_refuse: bool) -> None:
    """Charge the caller for the session's audio up to this event, as far as none of its calls was.

    Raises RateLimited; the session stays, and can be taken up once there is quota again. What is done is not refused,
    and neither is what could not be had later: may_refuse is False on a server that is about to stop.
    """
    charge = rate_limit.current()
    while (due_s := min(entry.cursors.received_s - call.charged_s, charge.most_audio_s)) > 0:
        call.charged_s += due_s  # before the wait: a call that takes the session up meanwhile is not charged for it
        try:
            await charge.audio(due_s)
        except RateLimited:
            if isinstance(entry.event, Completed) or not may_refuse:
                continue
            call.charged_s -= due_s
            raise
