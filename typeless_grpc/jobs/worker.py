"""Runs jobs: chunk by chunk, each chunk one durable step, until the audio ends or somebody takes the job away.

A worker knows neither the database nor the queue. Something else hands it a job in a thread of its own, with a `step`
that makes a chunk durable, and watches over it: `drop_lost` is to be called often while jobs run.

Between two chunks a run asks whether its turn is over, and hands its job back if it is (`turns.py`).

A job whose last run ended without a word may have killed its worker. Such suspects run one at a time until they have
kept a chunk, so that of the jobs that die together with a poisonous one none is taken for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO, TypeVar

from typeless_grpc.audio.decode import DecodeCancelled, DecodeLimits
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.engine.admission import Admission, Reservation
from typeless_grpc.engine.interface import DecodeOptions, Engine, Lane, Recognition, Ticket
from typeless_grpc.errors import Overloaded, RateLimited, SourceUnavailable, TypelessError
from typeless_grpc.jobs.chunks import AudioChunk, ChunkReader
from typeless_grpc.jobs.job import Chunk, Failure, RetryPolicy
from typeless_grpc.jobs.store import Run, RunLost, RunStore
from typeless_grpc.jobs.turns import TIMES_THE_START
from typeless_grpc.speech.languages import is_clear
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.text.finishing import needs_words

log = logging.getLogger(__name__)

T = TypeVar("T")

# Makes work durable: runs it and records its answer, or answers what an earlier run recorded.
Step = Callable[[Callable[[], bool]], bool]


class Released(BaseException):
    """This run is over without an outcome: the job goes on elsewhere, or was taken away. Not to be recorded.

    Not an Exception, because those are outcomes to whatever runs the worker.
    """


class MadeWay(Released):
    """This run is over because another caller's job was next; the job waits for its turn."""


class _Unrecorded(BaseException):
    """Carries an error out of a step. What a step raises as an Exception is its outcome for ever, and raised again by
    every run that follows; a job that failed or stopped here may do better elsewhere."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Stopped(Exception):
    """The worker is to stop, or the job is no longer this run's."""


class _TurnOver(Exception):
    """Another caller's job is next."""


# Whether a run's turn is over. Given: the job's caller, and for how long the run has been at work, in seconds.
IsOver = Callable[[str, float], bool]


@dataclass(frozen=True)
class WorkerOptions:
    """max_audio_s: the longest recording. shortest_chunk_s: chunks are cut at a pause within one to two times of it.

    retries: what becomes of a job whose run failed.
    """

    max_audio_s: float = 86_400.0
    shortest_chunk_s: float = 60.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class _Hold:
    """A job that runs here: what it has open, and how it is told to stop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.n_failures = run.n_failures
        self.language = run.job.language
        self.position = run.job.position
        self.began_s = time.monotonic()
        self.first_chunk_s: float | None = None
        self.reader: ChunkReader | None = None
        self.file: BinaryIO | None = None
        self.reservation: Reservation | None = None
        self.stopped = threading.Event()
        self.is_lost = False
        self._inference: concurrent.futures.Future[Recognition] | None = None
        self._lock = threading.Lock()

    def stop(self, *, is_lost: bool) -> None:
        """End the run at the next opportunity, work of the engine at once."""
        with self._lock:
            self.is_lost = self.is_lost or is_lost
            self.stopped.set()
            if self._inference is not None:
                self._inference.cancel()

    def result(self, inference: concurrent.futures.Future[Recognition]) -> Recognition:
        """Wait for the engine. Raises _Stopped where `stop` comes first."""
        with self._lock:
            self._inference = inference
            if self.stopped.is_set():
                inference.cancel()
        try:
            return inference.result()
        except concurrent.futures.CancelledError as error:
            raise _Stopped from error
        finally:
            with self._lock:
                self._inference = None

    def at_work_s(self) -> float | None:
        """How long new chunks have been worked on; None before the first, and while going on took most of the time."""
        if self.first_chunk_s is None:
            return None
        ran_s = time.monotonic() - self.first_chunk_s
        return ran_s if ran_s >= TIMES_THE_START * (self.first_chunk_s - self.began_s) else None

    def close(self) -> None:
        """Let go of the audio."""
        if self.file is not None:
            self.file.close()


class Worker:
    """Runs jobs in the threads that call `run`, their inference on the event loop of the engine."""

    def __init__(
        self,
        worker_id: str,
        store: RunStore,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        detector: VoiceActivityDetector,
        options: WorkerOptions,
        admission: Admission,
    ) -> None:
        """worker_id: of this process alone, never used before. admission: of the loop; counts the audio of runs."""
        self.worker_id = worker_id
        self._store, self._engine, self._loop = store, engine, loop
        self._detector, self._options, self._admission = detector, options, admission
        self._holds: dict[str, _Hold] = {}
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._suspects = threading.Lock()

    def run(self, job_id: str, step: Step, is_over: IsOver = lambda caller, ran_s: False) -> None:
        """Run a job as far as it goes. Raises Released where it did not come to an outcome here.

        is_over: asked after each chunk.
        """
        if self._stopping.is_set():
            raise Released
        with self._one_suspect_at_a_time(job_id) as cleared:
            run = self._patiently(lambda: self._store.claim(job_id, self.worker_id), self._stopping)
            if run is None:
                return
            hold = _Hold(run)
            with self._registered(hold):
                self._work(hold, step, is_over, cleared)

    def drop_lost(self) -> None:
        """Stop the runs whose job was cancelled, deleted or taken over. Raises SourceUnavailable."""
        holds = dict(self._holds)
        if not holds:
            return
        lost = self._store.lost([hold.run for hold in holds.values()])
        for run_id in lost:
            holds[run_id].stop(is_lost=True)

    def stop(self, timeout_s: float) -> None:
        """Begin no run any more, and hand back those that are going on; wait for them no longer than timeout_s."""
        self._stopping.set()
        for hold in list(self._holds.values()):
            hold.stop(is_lost=False)
        with self._idle:
            self._idle.wait_for(lambda: not self._holds, timeout_s)

    @contextmanager
    def _registered(self, hold: _Hold) -> Iterator[None]:
        self._holds[hold.run.run_id] = hold
        if self._stopping.is_set():  # it began while `stop` was looking
            hold.stop(is_lost=False)
        try:
            yield
        finally:
            hold.close()
            if hold.reservation is not None:
                with suppress(RuntimeError):  # the loop is closed, and the server is gone
                    self._loop.call_soon_threadsafe(hold.reservation.close)
            with self._idle:
                del self._holds[hold.run.run_id]
                self._idle.notify_all()

    @contextmanager
    def _one_suspect_at_a_time(self, job_id: str) -> Iterator[Callable[[], None]]:
        """Wait for one's turn if the job is a suspect; the function that is handed out ends it early."""
        is_held = False
        if self._patiently(lambda: self._store.is_suspect(job_id), self._stopping):
            while not self._suspects.acquire(timeout=0.2):
                if self._stopping.is_set():
                    raise Released
            is_held = True

        def clear() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._suspects.release()

        try:
            yield clear
        finally:
            clear()

    def _work(self, hold: _Hold, step: Step, is_over: IsOver, cleared: Callable[[], None]) -> None:
        job_id = hold.run.job.job_id
        try:
            try:
                self._all_chunks(hold, step, is_over, cleared)
            except (RunLost, _Stopped, DecodeCancelled):
                raise
            except _TurnOver as error:
                self._patiently(lambda: self._store.hand_back(hold.run), hold.stopped)
                log.info("job %s makes way for another caller's", job_id)
                raise MadeWay from error
            except Exception as error:
                if not isinstance(error, TypelessError):
                    log.exception("unforeseen error in job %s", job_id)
                self._failed(hold, error)
        except RunLost as error:
            log.info("run of job %s ends: the job was taken away", job_id)
            raise Released from error
        except (_Stopped, DecodeCancelled) as error:
            if not hold.is_lost:
                # Where this fails, the next run takes this one for a crash, which does no harm.
                with suppress(SourceUnavailable, RunLost):
                    self._store.hand_back(hold.run)
            raise Released from error

    def _all_chunks(self, hold: _Hold, step: Step, is_over: IsOver, cleared: Callable[[], None]) -> None:
        index = 0
        try:
            while not step(functools.partial(self._chunk_or_unrecorded, hold, index, cleared)):
                index += 1
                ran_s = hold.at_work_s()
                if ran_s is not None and is_over(hold.run.job.caller, ran_s):
                    raise _TurnOver
        except _Unrecorded as carrier:
            raise carrier.error from carrier
        self._patiently(lambda: self._store.complete(hold.run), hold.stopped)
        log.info("job %s completed in %d chunks", hold.run.job.job_id, index + 1)

    def _failed(self, hold: _Hold, error: Exception) -> None:
        """File why the run failed: to be tried again, or for good."""
        job_id, failure = hold.run.job.job_id, Failure.of(error)
        delay_s = self._options.retries.delay_s(hold.n_failures + 1, error)
        if delay_s is None:
            self._patiently(lambda: self._store.fail(hold.run, failure), hold.stopped)
            log.info("job %s failed: %s", job_id, failure.reason)
        else:
            self._patiently(lambda: self._store.retry(hold.run, failure, delay_s), hold.stopped)
            log.warning("job %s is tried again in %.1f s: %s", job_id, delay_s, failure.reason)

    def _chunk_or_unrecorded(self, hold: _Hold, index: int, cleared: Callable[[], None]) -> bool:
        try:
            return self._chunk(hold, index, cleared)
        except Exception as error:
            raise _Unrecorded(error) from error

    def _chunk(self, hold: _Hold, index: int, cleared: Callable[[], None]) -> bool:
        """Do the index-th chunk unless it is kept already; whether it is the last."""
        run = hold.run
        is_last = self._patiently(lambda: self._store.kept_chunk(run, index), hold.stopped)
        if is_last is not None:
            return is_last
        reader = self._reader(hold)
        self._wait_for_room(hold, reader.most_held_s)
        audio = reader.chunk(index)
        if hold.stopped.is_set():
            raise _Stopped
        began_s = time.monotonic()
        hold.first_chunk_s = hold.first_chunk_s or began_s
        chunk = self._transcribed(hold, index, audio, began_s)
        self._patiently(lambda: self._store.keep_chunk(run, chunk), hold.stopped)
        hold.n_failures, hold.language, hold.position = 0, chunk.language, chunk.end
        cleared()
        return chunk.is_last

    def _reader(self, hold: _Hold) -> ChunkReader:
        if hold.reader is None:
            job = hold.run.job
            hold.file = self._store.open_audio(job)
            hold.reader = ChunkReader(
                hold.file,
                job.format,
                DecodeLimits(max_duration_s=self._options.max_audio_s),
                self._detector,
                position=hold.position,
                shortest_s=self._options.shortest_chunk_s,
                separate_channels=job.options.separate_channels,
                cancelled=hold.stopped.is_set,
            )
        return hold.reader

    def _wait_for_room(self, hold: _Hold, audio_s: float) -> None:
        """Reserve what the run holds at most, all at once: runs that wait hold nothing for which another waits."""
        while hold.reservation is None:
            reservation = self._admission.reserve(hold.run.job.caller)
            try:
                reservation.grow_to(audio_s)
            except (Overloaded, RateLimited) as error:
                if hold.stopped.wait(error.retry_after_s or 1.0):
                    raise _Stopped from error
            else:
                hold.reservation = reservation

    def _transcribed(self, hold: _Hold, index: int, audio: AudioChunk, began_s: float) -> Chunk:
        options = hold.run.job.options
        asked = replace(
            options,
            expected_language="" if options.language else hold.language,
            # The file formats are of the whole, which is put together when it is asked for.
            output_formats=(),
            word_timestamps=options.word_timestamps or needs_words(options),
        )
        recognition = self._infer(hold, audio.samples, asked)
        transcript = recognition.transcript.shifted(audio.start / SAMPLE_RATE_HZ)
        return Chunk(
            index=index,
            end=audio.end,
            is_last=audio.is_last,
            transcript=transcript,
            progress=audio.progress,
            language="" if options.language else settled_language(transcript) or hold.language,
            processing_s=time.monotonic() - began_s,
            queue_s=recognition.queue_s,
            n_windows=recognition.n_chunks,
        )

    def _infer(self, hold: _Hold, samples: Audio, options: DecodeOptions) -> Recognition:
        """Ask the engine, after everyone whose caller waits; where it is full, come again for as long as it is."""
        ticket = Ticket(Lane.JOBS, hold.run.job.caller)
        while True:
            asking = self._engine.transcribe(samples, options, ticket)
            try:
                return hold.result(asyncio.run_coroutine_threadsafe(asking, self._loop))
            except (Overloaded, RateLimited) as error:
                if error.reason == "MODEL_DOES_NOT_FIT":
                    raise  # to be tried later: meanwhile the place is another job's
                if hold.stopped.wait(error.retry_after_s or 1.0):
                    raise _Stopped from error

    def _patiently(self, call: Callable[[], T], stopped: threading.Event) -> T:
        """Make a call of the store, again and again while it cannot be reached: what was done is not given up."""
        delay_s = 0.25
        while True:
            try:
                return call()
            except SourceUnavailable as error:
                log.warning("the store of jobs cannot be written (%s); trying again", error.reason)
                if stopped.wait(delay_s):
                    raise (Released if stopped is self._stopping else _Stopped) from error
                delay_s = min(2 * delay_s, 5.0)


def settled_language(transcript: Transcript) -> str:
    """The language to expect of the chunks that follow; "" if this chunk does not show it clearly."""
    return transcript.language if is_clear(transcript.language_probability, transcript.speech_s) else ""
