"""A recognizer over fakes: a scripted model, a detector that takes loud frames for speech, and manual threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.unit.engine.harness import ManualExecutor
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import FRAME_SAMPLES, DetectorState, Probabilities
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.decoding.submission import RecognizerOptions, WindowScheduler, run_batch
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.engine.model import Hypothesis, Model
from typeless_grpc.engine.planning.cuts import CutPolicy
from typeless_grpc.engine.recognizer import Recognizer
from typeless_grpc.engine.scheduler import Scheduler, SchedulerOptions
from typeless_grpc.engine.scripted_model import ModelScript, RecordedDecode, ScriptedModel, hypothesis_of
from typeless_grpc.errors import NotFound

# A pause of more than a second ends a chunk, so that a test decides where the chunks are.
CUTS = CutPolicy(padding_s=0.2, context_s=0.2, silence_s=1.0, longest_s=24.0)
ENGLISH = DecodeOptions(language="en")
LOW_LOGPROB = -0.9  # a mean log probability of low confidence


def audio(*parts_s: float) -> Audio:
    """Silence and speech in turn, beginning with silence; whatever is not 0 is speech to the fake detector."""
    parts = [np.full(round(part_s * SAMPLE_RATE_HZ), index % 2, np.float32) for index, part_s in enumerate(parts_s)]
    return np.concatenate(parts)


def utterances(count: int) -> Audio:
    """Utterances of 4 s with pauses of 2 s, each of which becomes a chunk."""
    return audio(*[2.0, 4.0] * count)


class FakeDetector:
    """Takes every frame that is not silent for speech.

    n_calls: calls so far; was_called: set by the first. gate: if there is one, each call waits for it.
    """

    def __init__(self) -> None:
        self.n_calls = 0
        self.was_called = threading.Event()
        self.gate: threading.Event | None = None

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        self.n_calls += 1
        self.was_called.set()
        if self.gate:
            assert self.gate.wait(10)
        available = np.concatenate([state.pending, audio])
        n_whole = len(available) - len(available) % FRAME_SAMPLES
        state.pending = available[n_whole:]
        return np.abs(available[:n_whole].reshape(-1, FRAME_SAMPLES)).max(axis=1)

    def finish(self, state: DetectorState) -> Probabilities:
        return np.abs(state.pending).max(keepdims=True) if len(state.pending) else np.zeros(0, np.float32)


class FakePool:
    """Has one model, and counts its users."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.n_users = 0

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Model]:
        if name != self._model.name:
            raise NotFound(f"No model called '{name}'.", reason="MODEL_NOT_FOUND")
        self.n_users += 1
        try:
            yield self._model
        finally:
            self.n_users -= 1


@dataclass
class RecognizerBench:
    """A recognizer, and the fakes around it."""

    engine: Recognizer
    scheduler: WindowScheduler
    model: ScriptedModel
    pool: FakePool
    detector: FakeDetector
    threads: ManualExecutor
    clock: FakeClock

    def start(
        self, audio: Audio, options: DecodeOptions = ENGLISH, ticket: Ticket | None = None
    ) -> asyncio.Task[Recognition]:
        """Begin to transcribe a recording."""
        return asyncio.create_task(self.engine.transcribe(audio, options, ticket or Ticket()))

    async def transcribe(self, audio: Audio, options: DecodeOptions = ENGLISH) -> Recognition:
        """Transcribe a recording while nothing else runs."""
        call = self.start(audio, options)
        await self.threads.run_all()
        return await call

    async def recognize(self, utterance: Audio, lane: Lane, options: DecodeOptions = ENGLISH) -> Recognition:
        """Transcribe one utterance while nothing else runs."""
        call = asyncio.create_task(self.engine.recognize(utterance, options, Ticket(lane)))
        await self.threads.run_all()
        return await call


@asynccontextmanager
async def serving(
    *, max_batch: int = 8, vad_threads: Executor | None = None, **options: Any
) -> AsyncIterator[RecognizerBench]:
    """A bench whose scheduler runs. vad_threads: the manual threads unless given. options: of the recognizer."""
    model, detector, threads, clock = ScriptedModel(), FakeDetector(), ManualExecutor(), FakeClock()
    pool = FakePool(model)
    sharing = SchedulerOptions(max_batch, max_batch_cost_s=3.5, gather_ms=0.0)
    scheduler: WindowScheduler = Scheduler(run_batch, sharing, clock, threads)
    engine = Recognizer(
        pool,  # type: ignore[arg-type]
        detector,
        scheduler,
        RecognizerOptions("scripted", **{"beam_size": 1, "cuts": CUTS} | options),
        vad_threads=vad_threads or threads,
        live_vad_threads=threads,
    )
    await scheduler.start()
    try:
        yield RecognizerBench(engine, scheduler, model, pool, detector, threads, clock)
    finally:
        await scheduler.stop()


def unclear_below(silence_s: float) -> ModelScript:
    """A model whose text has low confidence unless this much silence is added."""

    def script(decode: RecordedDecode) -> Hypothesis:
        text = "long silence" if decode.silence_s > 2.0 else "short silence"
        return hypothesis_of(text, avg_logprob=LOW_LOGPROB if decode.silence_s < silence_s else -0.2)

    return script
