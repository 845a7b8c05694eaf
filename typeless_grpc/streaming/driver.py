"""The loop around a session: requests in, samples and probabilities through, utterances to the engine, events out.

A `Stream` belongs to no call. Calls come and go: each puts requests in and reads the journal. If a call's connection
breaks, the stream processes what it has. Everything that waits is bounded: requests in bytes, audio in seconds and over
all streams together, unread events in number. A caller that sends more has to wait: HTTP/2 flow control stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.live import LOST_AT_THE_END, LiveReader
from typeless_grpc.engine.stream_audio import Holding
from typeless_grpc.errors import InvalidInput, TypelessError
from typeless_grpc.streaming import events
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.detection import StreamDetector
from typeless_grpc.streaming.effects import CancelSpeculation, Decode, Effect, Emit, InterimDue, Speculate
from typeless_grpc.streaming.inbox import DrainTimes, Idleness, IdleTimer, Inbox
from typeless_grpc.streaming.inputs import End, EndpointDecision, Finalize, Frames, Input, InterimDecoded
from typeless_grpc.streaming.interims import Interims
from typeless_grpc.streaming.journal import Journal
from typeless_grpc.streaming.meter import StreamMeter
from typeless_grpc.streaming.modes import mode_of
from typeless_grpc.streaming.release import FinalDecoded, FinalFailed, FinalResult
from typeless_grpc.streaming.rendering import rendered_transcript
from typeless_grpc.streaming.requests import Control, Request, Update
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import Session
from typeless_grpc.streaming.utterances import Utterance

_STEP_SAMPLES = SAMPLE_RATE_HZ  # taken at a time, so that few interims are due at once and all can be decoded
_MAX_UNREAD_FOR_INTERIMS = 16  # a caller that reads more slowly has no use for interims


class Stream:
    """One session at work, from its first request to its last event."""

    def __init__(self, dependencies: Dependencies, reader: LiveReader, options: StreamOptions) -> None:
        self._dependencies, self._reader, self._options = dependencies, reader, options
        self.journal = Journal()
        self.end_reason: events.EndReason | None = None  # why no more audio is taken; None while it is
        mode = mode_of(options.segmentation)
        self.meter = StreamMeter(dependencies, mode.name)
        self._max_backlog_s = mode.max_backlog_s(options)
        self._session = Session(options.options, mode, cadence=options.cadence)
        self._held = Holding(dependencies.audio)
        self._inbox = Inbox(self._held, options.max_waiting_bytes)
        self._samples = SampleBuffer(self._held)
        self._detector = StreamDetector(dependencies)
        self._decoder = mode.decoder(dependencies, options, self._samples)
        self._interims = Interims(dependencies, options, self._session, self._samples, self._decoder, self)
        self._progress = mode.progress(self, self._session, dependencies)
        self._finals: dict[int, asyncio.Task[None]] = {}  # being decoded, by utterance
        self._idle = IdleTimer(dependencies.clock, options.idle_timeout_s)
        self._is_attached = False
        self._drain: DrainTimes | None = None
        self._changed = asyncio.Event()  # set whenever code that waits should check its condition again
        self.trouble: TypelessError | None = None  # with the store of a durable stream: ends the stream's calls
        self._unread_since_s: float | None = None  # when the event that waits to be read was offered
        self._completed: Emit | None = None
        self._crash: BaseException | None = None
        self.emit(events.Started())
        self._work = asyncio.create_task(self._run(), name="stream", context=self.meter.context)
        self._work.add_done_callback(lambda _: self._held.close())

    # ---- for calls ------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether no more audio is taken."""
        return self.end_reason is not None

    @property
    def acknowledged_bytes(self) -> int:
        """Audio that the caller need not send again."""
        return self._inbox.acknowledged_bytes

    @property
    def is_acknowledged(self) -> bool:
        """Whether all audio that came is acknowledged."""
        return True

    @property
    def cursors(self) -> events.Cursors:
        """How far each stage is."""
        return self._session.cursors

    def attach(self) -> None:
        """Connect a call: from now on, its caller can be idle and must read events."""
        self._is_attached, self._unread_since_s = True, None
        self._idle.restart()

    def detach(self) -> None:
        """Disconnect the call."""
        self._is_attached, self._unread_since_s = False, None
        self._end_if_drained()
        self.wake()

    def busy(self) -> AbstractContextManager[None]:
        """Return a context in which a request is being checked, so that the caller is not idle."""
        return self._idle.busy()

    async def put(self, request: Request, *, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Take a request, once there is room; do nothing if it is not still_wanted by then, or the audio has ended.

        When this returns, audio is counted in acknowledged_bytes.
        """
        with self._idle.busy():
            while not self._has_room() and still_wanted() and not self.has_ended and not self.journal.is_closed:
                self._changed.clear()
                await self._changed.wait()
        if not still_wanted() or self.has_ended or self.journal.is_closed or request is Control.KEEP_ALIVE:
            return
        if request is Control.END:
            self._end(events.EndReason.CALLER)
            return
        if isinstance(request, bytes):
            self.meter.put()
        self._inbox.put(request)

    async def events_after(
        self, sequence: int, broken: Callable[[], BaseException | None] = lambda: None
    ) -> AsyncGenerator[events.Entry, None]:
        """Yield the journal's events from there on; reading makes room. See `Journal.after`."""
        async with aclosing(self.journal.after(sequence, broken)) as entries:
            async for entry in entries:
                self._unread_since_s = self._dependencies.clock.now_s()
                yield entry
                self._unread_since_s = None
                self._changed.set()

    @property
    def is_stuck(self) -> bool:
        """Whether the call has left an event unread for as long as it may be idle."""
        since_s = self._unread_since_s
        return since_s is not None and self._dependencies.clock.now_s() - since_s > self._idle.timeout_s

    def wake(self) -> None:
        """Let waiting calls check whether they are still wanted."""
        self._changed.set()
        self.journal.wake()

    def tick(self) -> None:
        """Report progress, and warn or end an idle stream, if it is time. Must be called a few times a second."""
        if self.journal.is_closed:
            return
        self._progress.tick()
        self._end_if_drained()
        if not self._is_attached or self.has_ended or not self._inbox.is_empty:
            return
        match self._idle.check():
            case Idleness.OVER:
                self._end(events.EndReason.IDLE)
            case Idleness.NEARLY:
                self.warn(self._idle.warning())

    def drain(self, within_s: float) -> None:
        """End the audio at the next endpoint, at the latest after within_s, and finish what was taken.

        After half of the time, any pause ends the audio. Until it ends, the stream takes a request only once those
        before it are done, so that the endpoint is found near the newest audio.
        """
        self._drain = DrainTimes.starting(self._dependencies.clock.now_s(), within_s)
        self._end_if_drained()

    @property
    def is_delivered(self) -> bool:
        """Whether the caller has received every event that it can still get."""
        return self.journal.is_closed and not self.journal.n_unsent

    def warn(self, error: TypelessError) -> None:
        """Warn the caller."""
        self.emit(events.Warned(error))

    def fail(self, error: BaseException) -> None:
        """Stop at once, because the caller sent something invalid. Readers get the error after the last event."""
        self.journal.close(error)
        self._work.cancel()

    async def close(self, *, forget: bool = False) -> None:
        """Stop all work; finals that are not released are lost. forget: the session cannot be resumed any more."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._reader.close()
        self.journal.close()
        self._changed.set()

    # ---- for interims and progress ---------------------------------------------------------------------------

    @property
    def declared_s(self) -> float | None:
        """See `ProgressHost`."""
        return self._reader.declared_s

    @property
    def has_work(self) -> bool:
        """See `ProgressHost`."""
        return bool(self._finals) or not self._inbox.is_empty

    def emit(self, event: events.Event, cursors: events.Cursors | None = None) -> None:
        """Append an event to the journal. cursors: those of this moment by default."""
        if not self.journal.is_closed:
            self.journal.add(event, cursors or self._session.cursors, self.acknowledged_bytes)
            self.meter.emitted(event)

    def accepts_interims_of(self, utterance_id: int) -> bool:
        """See `InterimHost`."""
        return not self.journal.is_closed and all(pending >= utterance_id for pending in self._finals)

    def take_interim(self, interim: InterimDecoded) -> None:
        """See `InterimHost`."""
        self._apply(interim)

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """See `InterimHost`: an unexpected error in any task of the stream ends the stream, once."""
        if not task.cancelled() and (error := task.exception()) is not None and self._crash is None:
            self._crash = error
            self._work.cancel()

    # ---- the loop -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Process requests until the audio ends, wait for the finals, and close the journal."""
        failure: BaseException | None = None
        try:
            try:
                await self._take_requests()
            except InvalidInput as error:  # the audio cannot be used further: what came before is still released
                failure = error
                self.end_reason = self.end_reason or events.EndReason.CALLER
            await self._finish_audio()
            while self._finals:
                await asyncio.wait(list(self._finals.values()))
            if self._completed is not None and failure is None:
                await self._complete(self._completed)
        except asyncio.CancelledError:
            failure = self._crash
        except Exception as error:
            failure = error
        finally:
            try:
                await self._stop_decodes()
            finally:
                self._reader.close()
                self._samples.clear()
                self.journal.close(failure)
                self._changed.set()

    async def _stop_decodes(self) -> None:
        """Cancel all decodes and wait for them, so that an ended stream uses no engine."""
        self._decoder.close()
        running = list(self._finals.values())
        for task in running:
            task.cancel()
        await asyncio.gather(self._interims.close(), *running, return_exceptions=True)

    async def _take_requests(self) -> None:
        while True:
            request = await self._inbox.get()
            match request:
                case bytes():
                    self.meter.taken()
                    async for block in self._reader.feed(request):
                        await self._take_audio(block)
                case Update():
                    self._apply(request)
                    self._decoder.reconfigure(request.options)
                case Control.FINALIZE:
                    self._apply(Finalize())
                case Control.END:
                    await self._take_rest()
                    return
            self._inbox.done(request)
            self._end_if_drained()
            self._changed.set()

    async def _take_rest(self) -> None:
        try:
            async for block in self._reader.finish():
                await self._take_audio(block)
        except InvalidInput as error:
            if error.reason not in LOST_AT_THE_END:
                raise
            if self.end_reason is events.EndReason.DRAINING:
                return  # the caller's audio does not end here: half a sample, say, goes to another server
            self.warn(error)

    def _end(self, reason: events.EndReason) -> None:
        self.end_reason = reason
        self._inbox.end()
        self._changed.set()

    def _end_if_drained(self) -> None:
        if self._drain is None or self.has_ended:
            return
        now_s, session = self._dependencies.clock.now_s(), self._session
        may_cut = self._drain.may_cut(now_s, is_speaking=session.is_speaking, is_quiet=session.is_quiet)
        if (may_cut and self._inbox.is_empty) or not self._is_attached or now_s >= self._drain.by_s:
            self._end(events.EndReason.DRAINING)

    async def _finish_audio(self) -> None:
        """Detect the last frame, and end the last utterance."""
        self._apply(Frames(self._samples.end, self._detector.finish()))
        await self._decide_endpoints()
        self._apply(End())

    async def _decide_endpoints(self) -> None:
        """Decide whether utterances are over. Audio waits meanwhile, so that the engine's speed does not matter."""
        while (utterance := self._session.undecided) is not None:
            while self._finals and not utterance.options.language:  # they may show the language to expect
                await asyncio.wait(list(self._finals.values()))
            is_endpoint = await self._decoder.has_high_confidence(utterance)
            self._apply(EndpointDecision(utterance.id, is_endpoint))

    async def _take_audio(self, block: Audio) -> None:
        """Pass samples through the detector to the session, no faster than the engine decodes them."""
        while self._finals and self._is_ahead():
            self._changed.clear()
            await self._changed.wait()
        taken = block[: max(0, round(self._options.max_audio_s * SAMPLE_RATE_HZ) - self._samples.end)]
        for start in range(0, len(taken), _STEP_SAMPLES):
            part = taken[start : start + _STEP_SAMPLES]
            await self._samples.append(part)
            self.meter.reached(self._samples.end)
            self._apply(Frames(self._samples.end, await self._detector.probabilities(part)))
            await self._decide_endpoints()
            self._interims.begin()  # an interim that had to wait may begin now
            await self._interims.caught_up(self._finals.values())
        if len(block) > len(taken):
            why = f"a stream takes {self._options.max_audio_s:g} s of audio"
            raise InvalidInput("audio", why, reason="AUDIO_TOO_LONG")

    def _is_ahead(self) -> bool:
        """Whether the stream holds as much audio as it may, or more than the engine will soon decode."""
        held = self._samples.end - self._session.needed_from
        is_behind = self._dependencies.engine.backlog_s > self._max_backlog_s
        return is_behind or held > self._options.max_held_s * SAMPLE_RATE_HZ

    def _has_room(self) -> bool:
        if (self._drain is not None or self._held.is_waiting) and not self._inbox.is_empty:
            return False
        unread = self.journal.n_unsent if self._is_attached else 0
        return not self._inbox.is_full and unread < self._options.max_unread_events

    def _apply(self, input: Input) -> None:
        """Give the session an input, and carry out the effects."""
        n_released = self._session.n_released
        for effect in self._session.apply(input):
            self._perform(effect)
        self._samples.forget(self._session.needed_from)
        self._changed.set()
        if self._session.n_released > n_released:
            self._progress.released()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Decode(utterance):
                if not self._decoder.adopt(utterance):
                    self._interims.yield_to_finals()
                self._finals[utterance.id] = asyncio.create_task(self._decode(utterance), context=self.meter.context)
                self._finals[utterance.id].add_done_callback(self.task_ended)
            case Speculate(utterance, is_likely):
                if (is_likely or not self._finals) and not self._decoder.is_speculated(utterance):
                    self._interims.yield_to_finals()
                    self._decoder.speculate(utterance, is_likely=is_likely)
            case CancelSpeculation():
                self._decoder.cancel_speculation()
            case InterimDue():
                self._interims.add(effect)
            case Emit(events.Completed()):
                self._completed = effect
            case Emit(events.Interim()) if self.journal.n_unsent > _MAX_UNREAD_FOR_INTERIMS:
                self.meter.unread()  # it commits words although it is not sent
            case Emit(event, cursors):
                self.emit(event, cursors)

    async def _decode(self, utterance: Utterance) -> None:
        """Decode an utterance for its final, and give the session the result after the interims of the utterance."""
        result: FinalResult
        try:
            result = FinalDecoded(utterance.id, await self._decoder.final(utterance))
        except TypelessError as error:
            result = FinalFailed(utterance.id, error)
        await self._interims.settled(utterance.id)
        del self._finals[utterance.id]
        self._apply(result)
        self._interims.begin()

    async def _complete(self, completed: Emit) -> None:
        assert isinstance(completed.event, events.Completed)
        self._progress.completed()
        transcript = await rendered_transcript(completed.event.transcript, self._session.options, self._dependencies)
        reason = self.end_reason or events.EndReason.CALLER
        event = replace(completed.event, transcript=transcript, processing_s=self.meter.elapsed_s, end_reason=reason)
        self.emit(event, completed.cursors)
