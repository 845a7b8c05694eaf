"""The loop around a session: requests in, samples and probabilities through, the engine asked, events written down.

A `Stream` belongs to no call. Calls come and go: each puts requests in and reads the journal, and when its connection
breaks, the stream works on with what it has. Everything that waits is bounded: requests by bytes, audio by seconds,
events that nobody reads by number. Whoever puts more in has to wait, which HTTP/2 passes on to the caller.

Interims live on what finals leave over. One is out at a time for each stream; the pause to the next is at least what
the last one took; and once the engine has a backlog they come less often, or not at all. A final is begun early, as a
guess that the pause will last, only on an engine that is nearly idle: on a busy one guesses cost others more than they
save (../docs/streaming.md has the measurements).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.live import LiveReader
from typeless_grpc.audio.vad import DetectorState, Probabilities
from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import DecodeOptions, Engine, Lane, Recognition, Ticket
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, Overloaded, TypelessError
from typeless_grpc.streaming import events, session
from typeless_grpc.streaming.finals import Piece, text_of
from typeless_grpc.streaming.journal import Journal
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import Decode, Effect, Rules, Session, Speculate, Withdraw
from typeless_grpc.text.finishing import needs_words, with_renditions, without_words

_INLINE_SAMPLES = SAMPLE_RATE_HZ // 4  # looked at on the event loop, in under a millisecond; more goes to a thread
_FINAL_ATTEMPTS = 5
_MAX_RETRY_S = 10.0
_BUSY_BACKLOG_S = 0.4  # an engine with less to do takes guesses
_NO_INTERIM_BACKLOG_S = 1.0  # with more to do than this, none is asked for
_BACKLOG_WAIT = 2.0  # for each second of backlog, so much more audio before the next interim
_REST = 2.0  # after an interim, of the time it took
_PROGRESS_EVERY_S = 0.9
_LOST_AT_THE_END = frozenset({"AUDIO_TRUNCATED", "AUDIO_EMPTY"})  # no reason to refuse what was understood
_MIN_NEW_SAMPLES = SAMPLE_RATE_HZ // 4  # an interim over less new audio says nothing new


class SpeechProbability(Protocol):
    """Tells speech from the rest; `audio.vad.SpeechDetector` is the real one."""

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities: ...

    def finish(self, state: DetectorState) -> Probabilities: ...


class Control(Enum):
    """What a caller asks for in the middle of the audio."""

    FINALIZE = "finalize"
    KEEP_ALIVE = "keep_alive"
    END = "end"


@dataclass(frozen=True)
class Update:
    """New options from the next utterance on. rules: what they come to for cutting, the server's choices filled in.

    asked: how the caller said it; comes back with `Configured`.
    """

    options: DecodeOptions
    rules: Rules
    asked: object = None


Request = bytes | Control | Update


@dataclass(frozen=True)
class StreamOptions:
    """What one stream is. rules: of LIVE or FILE mode. interim_interval_s: None for no interims.

    caller: whose turn its work takes. The rest are bounds: of audio in all, of requests waiting (bytes), of audio held
    (seconds), of events that nobody has read, of FILE pieces at the engine at once; idle_timeout_s: without a request.
    """

    options: DecodeOptions
    rules: Rules
    interim_interval_s: float | None = None
    first_interim_s: float = 0.6
    caller: str = ""
    max_audio_s: float = 4 * 3600.0
    max_waiting_bytes: int = 1 << 20
    max_held_s: float = 360.0
    max_unread_events: int = 256
    max_pieces_at_once: int = 16
    idle_timeout_s: float = 60.0
    hold_back: int = 2


class InterimPlaces:
    """How many interims of all streams may be at the engine; the others take turns.

    Few, because what runs there cannot be stopped for a final that comes.
    """

    def __init__(self, n: int = 2) -> None:
        self._n_free = n
        self._asking: dict[Callable[[], None], None] = {}  # in the order of asking

    def take(self, ask: Callable[[], None]) -> bool:
        """Take a place, if there is one; else `ask` is called once there is."""
        if self._n_free:
            self._n_free -= 1
            return True
        self._asking[ask] = None
        return False

    def give_back(self) -> None:
        """Leave a place to the next who still wants it."""
        self._n_free += 1
        while self._n_free and self._asking:
            ask = next(iter(self._asking))
            del self._asking[ask]
            ask()


@dataclass(frozen=True)
class Machinery:
    """What all streams share. off_loop: threads for longer computations."""

    engine: Engine
    speech: SpeechProbability
    off_loop: Executor
    clock: Clock
    interim_places: InterimPlaces = field(default_factory=InterimPlaces)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Stream:
    """One session at work, from its first request to the last event."""

    def __init__(self, machinery: Machinery, reader: LiveReader, options: StreamOptions) -> None:
        self._machinery, self._reader, self._options = machinery, reader, options
        self.journal = Journal()
        self.acknowledged_bytes = 0
        self.is_attached = False
        self._session = Session(options.options, options.rules, hold_back=options.hold_back)
        self._is_file = isinstance(options.rules, PlanOptions)
        self._detector = DetectorState()
        self._samples = SampleBuffer()
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._waiting_bytes = 0
        self._n_blocked = 0
        self._has_ended = False
        self._moved = asyncio.Event()  # set whenever there may be room again
        self._opened_s = self._request_s = machinery.clock.now_s()
        self._is_warned = False
        self._finals: dict[int, asyncio.Task[None]] = {}
        self._guess: tuple[Piece, asyncio.Task[Recognition]] | None = None
        self._interim: asyncio.Task[None] | None = None
        self._interim_up_to = 0
        self._next_interim_s = 0.0
        self._language: str | None = None  # as detected, where it need not be detected again
        self._detecting = asyncio.Lock()
        self._places = asyncio.Semaphore(options.max_pieces_at_once)
        self._progress_s = self._opened_s
        self._fraction = 0.0
        self._crash: BaseException | None = None
        self._is_broken = False
        self._say(events.Started())
        self._work = asyncio.create_task(self._run(), name="stream")

    # ---- for calls ------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether the end of the audio was taken."""
        return self._has_ended

    @property
    def cursors(self) -> events.Cursors:
        """How far each stage is."""
        return self._session.cursors

    async def put(self, request: Request, *, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Take a request, once there is room. Does nothing if it is not still_wanted then, or nothing is taken more.

        Of audio, acknowledged_bytes has moved on when this returns.
        """
        self._request_s, self._is_warned = self._machinery.clock.now_s(), False
        self._n_blocked += 1
        try:
            while not self._has_room() and still_wanted() and not self.journal.is_closed:
                self._moved.clear()
                await self._moved.wait()
        finally:
            self._n_blocked -= 1
        self._request_s = self._machinery.clock.now_s()
        if not still_wanted() or self._has_ended or request is Control.KEEP_ALIVE:
            return
        if isinstance(request, bytes):
            self.acknowledged_bytes += len(request)
            self._waiting_bytes += len(request)
        self._has_ended = request is Control.END
        self._requests.put_nowait(request)

    async def events_after(
        self, sequence: int, broken: Callable[[], BaseException | None] = lambda: None
    ) -> AsyncGenerator[events.Entry, None]:
        """The journal from there on; reading makes room. See `Journal.after`."""
        async with aclosing(self.journal.after(sequence, broken)) as entries:
            async for entry in entries:
                yield entry
                self._moved.set()

    def wake(self) -> None:
        """Let calls that wait look whether they are still wanted."""
        self._moved.set()
        self.journal.wake()

    def tick(self) -> None:
        """Look at the clock: warn of and end idle streams, report progress. To be called a few times a second."""
        if self.journal.is_closed:
            return
        now_s = self._machinery.clock.now_s()
        if self._is_file and now_s - self._progress_s >= _PROGRESS_EVERY_S and self._has_work():
            self._report_progress()
        if not self.is_attached or self._has_ended or self._n_blocked or self._has_waiting():
            return
        idle_s, timeout_s = now_s - self._request_s, self._options.idle_timeout_s
        if idle_s >= timeout_s:
            self._has_ended = True
            self._requests.put_nowait(Control.END)
        elif idle_s >= timeout_s - min(10.0, timeout_s / 2) and not self._is_warned:
            self._is_warned = True
            message = f"Nothing was sent for {idle_s:.0f} s; the stream ends after {timeout_s:.0f} s of that."
            self._say(events.Warned(DeadlineExceeded(message, reason="STREAM_IDLE")))

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
                self._has_ended = self._is_broken = True
            await self._finish_audio()
            while self._finals:
                await asyncio.wait(list(self._finals.values()))
        except asyncio.CancelledError:
            failure = self._crash
        except Exception as error:
            failure = error
        finally:
            await self._stop_work()
            self._reader.close()
            self._samples = SampleBuffer()
            self.journal.close(failure)
            self._moved.set()

    async def _stop_work(self) -> None:
        """Leave nothing running: a call that ends, for whatever reason, frees the engine."""
        self._stop_guess()
        running = [*self._finals.values(), *([self._interim] if self._interim is not None else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _take_all(self) -> None:
        while True:
            request = await self._requests.get()
            match request:
                case bytes():
                    async for block in self._reader.feed(request):
                        await self._hear(block)
                    self._waiting_bytes -= len(request)
                    self._moved.set()
                case Update():
                    self._apply(session.Update(request.options, request.rules, request.asked))
                    self._language = None
                case Control.FINALIZE:
                    self._apply(session.Finalize())
                case Control.END:
                    await self._take_rest()
                    return

    async def _take_rest(self) -> None:
        try:
            async for block in self._reader.finish():
                await self._hear(block)
        except InvalidInput as error:
            if error.reason not in _LOST_AT_THE_END:
                raise
            self._say(events.Warned(error))

    async def _finish_audio(self) -> None:
        probabilities = self._machinery.speech.finish(self._detector)
        self._apply(session.Frames(self._samples.end, probabilities.tolist()))
        self._apply(session.End())

    async def _hear(self, block: Audio) -> None:
        room = round(self._options.max_audio_s * SAMPLE_RATE_HZ) - self._samples.end
        await self._wait_for_engine()
        taken = block[: max(0, room)]
        if len(taken):
            self._samples.append(taken)
            self._apply(session.Frames(self._samples.end, (await self._probabilities(taken)).tolist()))
            self._begin_interim()
        if len(block) > len(taken):
            why = f"a stream takes {self._options.max_audio_s:g} s of audio"
            raise InvalidInput("audio", why, reason="AUDIO_TOO_LONG")

    async def _probabilities(self, block: Audio) -> Probabilities:
        if len(block) <= _INLINE_SAMPLES:
            return self._machinery.speech.probabilities(block, self._detector)
        loop = asyncio.get_running_loop()
        look = self._machinery.speech.probabilities
        return await loop.run_in_executor(self._machinery.off_loop, look, block, self._detector)

    async def _wait_for_engine(self) -> None:
        """Hold no more audio than is allowed: the rest stays with the caller."""
        while self._samples.end - self._session.final > self._options.max_held_s * SAMPLE_RATE_HZ and self._finals:
            self._moved.clear()
            await self._moved.wait()

    def _has_room(self) -> bool:
        unread = self.journal.n_unsent if self.is_attached else 0
        return self._waiting_bytes < self._options.max_waiting_bytes and unread < self._options.max_unread_events

    def _has_waiting(self) -> bool:
        return bool(self._waiting_bytes or not self._requests.empty())

    def _has_work(self) -> bool:
        return bool(self._finals) or self._has_waiting() or self._session.state is session.State.SPEAKING

    # ---- effects --------------------------------------------------------------------------------------------

    def _apply(self, input: session.Input) -> None:
        n_done = self._session.n_pieces_done
        effects = self._session.apply(input)
        cursors = self._session.cursors
        for index, effect in enumerate(effects):
            following = (later for later in effects[index + 1 :] if isinstance(later, events.Final))
            next_final = next(following, None) if isinstance(effect, events.Final) else None
            self._do(effect, cursors if next_final is None else _before(cursors, next_final))
        self._samples.forget(self._session.final)
        self._moved.set()
        if self._is_file and self._session.n_pieces_done > n_done and self._session.state is not session.State.DONE:
            self._report_progress()

    def _do(self, effect: Effect, cursors: events.Cursors) -> None:
        match effect:
            case Decode(piece):
                self._finals[piece.id] = asyncio.create_task(self._decode(piece))
                self._finals[piece.id].add_done_callback(self._check)
            case Speculate(piece):
                self._speculate(piece)
            case Withdraw():
                self._stop_guess()
            case events.Completed():
                self._complete(effect, cursors)
            case event:
                self._say(event, cursors)

    def _say(self, event: events.Event, cursors: events.Cursors | None = None) -> None:
        if not self.journal.is_closed:
            self.journal.add(event, cursors or self._session.cursors, self.acknowledged_bytes)

    def _complete(self, completed: events.Completed, cursors: events.Cursors) -> None:
        if self._is_broken:
            return  # `completed` says that all went well
        if self._is_file:
            self._report_progress()
        options, transcript = self._session.options, completed.transcript
        if options.output_formats:
            transcript = with_renditions(transcript, options.output_formats, words=options.word_timestamps)
        if not options.word_timestamps:
            transcript = without_words(transcript)
        processing_s = self._machinery.clock.now_s() - self._opened_s
        self._say(replace(completed, transcript=transcript, processing_s=processing_s), cursors)

    # ---- finals ---------------------------------------------------------------------------------------------

    async def _decode(self, piece: Piece) -> None:
        if self._interim is not None:
            self._interim.cancel()
        try:
            heard: session.Input = session.FinalHeard(piece.id, await self._recognition(piece))
        except TypelessError as error:
            heard = session.FinalLost(piece.id, error)
        del self._finals[piece.id]
        self._apply(heard)

    async def _recognition(self, piece: Piece) -> Recognition:
        if (guessed := self._take_guess(piece)) is not None:
            with suppress(TypelessError):
                return await _whole(guessed)
        audio, options = self._samples.cut(piece.audio_start, piece.audio_end), _for_final(piece.options)
        if not self._is_file:
            ticket = Ticket(Lane.LIVE_FINAL, self._options.caller)
            return await self._insist(lambda: self._machinery.engine.recognize(audio, options, ticket))
        async with self._places:
            return await self._file_recognition(audio, options)

    async def _file_recognition(self, audio: Audio, options: DecodeOptions) -> Recognition:
        """Decode a piece in the language of the first one, as a recording is that is transcribed whole."""
        if options.language or self._language:
            return await self._transcribed(audio, options)
        async with self._detecting:
            if self._language is not None:
                return await self._transcribed(audio, options)
            recognition = await self._transcribed(audio, options)
            if recognition.transcript.segments:
                self._language = recognition.transcript.language
            return recognition

    async def _transcribed(self, audio: Audio, options: DecodeOptions) -> Recognition:
        asked = replace(options, language=options.language or self._language)
        ticket = Ticket(Lane.UNARY, self._options.caller)
        return await self._insist(lambda: self._machinery.engine.transcribe(audio, asked, ticket))

    async def _insist(self, ask: Callable[[], Awaitable[Recognition]]) -> Recognition:
        """Ask again where that can help: speech is not lost to a moment's load."""
        for attempt in range(1, _FINAL_ATTEMPTS):
            try:
                return await ask()
            except (Overloaded, EngineFailed) as error:
                if isinstance(error, EngineFailed) and attempt > 1:
                    raise
                await self._machinery.sleep(min(error.retry_after_s or 0.1, _MAX_RETRY_S) * attempt)
        return await ask()

    def _speculate(self, piece: Piece) -> None:
        self._stop_guess()
        if self._finals or self._machinery.engine.backlog_s > _BUSY_BACKLOG_S:
            return
        if self._interim is not None:
            self._interim.cancel()
        audio = self._samples.cut(piece.audio_start, piece.audio_end)
        ticket = Ticket(Lane.LIVE_FINAL, self._options.caller)
        task = asyncio.ensure_future(self._machinery.engine.recognize(audio, _for_final(piece.options), ticket))
        task.add_done_callback(_looked_at)
        self._guess = (piece, task)

    def _take_guess(self, piece: Piece) -> asyncio.Task[Recognition] | None:
        """The guess, if it was right about the audio."""
        guess, self._guess = self._guess, None
        if guess is None:
            return None
        if (guess[0].audio_start, guess[0].audio_end) == (piece.audio_start, piece.audio_end):
            return guess[1]
        guess[1].cancel()
        return None

    def _stop_guess(self) -> None:
        guess, self._guess = self._guess, None
        if guess is not None:
            guess[1].cancel()

    def _check(self, task: asyncio.Task[None]) -> None:
        """Anything unforeseen in a task of the stream ends the stream."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error
            self._work.cancel()

    # ---- interims -------------------------------------------------------------------------------------------

    def _begin_interim(self) -> None:
        """Ask for an interim, if one is wanted, due, and would cost nobody a final."""
        now, interval_s = self._session.current, self._options.interim_interval_s
        if now is None or interval_s is None or self._interim is not None or self._session.is_quiet or self._finals:
            return
        is_first = self._interim_up_to <= now.speech_start
        heard = self._samples.end - (now.speech_start if is_first else self._interim_up_to)
        wait_s = min(self._options.first_interim_s, interval_s) if is_first else interval_s
        backlog_s = self._machinery.engine.backlog_s
        wait_s += _BACKLOG_WAIT * backlog_s
        if heard < max(_MIN_NEW_SAMPLES, wait_s * SAMPLE_RATE_HZ) or self.journal.n_unsent > 16:
            return
        if self._machinery.clock.now_s() < self._next_interim_s or backlog_s > _NO_INTERIM_BACKLOG_S:
            return
        if self.journal.is_closed or not self._machinery.interim_places.take(self._begin_interim):
            return
        audio = self._samples.cut(now.audio_start, self._samples.end)
        self._interim_up_to = self._samples.end
        self._interim = asyncio.create_task(self._hear_interim(now, audio, interval_s))
        self._interim.add_done_callback(self._interim_done)

    async def _hear_interim(self, now: session.Utterance, audio: Audio, interval_s: float) -> None:
        clock = self._machinery.clock
        began_s = clock.now_s()
        ticket = Ticket(Lane.LIVE_INTERIM, self._options.caller, deadline_s=began_s + max(2.0, 2 * interval_s))
        options = replace(
            now.options, word_timestamps=False, output_formats=(), language=now.options.language or self._language
        )
        up_to = now.audio_start + len(audio)
        try:
            recognition = await self._machinery.engine.recognize(audio, options, ticket)
        except TypelessError:
            self._next_interim_s = clock.now_s() + interval_s  # an interim is no promise
            return
        took_s = clock.now_s() - began_s
        self._next_interim_s = clock.now_s() + _REST * took_s
        self._apply(session.InterimHeard(now.piece_id, text_of(recognition), up_to))

    def _interim_done(self, task: asyncio.Task[None]) -> None:
        self._interim = None
        self._machinery.interim_places.give_back()
        self._check(task)

    # ---- progress -------------------------------------------------------------------------------------------

    def _report_progress(self) -> None:
        at, done, total = self._session.cursors, self._session.n_pieces_done, self._session.n_pieces
        is_last = self._session.state is session.State.DONE
        if is_last:
            fraction, message = 1.0, "All is transcribed."
        else:
            # How much is still to come is known for some containers only: else a minute, so that it never stands still.
            expected_s = at.received_s
            if not self._has_ended:
                expected_s = max(at.received_s, self._reader.declared_s or at.received_s + 60.0)
            fraction = min(0.99, at.final_s / expected_s) if expected_s > 0 else 0.0
            message = f"{done} of {total} pieces are transcribed."
        self._fraction = max(self._fraction, fraction)
        self._progress_s = self._machinery.clock.now_s()
        self._say(events.Progress(self._fraction, done, total, at.final_s, at.received_s, message))


async def _whole(task: asyncio.Task[Recognition]) -> Recognition:
    """The task's result; cancelling this cancels it."""
    try:
        return await task
    except asyncio.CancelledError:
        task.cancel()
        raise


def _for_final(options: DecodeOptions) -> DecodeOptions:
    """What the engine is asked: words also where only the renditions need them, and renditions of the whole only."""
    return replace(options, word_timestamps=options.word_timestamps or needs_words(options), output_formats=())


def _before(cursors: events.Cursors, final: events.Final) -> events.Cursors:
    """As far as all is said while this final is still to come."""
    return replace(cursors, final_s=min(cursors.final_s, final.segment.start_s))


def _looked_at(task: asyncio.Task[Recognition]) -> None:
    """A guess that nobody took may fail unseen."""
    if not task.cancelled():
        task.exception()
