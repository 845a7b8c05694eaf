"""The loop around a session: requests in, samples and probabilities through, the engine asked, events written down.

A `Stream` belongs to no call. Calls come and go: each puts requests in and reads the journal, and when its connection
breaks, the stream works on with what it has. Everything that waits is bounded: requests by bytes, audio by seconds,
and that of all streams together, events that nobody reads by number. Whoever puts more in has to wait, which HTTP/2
passes on to the caller.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.live import LiveReader
from typeless_grpc.audio.vad import DetectorState, Probabilities
from typeless_grpc.engine.stream_audio import Holding
from typeless_grpc.errors import DeadlineExceeded, InvalidInput, TypelessError
from typeless_grpc.streaming import events, session
from typeless_grpc.streaming.decoding import PieceDecoder
from typeless_grpc.streaming.finals import Piece
from typeless_grpc.streaming.interims import Interims
from typeless_grpc.streaming.journal import Journal
from typeless_grpc.streaming.machinery import Control, Machinery, Request, StreamOptions, Update
from typeless_grpc.streaming.progress import ProgressReport
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import Decode, Effect, InterimDue, Session, Speculate, Withdraw
from typeless_grpc.text.finishing import with_renditions, without_words

_INLINE_SAMPLES = SAMPLE_RATE_HZ // 4  # looked at on the event loop, in under a millisecond; more goes to a thread
_STEP_SAMPLES = SAMPLE_RATE_HZ  # taken at a time: so few interims are due at once that all can be heard
_PROGRESS_EVERY_S = 0.7  # looked at four times a second: with a tick's delay still one in each second
_SAMPLE_BYTES = 8  # that a sample counts for: a float here, and one more in what the engine is given
_REQUEST_BYTES = 1024  # what a request counts as besides its audio: no caller fills the line with empty ones
_LOST_AT_THE_END = frozenset({"AUDIO_TRUNCATED", "AUDIO_EMPTY"})  # no reason to refuse what was understood
_MAX_UNREAD_FOR_INTERIMS = 16  # a caller that reads so slowly has no use for more


class Stream:
    """One session at work, from its first request to the last event."""

    def __init__(self, machinery: Machinery, reader: LiveReader, options: StreamOptions) -> None:
        self._machinery, self._reader, self._options = machinery, reader, options
        self.journal = Journal()
        self.acknowledged_bytes = 0
        self._is_attached = False
        self._session = Session(options.options, options.rules, cadence=options.cadence)
        self._progress = ProgressReport(self._session)
        self._detector = DetectorState()
        self._samples = SampleBuffer()
        self._held = Holding(machinery.audio)
        self._sample_bytes = 0  # of it
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._waiting_bytes = 0
        self._n_blocked = 0
        self.end_reason: events.EndReason | None = None  # why no more audio is taken; None while it is
        # Once the server is to stop: when audio ends in the shortest pause, and when although someone speaks.
        self._drain_short_s = 0.0
        self._drain_by_s: float | None = None
        self._moved = asyncio.Event()  # set whenever there may be room again
        self._opened_s = self._request_s = machinery.clock.now_s()
        self._offered_s: float | None = None  # since when an event waits to be read
        self._is_warned = False
        self._finals: dict[int, asyncio.Task[None]] = {}
        self._decoder = PieceDecoder(machinery, options, self._samples)
        self._interims = Interims(
            machinery,
            options,
            self._session,
            self._samples,
            expecting=self._decoder.expecting,
            is_welcome=self._wants_interims,
            heard=self._apply,
            done=self._check,
        )
        self._progress_s, self._reported_samples = self._opened_s, 0
        self._completed: tuple[events.Completed, events.Cursors] | None = None
        self._crash: BaseException | None = None
        self._is_broken = False
        self._say(events.Started())
        self._work = asyncio.create_task(self._run(), name="stream")
        self._work.add_done_callback(lambda _: self._held.close())

    # ---- for calls ------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether no more audio is taken."""
        return self.end_reason is not None

    @property
    def cursors(self) -> events.Cursors:
        """How far each stage is."""
        return self._session.cursors

    def attach(self) -> None:
        """A call has the stream: it may be idle, and has events to read."""
        self._is_attached, self._offered_s = True, None
        self._request_s, self._is_warned = self._machinery.clock.now_s(), False

    def detach(self) -> None:
        """No call has it."""
        self._is_attached, self._offered_s = False, None
        self._end_if_drained()
        self.wake()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A request has come and is looked at, which may take a while: the caller is not idle."""
        self._n_blocked += 1
        try:
            yield
        finally:
            self._n_blocked -= 1
            self._request_s, self._is_warned = self._machinery.clock.now_s(), False

    async def put(self, request: Request, *, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Take a request, once there is room. Does nothing if it is not still_wanted then, or nothing is taken more.

        Of audio, acknowledged_bytes has moved on when this returns.
        """
        with self.busy():
            while not self._has_room() and still_wanted() and not self.has_ended and not self.journal.is_closed:
                self._moved.clear()
                await self._moved.wait()
        if not still_wanted() or self.has_ended or self.journal.is_closed or request is Control.KEEP_ALIVE:
            return
        if request is Control.END:
            self._end(events.EndReason.CALLER)
            return
        if isinstance(request, bytes):
            self.acknowledged_bytes += len(request)
        self._wait(_weight(request))
        self._requests.put_nowait(request)

    async def events_after(
        self, sequence: int, broken: Callable[[], BaseException | None] = lambda: None
    ) -> AsyncGenerator[events.Entry, None]:
        """The journal from there on; reading makes room. See `Journal.after`."""
        async with aclosing(self.journal.after(sequence, broken)) as entries:
            async for entry in entries:
                self._offered_s = self._machinery.clock.now_s()
                yield entry
                self._offered_s = None
                self._moved.set()

    @property
    def is_stuck(self) -> bool:
        """Whether the call has left an event unread for as long as it may be idle."""
        since_s = self._offered_s
        return since_s is not None and self._machinery.clock.now_s() - since_s > self._options.idle_timeout_s

    def wake(self) -> None:
        """Let calls that wait look whether they are still wanted."""
        self._moved.set()
        self.journal.wake()

    def tick(self) -> None:
        """Look at the clock: warn of and end idle streams, report progress. To be called a few times a second."""
        if self.journal.is_closed:
            return
        now_s = self._machinery.clock.now_s()
        if self._options.is_file and now_s - self._progress_s >= _PROGRESS_EVERY_S and self._has_work():
            self._report_progress()
        self._end_if_drained()
        if not self._is_attached or self.has_ended or self._n_blocked or self._has_waiting():
            return
        idle_s, timeout_s = now_s - self._request_s, self._options.idle_timeout_s
        if idle_s >= timeout_s:
            self._end(events.EndReason.IDLE)
        elif idle_s >= timeout_s - min(10.0, timeout_s / 2) and not self._is_warned:
            self._is_warned = True
            message = f"Nothing was sent for {idle_s:.0f} s; the stream ends after {timeout_s:.0f} s of that."
            self._say(events.Warned(DeadlineExceeded(message, reason="STREAM_IDLE")))

    def drain(self, within_s: float) -> None:
        """Take no more audio from the next pause on, at the latest after within_s; finish what was taken as after END.

        A pause is what ends an utterance, and after half of the time any moment in which nothing is said. Until then
        a request is taken only when those before it are done, so that the pause is not far ahead.
        """
        now_s = self._machinery.clock.now_s()
        self._drain_short_s, self._drain_by_s = now_s + within_s / 2, now_s + within_s
        self._end_if_drained()

    @property
    def is_delivered(self) -> bool:
        """Whether nothing is left that a call could still bring to its caller."""
        return self.journal.is_closed and not self.journal.n_unsent

    def warn(self, error: TypelessError) -> None:
        """Tell the caller that something is, or soon will be, wrong."""
        self._say(events.Warned(error))

    def fail(self, error: BaseException) -> None:
        """Stop at once: the caller sent what makes no sense. Whoever reads the journal to its end is told why."""
        self.journal.close(error)
        self._work.cancel()

    async def close(self) -> None:
        """Stop all work; what was not said is lost."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._reader.close()
        self.journal.close()
        self._moved.set()

    # ---- the loop -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failure: BaseException | None = None
        try:
            try:
                await self._take_all()
            except InvalidInput as error:  # the audio cannot be used further: what came before is still said
                failure = error
                self.end_reason, self._is_broken = self.end_reason or events.EndReason.CALLER, True
            await self._finish_audio()
            while self._finals:
                await asyncio.wait(list(self._finals.values()))
            if self._completed is not None:
                await self._complete(*self._completed)
        except asyncio.CancelledError:
            failure = self._crash
        except Exception as error:
            failure = error
        finally:
            try:
                await self._stop_work()
            finally:
                self._reader.close()
                self._samples.clear()
                self.journal.close(failure)
                self._moved.set()

    async def _stop_work(self) -> None:
        """Leave nothing running: a call that ends, for whatever reason, frees the engine."""
        self._decoder.close()
        running = list(self._finals.values())
        for task in running:
            task.cancel()
        await asyncio.gather(self._interims.close(), *running, return_exceptions=True)

    async def _take_all(self) -> None:
        while True:
            request = await self._requests.get()
            match request:
                case bytes():
                    async for block in self._reader.feed(request):
                        await self._hear(block)
                case Update():
                    self._apply(session.Update(request.options, request.rules, request.asked))
                    self._decoder.reconfigure(request.options)
                case Control.FINALIZE:
                    self._apply(session.Finalize())
                case Control.END:
                    await self._take_rest()
                    return
            self._wait(-_weight(request))
            self._end_if_drained()
            self._moved.set()

    def _end(self, reason: events.EndReason) -> None:
        self.end_reason = reason
        self._requests.put_nowait(Control.END)
        self._moved.set()

    def _end_if_drained(self) -> None:
        if self._drain_by_s is None or self.has_ended:
            return
        now_s = self._machinery.clock.now_s()
        is_pause = not self._session.is_speaking or (self._session.is_quiet and now_s >= self._drain_short_s)
        if (is_pause and not self._has_waiting()) or not self._is_attached or now_s >= self._drain_by_s:
            self._end(events.EndReason.DRAINING)

    async def _take_rest(self) -> None:
        try:
            async for block in self._reader.finish():
                await self._hear(block)
        except InvalidInput as error:
            if error.reason not in _LOST_AT_THE_END:
                raise
            if self.end_reason is events.EndReason.DRAINING:
                return  # half a sample, say: it is cut here and not where the caller has its end
            self._say(events.Warned(error))

    async def _finish_audio(self) -> None:
        probabilities = self._machinery.detector.finish(self._detector)
        self._apply(session.Frames(self._samples.end, probabilities.tolist()))
        await self._judge()
        self._apply(session.End())

    async def _judge(self) -> None:
        """Hear whether utterances are over. What comes meanwhile waits, so that the text decides and not its speed."""
        while (piece := self._session.undecided) is not None:
            while self._finals and not piece.options.language:  # they may say which to expect
                await asyncio.wait(list(self._finals.values()))
            self._apply(session.Judged(piece.id, await self._decoder.is_sure(piece)))

    async def _hear(self, block: Audio) -> None:
        room = round(self._options.max_audio_s * SAMPLE_RATE_HZ) - self._samples.end
        await self._wait_for_engine()
        taken = block[: max(0, room)]
        for start in range(0, len(taken), _STEP_SAMPLES):
            part = taken[start : start + _STEP_SAMPLES]
            await self._held.grow(len(part) * _SAMPLE_BYTES)
            self._sample_bytes += len(part) * _SAMPLE_BYTES
            self._samples.append(part)
            self._apply(session.Frames(self._samples.end, (await self._probabilities(part)).tolist()))
            await self._judge()
            self._interims.begin()  # what had to wait may be due by now
            await self._interims.caught_up(self._finals.values())
        if len(block) > len(taken):
            why = f"a stream takes {self._options.max_audio_s:g} s of audio"
            raise InvalidInput("audio", why, reason="AUDIO_TOO_LONG")

    async def _probabilities(self, block: Audio) -> Probabilities:
        if len(block) <= _INLINE_SAMPLES:
            return self._machinery.detector.probabilities(block, self._detector)
        loop = asyncio.get_running_loop()
        look = self._machinery.detector.probabilities
        return await loop.run_in_executor(self._machinery.off_loop, look, block, self._detector)

    async def _wait_for_engine(self) -> None:
        """Hold no more audio than is allowed, or than could be finished soon: the rest stays with the caller."""
        while self._finals and self._is_ahead():
            self._moved.clear()
            await self._moved.wait()

    def _is_ahead(self) -> bool:
        held = self._samples.end - self._session.final
        is_behind = self._options.is_file and self._machinery.engine.backlog_s > self._options.max_backlog_s
        return is_behind or held > self._options.max_held_s * SAMPLE_RATE_HZ

    def _has_room(self) -> bool:
        if (self._drain_by_s is not None or self._held.is_waiting) and self._has_waiting():
            return False
        unread = self.journal.n_unsent if self._is_attached else 0
        return self._waiting_bytes < self._options.max_waiting_bytes and unread < self._options.max_unread_events

    def _wait(self, n_bytes: int) -> None:
        """So many bytes more, or less, wait to be looked at."""
        self._waiting_bytes += n_bytes
        self._held.count(n_bytes)

    def _has_waiting(self) -> bool:
        return bool(self._waiting_bytes or not self._requests.empty())

    def _has_work(self) -> bool:
        return bool(self._finals) or self._has_waiting() or self._samples.end > self._reported_samples

    def _wants_interims(self, piece_id: int) -> bool:
        """Whether it is the turn of this piece's interims: those of no earlier one count any more."""
        return not self.journal.is_closed and all(pending >= piece_id for pending in self._finals)

    def _report_progress(self) -> None:
        self._progress_s, self._reported_samples = self._machinery.clock.now_s(), self._samples.end
        has_ended = self.end_reason not in (None, events.EndReason.DRAINING)
        self._say(self._progress.event(has_ended=has_ended, declared_s=self._reader.declared_s))

    # ---- effects --------------------------------------------------------------------------------------------

    def _apply(self, input: session.Input) -> None:
        n_done = self._session.n_pieces_done
        effects = self._session.apply(input)
        cursors = self._session.cursors
        for index, effect in enumerate(effects):
            next_final = next((later for later in effects[index + 1 :] if isinstance(later, events.Final)), None)
            self._do(effect, cursors if next_final is None else _before(cursors, next_final))
        self._samples.forget(self._session.final)
        if (n_bytes := self._samples.n_held * _SAMPLE_BYTES) < self._sample_bytes:
            self._held.shrink(self._sample_bytes - n_bytes)
            self._sample_bytes = n_bytes
        self._moved.set()
        if (
            self._options.is_file
            and self._session.n_pieces_done > n_done
            and self._session.state is not session.State.DONE
        ):
            self._report_progress()

    def _do(self, effect: Effect, cursors: events.Cursors) -> None:
        match effect:
            case Decode(piece):
                if not self._decoder.keep_guess(piece):
                    self._interims.give_way()
                self._finals[piece.id] = asyncio.create_task(self._decode(piece))
                self._finals[piece.id].add_done_callback(self._check)
            case InterimDue():
                self._interims.due(effect)
            case Speculate(piece, is_likely):
                if (is_likely or not self._finals) and not self._decoder.has_begun(piece):
                    self._interims.give_way()
                    self._decoder.guess(piece, is_likely=is_likely)
            case Withdraw():
                self._decoder.stop()
            case events.Completed():
                self._completed = (effect, cursors)
            case events.Interim() if self.journal.n_unsent > _MAX_UNREAD_FOR_INTERIMS:
                pass  # what it made certain counts, as if it had been read
            case event:
                self._say(event, cursors)

    def _say(self, event: events.Event, cursors: events.Cursors | None = None) -> None:
        if not self.journal.is_closed:
            self.journal.add(event, cursors or self._session.cursors, self.acknowledged_bytes)

    async def _complete(self, completed: events.Completed, cursors: events.Cursors) -> None:
        if self._is_broken:
            return  # `completed` says that all went well
        if self._options.is_file:
            self._report_progress()
        options, transcript = self._session.options, completed.transcript
        if options.output_formats:
            render = functools.partial(with_renditions, words=options.word_timestamps)  # of hours, it takes seconds
            loop = asyncio.get_running_loop()
            transcript = await loop.run_in_executor(
                self._machinery.off_loop, render, transcript, options.output_formats
            )
        if not options.word_timestamps:
            transcript = without_words(transcript)
        processing_s = self._machinery.clock.now_s() - self._opened_s
        reason = self.end_reason or events.EndReason.CALLER
        said = replace(completed, transcript=transcript, processing_s=processing_s, end_reason=reason)
        self._say(said, cursors)

    # ---- finals ---------------------------------------------------------------------------------------------

    async def _decode(self, piece: Piece) -> None:
        try:
            heard: session.Input = session.FinalHeard(piece.id, await self._decoder.recognition(piece))
        except TypelessError as error:
            heard = session.FinalLost(piece.id, error)
        await self._interims.settled(piece.id)
        del self._finals[piece.id]
        self._apply(heard)
        self._interims.begin()

    def _check(self, task: asyncio.Task[None]) -> None:
        """Anything unforeseen in a task of the stream ends the stream, once."""
        if not task.cancelled() and (error := task.exception()) is not None and self._crash is None:
            self._crash = error
            self._work.cancel()


def _weight(request: Request) -> int:
    """What a request takes of the room for those that wait, in bytes."""
    return _REQUEST_BYTES + (len(request) if isinstance(request, bytes) else 0)


def _before(cursors: events.Cursors, final: events.Final) -> events.Cursors:
    """As far as all is said while this final is still to come."""
    return replace(cursors, final_s=min(cursors.final_s, final.segment.start_s))
