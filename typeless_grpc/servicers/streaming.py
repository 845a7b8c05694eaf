"""StreamTranscribe: serves the calls of a session, which may have several, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc import account
from typeless_grpc.access import principal, rate_limit
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.live import LiveReader, live_reader
from typeless_grpc.audio.vad import FRAME_SAMPLES
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    RateLimited,
    SourceUnavailable,
    TypelessError,
)
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.recordings import fields_at
from typeless_grpc.servicers.stored import in_store
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
from typeless_grpc.streaming.durable_log import DurableDependencies
from typeless_grpc.streaming.durable_store import Lease
from typeless_grpc.streaming.durable_stream import DurableStream
from typeless_grpc.streaming.events import Completed, EndReason, Entry, Final, Started
from typeless_grpc.streaming.requests import Control, Update
from typeless_grpc.streaming.resume import Call, Sessions, new_session_id
from typeless_grpc.telemetry.context import HALF_CLOSE_GRACE_S

# Wait for a call's first request while the server drains.
DRAINING_OPENING_S = 2.0
# Wait for a caller to stop sending once it has the `completed` of audio that the server ended: a gRPC client that
# writes to a finished call may lose what it has not read yet.
LAST_REQUESTS_S = 2.0
# Wait for the store of sessions when a stream opens.
OPENING_STORE_S = 2.0
_NOT_DURABLE = (
    "The store of sessions is unavailable or full. If this server is lost, this session cannot be resumed on another."
)

Requests = AsyncIterator[transcription_pb2.StreamTranscribeRequest]
Responses = AsyncGenerator[transcription_pb2.StreamTranscribeResponse, None]


@dataclass(frozen=True)
class StreamLimits:
    """The bounds of each stream, as in `started`; see the settings of the same names.

    drain_pause_s: how long a stream may wait for a pause of its speaker when the server drains.
    """

    options: StreamOptions
    resume_window_s: float
    drain_pause_s: float = 5.0


class StreamService:
    """Opens and resumes sessions, and carries requests and events between them and calls."""

    def __init__(
        self,
        dependencies: Dependencies,
        sessions: Sessions[StreamConfig],
        defaults: StreamDefaults,
        limits: StreamLimits,
        code_of: Callable[[TypelessError], int],
        durable: DurableDependencies | None = None,
        decoders: Decoders = IN_PROCESS,
    ) -> None:
        """code_of: the google.rpc.Code of an error. durable: the store of sessions; None for memory only.

        decoders: where containers are decoded.
        """
        self._durable, self._decoders = durable, decoders
        self._dependencies, self._sessions = dependencies, sessions
        self._defaults, self._limits, self._code_of = defaults, limits, code_of
        self._openings: set[asyncio.Timeout] = set()

    def use(self, defaults: StreamDefaults, limits: StreamLimits) -> None:
        """Apply these to streams that open from now on."""
        self._defaults, self._limits = defaults, limits

    async def responses(self, requests: Requests, *, is_resumable: bool = True) -> Responses:
        """Serve one call, from its first request to its last event.

        is_resumable: whether the session outlives the call; if not, it is in memory only.
        """
        async with self._opening() as limit:
            first = await anext(requests, None)
            if first is None or first.WhichOneof("request") != "config":
                raise InvalidInput("config", "must be the first request", reason="STREAM_ORDER")
            if not self._sessions.is_draining:
                limit.reschedule(None)  # a model may have to be loaded
            after = first.config.resume_after_sequence
            call = await self._opened(first.config, is_resumable=is_resumable)
        started = self._started(call)
        messages = EventMessages(call.config, self._defaults, self._code_of)
        with call.stream.meter.counted_for(account.current()):
            async with (
                self._fed(call, requests, is_resumable=is_resumable) as feeding,
                aclosing(call.events_after(after)) as entries,
            ):
                if call.is_resumed:
                    yield self._resumed(call, started)
                async for entry in entries:
                    if entry.acknowledged_bytes < call.acknowledged_bytes:  # stored before what `started` acknowledged
                        entry = replace(entry, acknowledged_bytes=call.acknowledged_bytes)
                    if isinstance(entry.event, Final):
                        account.current().add_text(entry.event.segment.text)
                    await _charge(call, entry, may_refuse=not self._sessions.is_draining)
                    if not (call.is_resumed and isinstance(entry.event, Started)):
                        yield messages.message(entry, started)
                if call.stream.end_reason is EndReason.DRAINING:
                    await asyncio.wait([feeding], timeout=LAST_REQUESTS_S)

    @property
    def n_open(self) -> int:
        """How many streams have a call."""
        return self._sessions.n_open

    @property
    def n_sessions(self) -> int:
        """How many sessions there are, those without a call included."""
        return len(self._sessions)

    @property
    def is_well(self) -> bool:
        """Whether the maintenance loop runs, which ends idle sessions and drops those that were not resumed."""
        return self._sessions.is_ticking

    def draining(self) -> None:
        """Warn every caller, and end every session's audio at a pause. All audio that was taken is transcribed."""
        message = "This server stops: it takes no more audio after the next pause. Send the rest to another server."
        self._sessions.drain(Overloaded(message, reason="DRAINING"), self._limits.drain_pause_s)
        soon_s = asyncio.get_running_loop().time() + DRAINING_OPENING_S
        for limit in self._openings:
            if not limit.expired():
                limit.reschedule(soon_s)

    async def drained(self) -> None:
        """Wait until every caller whose call broke has resumed its session and read the rest."""
        await self._sessions.drained()

    @asynccontextmanager
    async def _opening(self) -> AsyncIterator[asyncio.Timeout]:
        """Bound the time before a call has a session. Raises DeadlineExceeded, or Overloaded if the server drains."""
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
                raise _draining_error() from error
            message = f"No `config` came within {self._idle_timeout_s:g} s."
            raise DeadlineExceeded(message, reason="STREAM_IDLE") from error

    @property
    def _idle_timeout_s(self) -> float:
        return self._limits.options.idle_timeout_s

    async def _opened(self, message: transcription_pb2.StreamConfig, *, is_resumable: bool) -> Call[StreamConfig]:
        """Open a session, or resume the one that the configuration names. Refuses as the contract says."""
        who = principal.current()
        if message.resume_session_id:
            check_resume(message)
            if self._durable is not None:
                await self._take_session(self._durable, message, who)
            return self._sessions.resume(message.resume_session_id, who.owner, message.resume_after_sequence)
        if self._sessions.is_draining:
            raise _draining_error()
        config = stream_config(message, self._defaults)
        self._dependencies.audio.check()
        await self._check(config.options, "config.options")
        if self._sessions.is_draining:
            raise _draining_error()
        options = self._stream_options(config, who)
        session_id, durable, lease = new_session_id(), self._durable if is_resumable else None, None
        if durable is not None:
            self._sessions.check_capacity()
            lease = await self._store_session(durable, session_id, who, message)
            if self._sessions.is_draining:
                raise _draining_error()

        def stream() -> Stream:
            if durable is None or lease is None:
                return Stream(self._dependencies, self._reader(config), options)
            made = DurableStream(self._dependencies, self._reader(config), options, durable, lease)
            made.start()
            return made

        call = self._sessions.open(who.id, who.owner, config, stream, is_shared=who.is_shared, session_id=session_id)
        if durable is not None and lease is None:
            call.stream.warn(SourceUnavailable(_NOT_DURABLE, reason="SESSION_NOT_DURABLE"))
        return call

    def _stream_options(self, config: StreamConfig, who: principal.Principal) -> StreamOptions:
        return replace(
            self._limits.options,
            options=config.options,
            segmentation=self._defaults.segmentation(config.options.voice_activity, is_file=config.is_file),
            interim_interval_s=config.interim_interval_s,
            caller=who.id,
        )

    async def _store_session(
        self,
        durable: DurableDependencies,
        session_id: str,
        who: principal.Principal,
        message: transcription_pb2.StreamConfig,
    ) -> Lease | None:
        """Store a new session. Return None if the store is unavailable or full: then the stream is in memory only."""
        loop = asyncio.get_running_loop()
        config = message.SerializeToString()
        try:
            async with asyncio.timeout(OPENING_STORE_S):
                return await loop.run_in_executor(durable.threads, durable.store.create, session_id, who.owner, config)
        except (SourceUnavailable, RateLimited, TimeoutError):
            return None

    async def _take_session(
        self, durable: DurableDependencies, message: transcription_pb2.StreamConfig, who: principal.Principal
    ) -> None:
        """Take a session from the server that has it, or had it, unless it is here."""
        session_id = message.resume_session_id
        here = self._sessions.stream_of(session_id, who.owner)
        is_owned = here is not None and (not isinstance(here, DurableStream) or await here.is_owned())
        if is_owned and self._sessions.stream_of(session_id, who.owner) is not None:  # none took it meanwhile
            return
        if self._sessions.is_draining:
            raise _draining_error()
        self._sessions.check_capacity()
        stored = await in_store(durable.threads, durable.store.take, session_id, who.owner)
        if stored is None:
            return
        config = stream_config(transcription_pb2.StreamConfig.FromString(stored.config), self._defaults)
        await self._check(config.options, "config.options")
        options = self._stream_options(config, who)
        stream = DurableStream(self._dependencies, self._reader(config), options, durable, stored.lease)
        try:
            await stream.restore(stored, message.resume_after_sequence)
            if self._sessions.is_draining:
                raise _draining_error()
        except BaseException:
            await stream.close()
            raise
        self._sessions.adopt(session_id, who.id, who.owner, config, stream)

    async def _check(self, options: DecodeOptions, field: str) -> None:
        """Check the model and the language before the first utterance. field: path of the options in the request.

        It decodes a frame of silence: the engine loads the model, and does no other work.
        """
        silence = np.zeros(FRAME_SAMPLES, dtype=np.float32)
        with fields_at(field):
            await self._dependencies.engine.transcribe(silence, options, Ticket(Lane.UNARY, principal.current().id))

    @asynccontextmanager
    async def _fed(
        self, call: Call[StreamConfig], requests: Requests, *, is_resumable: bool
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Pass requests to the stream while the block reads events. A resumable session outlives both."""
        feeding = asyncio.create_task(self._feed(call, requests))
        try:
            yield feeding
        finally:
            feeding.cancel()
            try:
                await asyncio.wait([feeding])
            finally:  # also if the caller cancels at this moment
                if is_resumable:
                    self._sessions.leave(call)
                else:
                    self._sessions.end(call)

    async def _feed(self, call: Call[StreamConfig], requests: Requests) -> None:
        """Pass requests to the stream until they end. An invalid one ends the session, and the call with its error."""
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
            call.fail(error)  # of an update: the caller can resume the session and send the update again
        except Exception as error:
            # The session ends, too. A caller that missed the error, because its connection broke, can resume to get it.
            if call.is_current:
                call.stream.fail(error)
            call.fail(error)

    def _reader(self, config: StreamConfig) -> LiveReader:
        is_live = not config.is_file
        return live_reader(config.format, field="config", is_live=is_live, open_container=self._decoders.stream)

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
        """Return the first response of a call that resumes a session.

        It has no sequence, because it is no event of the session.
        """
        return transcription_pb2.StreamTranscribeResponse(
            started=started, cursors=cursors(call.stream.cursors), acknowledged_bytes=call.acknowledged_bytes
        )


async def _nothing_follows(requests: Requests) -> None:
    """Wait a moment for a request after the end. Raises InvalidInput if there is one."""
    following = asyncio.ensure_future(anext(requests, None))
    try:
        await asyncio.wait([following], timeout=HALF_CLOSE_GRACE_S)
        if following.done() and following.result() is not None:
            raise InvalidInput("request", "nothing follows STREAM_CONTROL_END", reason="STREAM_ORDER")
    finally:
        following.cancel()


def _draining_error() -> Overloaded:
    return Overloaded("This server stops. Try another replica.", reason="DRAINING")


async def _charge(call: Call[StreamConfig], entry: Entry, *, may_refuse: bool) -> None:
    """Charge the caller for the session's audio up to this event, unless an earlier call was charged for it.

    Raises RateLimited; the session can be resumed once there is quota again. `completed` is never refused, and on a
    server that drains nothing is (may_refuse), because the caller could not get it later.
    """
    charge = rate_limit.current()
    while (due_s := min(entry.cursors.received_s - call.charged_s, charge.most_audio_s)) > 0:
        call.charged_s += due_s  # before the wait, so that a call that resumes meanwhile is not charged as well
        try:
            await charge.audio(due_s)
        except RateLimited:
            if not isinstance(entry.event, Completed) and may_refuse:
                call.charged_s -= due_s
                raise
