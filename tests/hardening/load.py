"""Ten times the calls that the server can serve: what comes of those it accepts, of those it refuses, and of streams.

The callers of the flood do not wait for anything: each call is new, and comes when its time has come. Beside them,
obedient callers retry after the time that a refusal names, live streams speak, and jobs are
submitted. Everything is counted by the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.hardening.audio import N_NUMBERS, spoken, text_of
from tests.hardening.callers import KeyedChannel
from tests.hardening.kinds import RAW
from tests.hardening.server import ADMIN_KEY, KEYS, Server
from tests.speech import BYTES_PER_S, silence
from tests.system.traffic import samples
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.client import CallFailed
from typeless_grpc.pb.v1 import jobs_pb2, jobs_pb2_grpc, transcription_pb2, transcription_pb2_grpc
from typeless_grpc.pb.v1.audio_pb2 import AudioSource

CALL_AUDIO_S, JOB_AUDIO_S = 4.0, 8.0
DEADLINE_S, BATCH_DEADLINE_S = 30.0, 120.0  # batches wait for unary calls
N_FLOODING, N_OBEDIENT, N_STREAMS = 20, 60, 4
SATURATING = 24  # calls at once that keep the server busy without a refusal
BATCH_EVERY = 8
PART_S = 0.1
UTTERANCE_S, PAUSE_S = 2.0, 1.2
MAX_RETRY_S = 60.0
TRUE_BY_S = 0.25  # a retry may come this much late
PROBE_EVERY_S, PROBE_AUDIO_S = 0.1, 1.0

Stub = transcription_pb2_grpc.TranscriptionServiceStub


@dataclass(frozen=True)
class Speech:
    """What callers send: the audio of a number, and what the server must answer; None for any text."""

    audio: Callable[[int, float], bytes]
    text: Callable[[int], str | None]

    def is_right(self, texts: Iterable[str], number: int) -> bool:
        """Whether these are the texts of this number."""
        wanted = self.text(number)
        return all(text if wanted is None else text == wanted for text in texts)


NUMBERS = Speech(spoken, text_of)


def spoken_english() -> Speech:
    """Speech for a real model: a sentence, repeated to the length."""
    sentence = (samples("en_two_sentences.flac") * 32767).astype("<i2").tobytes()
    return Speech(lambda number, seconds: (sentence * 8)[: round(seconds * SAMPLE_RATE_HZ) * 2], lambda number: None)


@dataclass
class Answers:
    """What callers of unary calls got. audio_s: of the answers. refused_s: how long each refusal took.

    lost: calls that ended neither with the right text nor with a refusal that says what to do.
    """

    n_sent: int = 0
    n_answered: int = 0
    audio_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def n_refused(self) -> int:
        return len(self.refused_s)


@dataclass
class Outcome:
    """Figures of one run. seconds: of the flood. peak, goodput: seconds of audio answered in a second.

    Goodput includes the jobs that were completed by ended_s, the end of the flood (Unix time).
    hints: retries at the time that a refusal named, and how many were accepted. lags_s: of finals, behind the end of
    their words, without and with the flood. recovery_s: from the end of the flood to calls as fast as before it.
    """

    seconds: float = 0.0
    ended_s: float = 0.0
    calls_a_second: float = 0.0
    peak: float = 0.0
    goodput: float = 0.0
    offered_a_second: float = 0.0
    answers: Answers = field(default_factory=Answers)
    n_retries: int = 0
    n_retries_accepted: int = 0
    hints_s: list[float] = field(default_factory=list)
    quiet_lags_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    n_finals_missing: int = 0
    stream_failures: list[str] = field(default_factory=list)
    n_jobs: int = 0
    n_jobs_lost: int = 0
    idle_probe_s: float = 0.0
    recovery_s: float = math.inf

    @property
    def lag_ratio(self) -> float:
        return statistics.median(self.lags_s) / statistics.median(self.quiet_lags_s)

    @property
    def true_hints(self) -> float:
        return self.n_retries_accepted / max(1, self.n_retries)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part of the values is; not a number without values."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else math.nan


@asynccontextmanager
async def channel(server: Server, key: str) -> AsyncIterator[KeyedChannel]:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(server.target, options) as opened:
        yield KeyedChannel(opened, key)


class Calls:
    """Unary calls of one caller."""

    def __init__(
        self,
        keyed: KeyedChannel,
        answers: Answers,
        seed: int,
        audio_s: float = CALL_AUDIO_S,
        speech: Speech = NUMBERS,
        batch_every: int = BATCH_EVERY,
    ) -> None:
        """batch_every: of the calls, one is a batch of two recordings; 0 for none."""
        self._batch_every = batch_every
        self._stub, self._answers, self._audio_s = Stub(keyed), answers, audio_s
        self._random, self._speech = random.Random(seed), speech

    async def call(self) -> float | None:
        """Make a call; return None if it was answered, or the seconds to wait if it was refused."""
        answers, number = self._answers, self._random.randrange(N_NUMBERS)
        source = AudioSource(content=self._speech.audio(number, self._audio_s), format=RAW)
        options = transcription_pb2.TranscriptionOptions(language="en")
        is_batch = self._batch_every > 0 and self._random.randrange(self._batch_every) == 0
        answers.n_sent += 1
        began_s = time.monotonic()
        try:
            if is_batch:
                items = [transcription_pb2.BatchItem(audio=source, options=options)] * 2
                request = transcription_pb2.BatchTranscribeRequest(items=items)
                answer = await self._stub.BatchTranscribe(request, timeout=BATCH_DEADLINE_S)
                texts = [one.transcript.text for one in answer.results]
                waits_s = [one.failure.retry_delay.ToTimedelta().total_seconds() for one in answer.results]
                if any(waits_s):  # the server took one recording of the batch and refused the other
                    n_right = sum(bool(text) and self._speech.is_right([text], number) for text in texts)
                    answers.audio_s += self._audio_s * n_right
                    answers.refused["BATCH"] += 1
                    answers.refused_s.append(0.0)
                    return max(waits_s)
            else:
                request = transcription_pb2.TranscribeRequest(audio=source, options=options)
                texts = [(await self._stub.Transcribe(request, timeout=DEADLINE_S)).transcript.text]
        except grpc.aio.AioRpcError as error:
            failed = CallFailed.of(error)
            wait_s = failed.retry_after_s
            if failed.reason == "DEADLINE_CANNOT_BE_MET":  # a refusal, which a longer deadline would have avoided
                wait_s = DEADLINE_S
            if wait_s is None:
                answers.lost[failed.reason or failed.code.name] += 1
                return MAX_RETRY_S
            answers.refused[failed.reason] += 1
            answers.refused_s.append(time.monotonic() - began_s)
            return wait_s
        if self._speech.is_right(texts, number):
            answers.n_answered += 1
            answers.audio_s += self._audio_s * len(texts)
        else:
            answers.lost["wrong text"] += 1
        return None


async def measure_peak(server: Server, seconds: float, outcome: Outcome, speech: Speech = NUMBERS) -> None:
    """Serve as many calls as the server can, without a refusal."""
    answers, ends_s = Answers(), time.monotonic() + seconds
    async with contextlib.AsyncExitStack() as stack:
        callers = [
            Calls(await stack.enter_async_context(channel(server, KEYS[i % N_FLOODING])), answers, i, speech=speech)
            for i in range(SATURATING)
        ]

        async def go_on(one: Calls) -> None:
            while time.monotonic() < ends_s:
                await one.call()

        began_s = time.monotonic()
        await asyncio.gather(*map(go_on, callers))
        took_s = time.monotonic() - began_s
    assert not answers.lost, answers.lost
    outcome.calls_a_second, outcome.peak = answers.n_answered / took_s, answers.audio_s / took_s


async def flood(server: Server, seconds: float, outcome: Outcome, times: float, speech: Speech) -> None:
    """Offer so many times the calls that the server can serve, evenly; then wait for those that were accepted."""
    answers, rate = outcome.answers, outcome.calls_a_second * times
    outcome.offered_a_second = rate
    async with contextlib.AsyncExitStack() as stack:
        keyed = [await stack.enter_async_context(channel(server, KEYS[i])) for i in range(N_FLOODING + N_OBEDIENT)]
        callers = [Calls(one, answers, i, speech=speech) for i, one in enumerate(keyed)]
        began_s = time.monotonic()
        obedient = [asyncio.create_task(_obey(one, began_s + seconds, outcome)) for one in callers[N_FLOODING:]]
        calls: set[asyncio.Task[Any]] = set()
        n = 0
        while (now_s := time.monotonic()) < began_s + seconds:
            for _ in range(round((now_s - began_s) * rate) - n):
                calls.add(task := asyncio.create_task(callers[n % N_FLOODING].call()))
                task.add_done_callback(calls.discard)
                n += 1
            await asyncio.sleep(0.01)
        outcome.goodput = answers.audio_s / (time.monotonic() - began_s)
        outcome.ended_s = time.time()
        outcome.recovery_s = await _recovery(server, outcome, speech)
        await asyncio.gather(*calls, *obedient)


async def _obey(one: Calls, ends_s: float, outcome: Outcome) -> None:
    """Call, and retry when the server says so."""
    is_retry = False
    while time.monotonic() < ends_s:
        wait_s = await one.call()
        if is_retry:
            outcome.n_retries += 1
            outcome.n_retries_accepted += wait_s is None
        is_retry = wait_s is not None
        if wait_s is not None:
            outcome.hints_s.append(wait_s)
            await asyncio.sleep(wait_s)


async def probe_s(calls: Calls) -> float:
    """How long a call takes now; infinite if it is refused."""
    began_s = time.monotonic()
    return time.monotonic() - began_s if await calls.call() is None else math.inf


async def _recovery(server: Server, outcome: Outcome, speech: Speech) -> float:
    """Seconds until a call of a new caller takes no more than twice what it takes on an idle server."""
    began_s = time.monotonic()
    async with channel(server, KEYS[-1]) as keyed:
        calls = Calls(keyed, Answers(), 1, audio_s=PROBE_AUDIO_S, speech=speech)
        while await probe_s(calls) > 2 * outcome.idle_probe_s:  # noqa: ASYNC110 # another process sets no event
            await asyncio.sleep(PROBE_EVERY_S)
    return time.monotonic() - began_s


# ---- streams and jobs -------------------------------------------------------------------------------------------


class Speaker:
    """A live stream at the pace of speech. Its lags are how long after the words their final came."""

    def __init__(self, keyed: KeyedChannel, number: int, outcome: Outcome, speech: Speech) -> None:
        self._stub, self._number, self._outcome, self._speech = Stub(keyed), number, outcome, speech
        self._data = speech.audio(number, UTTERANCE_S) + silence(PAUSE_S)

    async def speak(self, stop: asyncio.Event, is_flooded: asyncio.Event) -> None:
        """Speak until stop is set, then read the rest."""
        call = self._stub.StreamTranscribe()
        config = transcription_pb2.StreamConfig(
            format=RAW, options=transcription_pb2.TranscriptionOptions(language="en")
        )
        n_utterances, n_finals = 0, 0
        sent_s: list[float] = []
        try:
            await call.write(transcription_pb2.StreamTranscribeRequest(config=config))
            reading = asyncio.create_task(self._read(call, sent_s, is_flooded))
            size, began_s = round(PART_S * BYTES_PER_S), time.monotonic()
            n_parts = round(len(self._data) / size)
            while not stop.is_set():
                for i in range(n_parts):
                    due_s = began_s + (n_utterances * n_parts + i) * PART_S
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                    part = self._data[i * size : (i + 1) * size]
                    await call.write(transcription_pb2.StreamTranscribeRequest(audio=part))
                    sent_s.append(time.monotonic())
                n_utterances += 1
            await call.done_writing()
            n_finals = await asyncio.wait_for(reading, DEADLINE_S)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            self._outcome.stream_failures.append(repr(error)[:300])
        finally:
            call.cancel()
        self._outcome.n_finals_missing += max(0, n_utterances - n_finals)

    async def _read(self, call: Any, sent_s: Sequence[float], is_flooded: asyncio.Event) -> int:
        n_finals = 0
        async for event in call:
            if not event.HasField("segment"):
                continue
            assert self._speech.is_right([event.segment.text], self._number), event.segment.text
            end_s = event.segment.end_offset.ToTimedelta().total_seconds()
            last_part = min(math.ceil(round(end_s / PART_S, 3)), len(sent_s)) - 1
            n_finals += 1
            lags_s = self._outcome.lags_s if is_flooded.is_set() else self._outcome.quiet_lags_s
            lags_s.append(time.monotonic() - sent_s[last_part])
        return n_finals


async def submit_jobs(stub: Any, ends_s: float, speech: Speech) -> dict[str, int]:
    """Submit a job every two seconds; return the numbers of those that were accepted, by their ids."""
    jobs: dict[str, int] = {}
    while time.monotonic() < ends_s:
        number = len(jobs) % N_NUMBERS
        audio = AudioSource(content=speech.audio(number, JOB_AUDIO_S), format=RAW)
        options = transcription_pb2.TranscriptionOptions(language="en")
        answer = await stub.SubmitJob(jobs_pb2.SubmitJobRequest(audio=audio, options=options))
        jobs[answer.job.job_id] = number
        await asyncio.sleep(2.0)
    return jobs


async def lost_jobs(stub: Any, jobs: dict[str, int], timeout_s: float, speech: Speech) -> list[str]:
    """The jobs that have not ended with the right text in time."""
    ends_s = time.monotonic() + timeout_s
    while True:
        left = []
        for job_id, number in jobs.items():
            job = (await stub.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job
            is_completed = job.state == jobs_pb2.JOB_STATE_COMPLETED
            if not (is_completed and speech.is_right([job.transcript.text], number)):
                left.append(job_id)
        if not left or time.monotonic() > ends_s:
            return left
        await asyncio.sleep(1.0)


async def n_completed(stub: Any, jobs: dict[str, int], by_s: float) -> int:
    """How many of these jobs were completed by this moment."""
    found = [(await stub.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job for job_id in jobs]
    return sum(
        job.state == jobs_pb2.JOB_STATE_COMPLETED and job.end_time.ToNanoseconds() <= by_s * 1e9 for job in found
    )


async def run(
    server: Server, seconds: float, *, quiet_s: float = 15.0, times: float = 10.0, speech: Speech = NUMBERS
) -> Outcome:
    """Measure the server when it is idle, when it is full, and when it is flooded for so many seconds."""
    outcome, stop, is_flooded = Outcome(seconds), asyncio.Event(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        admin = await stack.enter_async_context(channel(server, ADMIN_KEY))
        jobs_stub: Any = jobs_pb2_grpc.JobsServiceStub(admin)
        probing_channel = await stack.enter_async_context(channel(server, KEYS[-1]))
        probing = Calls(probing_channel, Answers(), 1, audio_s=PROBE_AUDIO_S, speech=speech)
        outcome.idle_probe_s = statistics.median([await probe_s(probing) for _ in range(10)])
        speakers = [
            Speaker(await stack.enter_async_context(channel(server, key)), 10 * i, outcome, speech)
            for i, key in enumerate(KEYS[N_FLOODING + N_OBEDIENT :][:N_STREAMS])
        ]
        speaking = [asyncio.create_task(one.speak(stop, is_flooded)) for one in speakers]
        await asyncio.sleep(quiet_s)
        await measure_peak(server, quiet_s, outcome, speech)
        is_flooded.set()
        submitting = asyncio.create_task(submit_jobs(jobs_stub, time.monotonic() + seconds, speech))
        await flood(server, seconds, outcome, times, speech)
        stop.set()
        await asyncio.gather(*speaking)
        jobs = await submitting
        outcome.n_jobs, outcome.n_jobs_lost = len(jobs), len(await lost_jobs(jobs_stub, jobs, 60.0 + seconds, speech))
        outcome.goodput += JOB_AUDIO_S * await n_completed(jobs_stub, jobs, outcome.ended_s) / seconds
    return outcome
