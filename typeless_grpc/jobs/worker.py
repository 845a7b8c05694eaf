"""Runs jobs: chunk by chunk, each chunk one durable step, until the audio ends or the run loses its lease.

A worker knows neither the database nor the queue. Its runner (`stores/dbos/runner.py`) calls `run` in one thread for
each job, with a `step` that makes a chunk durable, and calls `drop_lost` often while jobs run.

Between two chunks a run checks whether its job must yield its slot to another caller's (`turns.py`), and then hands it
back.

A job whose last run ended without an outcome may have crashed its worker. Such jobs are quarantined: they run one at a
time until they have stored a chunk, so that a job whose worker a poison job crashed does not count as one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

from typeless_grpc.audio.decode import DecodeCancelled, DecodeLimits
from typeless_grpc.audio.decoders import IN_PROCESS, Decoders
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import VoiceActivityDetector
from typeless_grpc.engine.admission import Admission
from typeless_grpc.engine.interface import DecodeOptions, Engine, Lane, Recognition, Ticket
from typeless_grpc.errors import Overloaded, RateLimited, SourceUnavailable, TypelessError
from typeless_grpc.jobs.active_run import ActiveRun, RunStopped
from typeless_grpc.jobs.chunks import AudioChunk, ChunkReader
from typeless_grpc.jobs.job import Chunk, Failure, RetryPolicy
from typeless_grpc.jobs.observer import JobObserver, NoJobObserver
from typeless_grpc.jobs.store import RunLost, RunStore
from typeless_grpc.speech.languages import is_clear
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.text.finishing import needs_words

log = logging.getLogger(__name__)

T = TypeVar("T")

# Runs work and records its result, or returns what an earlier run of the job recorded. Errors of the work are raised.
Step = Callable[[Callable[[], bool]], bool]

# Whether a run must yield its slot to a job of another caller. Arguments: the job's caller, and the seconds that the
# run has worked here.
MustYield = Callable[[str, float], bool]


class RunEnd(Enum):
    """How a run ended."""

    SETTLED = "the outcome is stored: the job has ended, or another run is queued, or there was nothing to do"
    PREEMPTED = "another caller's job is next; this job waits for its turn"
    RELEASED = "the worker stops, or the run has lost its lease: the job belongs to another run, if it still runs"


class _Preempted(Exception):
    """Another caller's job is next."""


class _WorkerStopping(Exception):
    """The worker stops before the run has begun."""


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker runs jobs.

    max_audio_s: longest recording. shortest_chunk_s: chunks are cut at a pause, at one to two times this length.
    retries: how a job is retried whose run failed.
    """

    max_audio_s: float = 86_400.0
    shortest_chunk_s: float = 60.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class Worker:
    """Runs jobs in the threads that call `run`, and their inference on the event loop of the engine."""

    def __init__(
        self,
        worker_id: str,
        store: RunStore,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        detector: VoiceActivityDetector,
        options: WorkerOptions,
        admission: Admission,
        observer: JobObserver | None = None,
        decoders: Decoders = IN_PROCESS,
    ) -> None:
        """worker_id: unique for this start of this process. admission: that of the loop; counts the audio of runs.

        decoders: where containers are decoded.
        """
        self.worker_id = worker_id
        self._store, self._engine, self._loop = store, engine, loop
        self._detector, self._options, self._admission = detector, options, admission
        self._decoders = decoders
        self._observer = observer or NoJobObserver()
        self._runs: dict[str, ActiveRun] = {}
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._quarantine = threading.Lock()

    def use(self, options: WorkerOptions) -> None:
        """Apply these options from now on. Runs that read their audio already use only the new retries."""
        self._options = options

    def run(self, job_id: str, step: Step, must_yield: MustYield = lambda caller, worked_s: False) -> RunEnd:
        """Run a job until it ends, fails, or must leave this worker. must_yield: called after each chunk."""
        if self._stopping.is_set():
            return RunEnd.RELEASED
        try:
            with self._quarantined(job_id) as leave_quarantine:
                run = self._retried(lambda: self._store.claim(job_id, self.worker_id), self._wait)
                if run is None:
                    return RunEnd.SETTLED
                active = ActiveRun(run)
                with self._observer.running(run), self._registered(active):
                    return self._work(active, step, must_yield, leave_quarantine)
        except _WorkerStopping:
            return RunEnd.RELEASED

    def drop_lost(self) -> None:
        """Stop the runs that have lost their lease: the job was cancelled, deleted or reassigned.

        Raises SourceUnavailable.
        """
        runs = dict(self._runs)
        if not runs:
            return
        for run_id in self._store.lost([active.run for active in runs.values()]):
            runs[run_id].stop(is_lost=True)

    def stop(self, timeout_s: float) -> None:
        """Begin no more runs, hand back the jobs of those in progress, and wait for them for at most timeout_s."""
        self._stopping.set()
        for active in list(self._runs.values()):
            active.stop(is_lost=False)
        with self._idle:
            self._idle.wait_for(lambda: not self._runs, timeout_s)

    @contextmanager
    def _registered(self, active: ActiveRun) -> Iterator[None]:
        """Count the run among the active ones, so that `stop` finds it; release what it holds at the end."""
        self._runs[active.run.run_id] = active
        if self._stopping.is_set():  # `stop` may not have seen this run
            active.stop(is_lost=False)
        try:
            yield
        finally:
            active.close()
            if active.reservation is not None:
                with suppress(RuntimeError):  # the loop is closed: the server has ended
                    self._loop.call_soon_threadsafe(active.reservation.close)
            with self._idle:
                del self._runs[active.run.run_id]
                self._idle.notify_all()

    @contextmanager
    def _quarantined(self, job_id: str) -> Iterator[Callable[[], None]]:
        """Run quarantined jobs one at a time. Yields a function that ends the quarantine early."""
        is_held = False
        if self._retried(lambda: self._store.is_quarantined(job_id), self._wait):
            while not self._quarantine.acquire(timeout=0.2):
                self._wait(0.0)
            is_held = True

        def leave() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._quarantine.release()

        try:
            yield leave
        finally:
            leave()

    def _work(
        self, active: ActiveRun, step: Step, must_yield: MustYield, leave_quarantine: Callable[[], None]
    ) -> RunEnd:
        """Do the work of a claimed run, and store its outcome."""
        job_id = active.run.job.job_id
        try:
            try:
                self._all_chunks(active, step, must_yield, leave_quarantine)
            except (RunLost, RunStopped, DecodeCancelled):
                raise
            except _Preempted:
                self._retried(lambda: self._store.hand_back(active.run), active.wait)
                log.info("job %s yields its slot to another caller's job", job_id)
                self._observer.run_ended("preempted")
                return RunEnd.PREEMPTED
            except Exception as error:
                if not isinstance(error, TypelessError):
                    log.exception("unforeseen error in job %s", job_id)
                self._failed(active, error)
        except RunLost:
            log.info("run of job %s ends: it has lost its lease", job_id)
            self._observer.run_ended("released")
            return RunEnd.RELEASED
        except (RunStopped, DecodeCancelled):
            self._observer.run_ended("released")
            if not active.is_lost:
                # If this fails, the next run counts this one as a crash, which does no harm.
                with suppress(SourceUnavailable, RunLost):
                    self._store.hand_back(active.run)
            return RunEnd.RELEASED
        return RunEnd.SETTLED

    def _all_chunks(
        self, active: ActiveRun, step: Step, must_yield: MustYield, leave_quarantine: Callable[[], None]
    ) -> None:
        """Transcribe chunk by chunk, and complete the job. Raises _Preempted if the run must yield its slot."""
        index = 0
        while not step(functools.partial(self._chunk, active, index, leave_quarantine)):
            index += 1
            worked_s = active.worked_s()
            if worked_s is not None and must_yield(active.run.job.caller, worked_s):
                raise _Preempted
        self._retried(lambda: self._store.complete(active.run), active.wait)
        log.info("job %s completed in %d chunks", active.run.job.job_id, index + 1)
        self._ended(active, "completed")

    def _failed(self, active: ActiveRun, error: Exception) -> None:
        """Store that the run failed, for a retry or for good."""
        job_id, failure = active.run.job.job_id, Failure.of(error)
        delay_s = self._options.retries.delay_s(active.n_failures + 1, error)
        if delay_s is None:
            self._retried(lambda: self._store.fail(active.run, failure), active.wait)
            log.info("job %s failed: %s", job_id, failure.reason)
            self._ended(active, "failed")
        else:
            self._retried(lambda: self._store.retry(active.run, failure, delay_s), active.wait)
            log.warning("job %s is retried in %.1f s: %s", job_id, delay_s, failure.reason)
            self._observer.run_ended("retried")

    def _ended(self, active: ActiveRun, state: str) -> None:
        self._observer.run_ended(state)
        self._observer.job_ended(active.run.job, state, time.time())

    def _chunk(self, active: ActiveRun, index: int, leave_quarantine: Callable[[], None]) -> bool:
        """Transcribe and store the index-th chunk unless it is stored already; return whether it is the last."""
        run = active.run
        is_last = self._retried(lambda: self._store.kept_chunk(run, index), active.wait)
        if is_last is not None:
            return is_last
        reader = self._reader(active)
        self._wait_for_room(active, reader.most_held_s)
        audio = reader.chunk(index)
        active.wait(0.0)
        began_s, started_s = time.monotonic(), time.time()
        active.first_chunk_s = active.first_chunk_s or began_s
        with self._observer.decoding(run, index):
            chunk = self._transcribed(active, index, audio, began_s)
            self._retried(lambda: self._store.keep_chunk(run, chunk), active.wait)
        self._observer.chunk_stored(run.job, chunk, (audio.end - audio.start) / SAMPLE_RATE_HZ, started_s)
        active.n_failures, active.language, active.position = 0, chunk.language, chunk.end
        leave_quarantine()
        return chunk.is_last

    def _reader(self, active: ActiveRun) -> ChunkReader:
        """Return the run's reader of chunks. It stays open between chunks."""
        if active.reader is None:
            job = active.run.job
            active.file = self._store.open_audio(job)
            active.reader = ChunkReader(
                active.file,
                job.format,
                DecodeLimits(max_duration_s=self._options.max_audio_s),
                self._detector,
                position=active.position,
                shortest_s=self._options.shortest_chunk_s,
                separate_channels=job.options.separate_channels,
                cancelled=active.stopped.is_set,
                open_container=self._decoders.recording,
            )
        return active.reader

    def _wait_for_room(self, active: ActiveRun, audio_s: float) -> None:
        """Reserve all audio that the run will hold at once, so that no two runs wait for each other."""
        while active.reservation is None:
            reservation = self._admission.reserve(active.run.job.caller)
            try:
                reservation.grow_to(audio_s)
            except (Overloaded, RateLimited) as error:
                active.wait(error.retry_after_s or 1.0)
            else:
                active.reservation = reservation

    def _transcribed(self, active: ActiveRun, index: int, audio: AudioChunk, began_s: float) -> Chunk:
        """Transcribe one chunk. Its language is expected of the next one."""
        options = active.run.job.options
        chunk_options = replace(
            options,
            expected_language="" if options.language else active.language,
            # File formats are made of the whole transcript, when it is read.
            output_formats=(),
            word_timestamps=options.word_timestamps or needs_words(options),
        )
        recognition = self._infer(active, audio.samples, chunk_options)
        transcript = recognition.transcript.shifted(audio.start / SAMPLE_RATE_HZ)
        return Chunk(
            index=index,
            end=audio.end,
            is_last=audio.is_last,
            transcript=transcript,
            progress=audio.progress,
            language="" if options.language else settled_language(transcript) or active.language,
            processing_s=time.monotonic() - began_s,
            queue_s=recognition.queue_s,
            n_windows=recognition.n_chunks,
            n_channels=1 if audio.samples.ndim == 1 else len(audio.samples),
        )

    def _infer(self, active: ActiveRun, samples: Audio, options: DecodeOptions) -> Recognition:
        """Run the engine in the lane of jobs, after all calls; retry while it is full."""
        ticket = Ticket(Lane.JOBS, active.run.job.caller)
        while True:
            inference = self._engine.transcribe(samples, options, ticket)
            try:
                return active.result(asyncio.run_coroutine_threadsafe(inference, self._loop))
            except (Overloaded, RateLimited) as error:
                if error.reason == "MODEL_DOES_NOT_FIT":
                    raise  # the job is retried later; another job may use its slot meanwhile
                active.wait(error.retry_after_s or 1.0)

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _WorkerStopping

    def _retried(self, call: Callable[[], T], wait: Callable[[float], None]) -> T:
        """Call the store, and retry until it is available. wait: raises once the run or the worker is stopped."""
        delay_s = 0.25
        while True:
            try:
                return call()
            except SourceUnavailable as error:
                log.warning("the store of jobs is unavailable (%s); retrying", error.reason)
                wait(delay_s)
                delay_s = min(2 * delay_s, 5.0)


def settled_language(transcript: Transcript) -> str:
    """Return the language to expect in the next chunks; "" if that of this chunk is not clear."""
    return transcript.language if is_clear(transcript.language_probability, transcript.speech_s) else ""
