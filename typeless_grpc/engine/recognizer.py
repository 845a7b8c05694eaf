"""The steps of a call in the engine: detect the speech, cut it into chunks, decode them, filter and merge the result.

`Recognizer` is the `Engine` over loaded models; it handles one channel, and `channels.py` wraps it for several.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np

from typeless_grpc import account
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import DetectorState, Probabilities, Span, VoiceActivityDetector
from typeless_grpc.engine.decoding.hallucinations import filter_hallucinations
from typeless_grpc.engine.decoding.merge import PartialTranscript, merge
from typeless_grpc.engine.decoding.plan_decoder import PlanDecoder, language_of
from typeless_grpc.engine.decoding.submission import DecodeContext, RecognizerOptions, WindowScheduler
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Task, Ticket
from typeless_grpc.engine.model import FULL_WINDOW_S, Model
from typeless_grpc.engine.observer import EngineObserver, NoObserver
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.planning.speech import DetectedSpeech, detect_speech
from typeless_grpc.engine.planning.strategies import Plan, plan_recording, plan_utterance
from typeless_grpc.engine.pool import ModelPool
from typeless_grpc.engine.scheduler import Timing
from typeless_grpc.errors import InvalidInput
from typeless_grpc.speech.transcript import Segment, Transcript

T = TypeVar("T")

# The detector gets this many samples at a time: 30 s.
DETECTION_STEP = 30 * SAMPLE_RATE_HZ


class Recognizer:
    """The engine over loaded models."""

    def __init__(
        self,
        models: ModelPool[Model],
        detector: VoiceActivityDetector,
        scheduler: WindowScheduler,
        options: RecognizerOptions,
        *,
        vad_threads: Executor,
        live_vad_threads: Executor,
        observer: EngineObserver | None = None,
    ) -> None:
        """vad_threads: run the detector on recordings; live_vad_threads: on utterances, which must not wait."""
        self._models = models
        self._detector = detector
        self._scheduler = scheduler
        self._observer = observer or NoObserver()
        self._decoder = PlanDecoder(scheduler, options, self._observer)
        self._options = options
        self._vad_threads, self._live_vad_threads = vad_threads, live_vad_threads

    @property
    def backlog_s(self) -> float:
        """See `Engine`."""
        return self._scheduler.backlog_s(Lane.UNARY)

    @property
    def stalled_s(self) -> float:
        """See `Engine`."""
        return self._scheduler.stalled_s

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe a recording of any length; see `Engine`."""

        def plan(probabilities: Probabilities) -> Plan:
            speech = detect_speech(probabilities, len(audio), options.voice_activity.threshold)
            policy = self._options.cuts.with_overrides(options.voice_activity)
            return plan_recording(options.chunking, speech, len(audio), policy)

        self._scheduler.check(0.0, ticket)
        async with self._model(options) as model:
            with self._scheduler.expecting_work():
                planned = await self._detect(audio, self._vad_threads, plan)
            return await self._decode(model, audio, planned, options, ticket)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance without cutting it; see `Engine`."""
        n_samples = len(utterance)
        if n_samples > FULL_WINDOW_S * SAMPLE_RATE_HZ:
            raise InvalidInput("audio", f"an utterance has at most {FULL_WINDOW_S:.0f} s")

        def plan(probabilities: Probabilities) -> Plan:
            return plan_utterance(detect_speech(probabilities, n_samples, options.voice_activity.threshold), n_samples)

        async with self._model(options) as model:
            if ticket.lane is Lane.LIVE_INTERIM:
                planned = plan_utterance(DetectedSpeech((Span(0, n_samples),)), n_samples)
            else:
                with self._scheduler.expecting_work():
                    planned = await self._detect(utterance, self._live_vad_threads, plan)
            return await self._decode(model, utterance, planned, options, ticket)

    @asynccontextmanager
    async def _model(self, options: DecodeOptions) -> AsyncIterator[Model]:
        async with self._models.use(options.model or self._options.default_model) as model:
            _check(model, options)
            yield model

    async def _detect(self, audio: Audio, threads: Executor, then: Callable[[Probabilities], T]) -> T:
        """Run the detector over audio, and return the result of `then` for the probabilities; both run in threads.

        The detector runs in short steps, so that no recording delays another for long, and a cancelled call ends soon.
        """
        state = DetectorState()
        parts: list[Probabilities] = []
        loop = asyncio.get_running_loop()
        last_start = max(0, len(audio) - 1) // DETECTION_STEP * DETECTION_STEP

        def step(start: int) -> None:
            parts.append(self._detector.probabilities(audio[start : start + DETECTION_STEP], state))

        def last_step() -> T:
            step(last_start)
            return then(np.concatenate([*parts, self._detector.finish(state)]))

        for start in range(0, last_start, DETECTION_STEP):
            await loop.run_in_executor(threads, step, start)
        return await loop.run_in_executor(threads, last_step)

    async def _decode(
        self, model: Model, audio: Audio, plan: Plan, options: DecodeOptions, ticket: Ticket
    ) -> Recognition:
        """Decode a plan, filter the results and merge them. Refuses a call that the queue cannot serve in time."""
        self._scheduler.check(self._decoder.cost_s(plan), ticket)
        timings: list[Timing] = []
        context = DecodeContext(model, audio, options, ticket, timings, options.expected_language)
        results = await self._decoder.decode(context, plan)
        filtered = [(chunk, filter_hallucinations(result, chunk, plan.speech.unlikely)) for chunk, result in results]
        if ticket.lane is not Lane.LIVE_INTERIM:
            for suppressed in (suppressed for _, one in filtered for suppressed in one.suppressed):
                self._observer.suppressed(suppressed.reason.value)
        waited_s = queue_s(timings)
        account.current().queue_s += waited_s
        segments = merge([_partial_transcript(chunk, one.segments) for chunk, one in filtered])
        language, probability = language_of(results, options)
        transcript = Transcript(
            segments=segments if options.word_timestamps else tuple(replace(one, words=()) for one in segments),
            suppressed=tuple(suppressed for _, one in filtered for suppressed in one.suppressed),
            language=language,
            language_probability=probability,
            audio_s=len(audio) / SAMPLE_RATE_HZ,
            speech_s=plan.speech.seconds,
            model=model.name,
        )
        return Recognition(transcript, queue_s=waited_s, n_chunks=len(filtered), chunking=plan.chunking)


def queue_s(timings: Sequence[Timing]) -> float:
    """Return how long a call waited without any of its windows running, from the first submission to the last end."""
    if not timings:
        return 0.0
    waited_s, reached_s = 0.0, min(timing.submitted_s for timing in timings)
    for timing in sorted(timings, key=lambda timing: timing.started_s):
        waited_s += max(0.0, timing.started_s - reached_s)
        reached_s = max(reached_s, timing.ended_s)
    return waited_s


def _check(model: Model, options: DecodeOptions) -> None:
    """Raise InvalidInput if the model cannot do what the options request."""
    lacks = "this language" if model.is_multilingual else "a language other than English"
    allowed = {f"options.allowed_languages[{i}]": one for i, one in enumerate(options.allowed_languages)}
    for field, language in {"options.language": options.language, **allowed}.items():
        if language and language not in model.languages:
            why = f"model '{model.name}' does not know {lacks}"
            raise InvalidInput(field, why, reason="LANGUAGE_NOT_SUPPORTED")
    if options.task is Task.TRANSLATE and not model.is_multilingual:
        why = f"model '{model.name}' knows English only and cannot translate"
        raise InvalidInput("options.task", why, reason="TASK_NOT_SUPPORTED")


def _partial_transcript(chunk: Chunk, segments: tuple[Segment, ...]) -> PartialTranscript:
    return PartialTranscript(chunk.start / SAMPLE_RATE_HZ, chunk.end / SAMPLE_RATE_HZ, segments)
