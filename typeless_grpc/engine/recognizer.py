"""A call's way through the engine: find the speech, cut it into pieces, decode them side by side, filter the result."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import (
    DetectorState,
    Probabilities,
    Span,
    SpeechSpanOptions,
    VoiceActivityDetector,
    speech_spans,
)
from typeless_grpc.engine.decoding.chunks import Call, RecognizerOptions, UtteranceDecoder, WindowScheduler, language_of
from typeless_grpc.engine.decoding.hallucinations import filtered
from typeless_grpc.engine.decoding.merge import Stretch, merged
from typeless_grpc.engine.interface import Chunking, DecodeOptions, Lane, Recognition, Task, Ticket, VoiceActivity
from typeless_grpc.engine.model import FULL_WINDOW_S, Model
from typeless_grpc.engine.planning.cuts import Piece
from typeless_grpc.engine.planning.speech import unlikely_speech
from typeless_grpc.engine.planning.strategies import Plan, planned
from typeless_grpc.engine.pool import ModelPool
from typeless_grpc.engine.scheduler import Turn
from typeless_grpc.errors import InvalidInput
from typeless_grpc.speech.transcript import Segment, Transcript

T = TypeVar("T")

# Lower than Silero's 0.5: faint speech costs a word where it is missed, noise only some time
# (docs/measurements/speech.md).
SPEECH_THRESHOLD = 0.4


# Voice activity is asked for this many samples at a time: 30 s.
DETECTION_STEP = 30 * SAMPLE_RATE_HZ


class Recognizer:
    """The engine over loaded models."""

    def __init__(
        self,
        models: ModelPool[Model],
        detector: VoiceActivityDetector,
        scheduler: WindowScheduler,
        options: RecognizerOptions,
        looking: Executor,
        looking_live: Executor,
    ) -> None:
        """looking: threads for voice activity; looking_live: likewise, of utterances, which must not wait for hours."""
        self._models = models
        self._detector = detector
        self._scheduler = scheduler
        self._decoder = UtteranceDecoder(scheduler, options)
        self._options = options
        self._looking, self._looking_live = looking, looking_live

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
        self._scheduler.check(0.0, ticket)
        async with self._model(options) as model:
            with self._scheduler.coming():
                plan = await self._looked(
                    audio, self._looking, functools.partial(self._plan, n_samples=len(audio), options=options)
                )
            return await self._recognize(model, audio, plan, options, ticket)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance as it is; see `Engine`."""
        if len(utterance) > FULL_WINDOW_S * SAMPLE_RATE_HZ:
            raise InvalidInput("audio", f"an utterance has at most {FULL_WINDOW_S:.0f} s")
        async with self._model(options) as model:
            speech: tuple[Span, ...] = (Span(0, len(utterance)),)
            unlikely: tuple[Span, ...] = ()
            if ticket.lane is not Lane.LIVE_INTERIM:
                with self._scheduler.coming():
                    find = functools.partial(_speech_in, n_samples=len(utterance), requested=options.voice_activity)
                    speech, unlikely = await self._looked(utterance, self._looking_live, find)
            whole = Plan(
                Chunking.WHOLE, (Piece(0, len(utterance), speech, most_pause=len(utterance)),), speech, unlikely
            )
            return await self._recognize(model, utterance, whole, options, ticket)

    @asynccontextmanager
    async def _model(self, options: DecodeOptions) -> AsyncIterator[Model]:
        async with self._models.use(options.model or self._options.default_model) as model:
            _check(model, options)
            yield model

    async def _looked(self, audio: Audio, threads: Executor, then: Callable[[Probabilities], T]) -> T:
        """What then makes of the probabilities of speech in audio, all of it in threads.

        Half a minute of audio at a time, so that no recording is long in the way of another, and no look outlives its
        caller for long.
        """
        state = DetectorState()
        parts: list[Probabilities] = []
        loop = asyncio.get_running_loop()
        n_last = max(0, len(audio) - 1) // DETECTION_STEP * DETECTION_STEP

        def look(start: int) -> None:
            parts.append(self._detector.probabilities(audio[start : start + DETECTION_STEP], state))

        def last_look() -> T:
            look(n_last)
            return then(np.concatenate([*parts, self._detector.finish(state)]))

        for start in range(0, n_last, DETECTION_STEP):
            await loop.run_in_executor(threads, look, start)
        return await loop.run_in_executor(threads, last_look)

    def _plan(self, probabilities: Probabilities, n_samples: int, options: DecodeOptions) -> Plan:
        speech, unlikely = _speech_in(probabilities, n_samples, options.voice_activity)
        plan = planned(options.chunking, speech, n_samples, self._options.cuts.asked(options.voice_activity))
        return replace(plan, unlikely=unlikely)

    async def _recognize(
        self, model: Model, audio: Audio, plan: Plan, options: DecodeOptions, ticket: Ticket
    ) -> Recognition:
        self._scheduler.check(self._decoder.cost_s(plan), ticket)
        turns: list[Turn] = []
        call = Call(model, audio, options, ticket, turns, options.expected_language)
        decoded = await self._decoder.decoded(call, plan)
        results = [(piece, filtered(result, piece, plan.unlikely)) for piece, result in decoded]
        segments = merged([_stretch(piece, result.segments) for piece, result in results])
        language, probability = language_of(decoded, options)
        transcript = Transcript(
            segments=segments if options.word_timestamps else tuple(replace(one, words=()) for one in segments),
            suppressed=tuple(one for _, result in results for one in result.suppressed),
            language=language,
            language_probability=probability,
            audio_s=len(audio) / SAMPLE_RATE_HZ,
            speech_s=sum(span.end - span.start for span in plan.speech) / SAMPLE_RATE_HZ,
            model=model.name,
        )
        return Recognition(transcript, queue_s=waited_s(turns), n_chunks=len(results), chunking=plan.chunking)


def _check(model: Model, options: DecodeOptions) -> None:
    """Raise InvalidInput for what the model cannot do."""
    lacks = "this language" if model.is_multilingual else "a language other than English"
    asked = {f"options.allowed_languages[{i}]": one for i, one in enumerate(options.allowed_languages)}
    for field, language in {"options.language": options.language, **asked}.items():
        if language and language not in model.languages:
            why = f"model '{model.name}' does not know {lacks}"
            raise InvalidInput(field, why, reason="LANGUAGE_NOT_SUPPORTED")
    if options.task is Task.TRANSLATE and not model.is_multilingual:
        why = f"model '{model.name}' knows English only, and has nothing to translate"
        raise InvalidInput("options.task", why, reason="TASK_NOT_SUPPORTED")


def _stretch(piece: Piece, segments: tuple[Segment, ...]) -> Stretch:
    return Stretch(piece.start / SAMPLE_RATE_HZ, piece.end / SAMPLE_RATE_HZ, segments)


def waited_s(turns: Sequence[Turn]) -> float:
    """How long a call only waited: from its first window's arrival to its last one's end, less what any of them ran."""
    if not turns:
        return 0.0
    waited, reached_s = 0.0, min(turn.submitted_s for turn in turns)
    for turn in sorted(turns, key=lambda turn: turn.started_s):
        waited += max(0.0, turn.started_s - reached_s)
        reached_s = max(reached_s, turn.ended_s)
    return waited


def _speech_in(
    probabilities: Probabilities, n_samples: int, requested: VoiceActivity
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Return the speech, and the part of it that is unlikely: none where the caller sets the threshold."""
    spans = speech_spans(probabilities, _span_options(requested), n_samples)
    unlikely = unlikely_speech(spans, probabilities) if requested.threshold is None else ()
    return tuple(spans), tuple(unlikely)


def _span_options(asked: VoiceActivity) -> SpeechSpanOptions:
    """Fine enough to find every pause; which of them are cuts is decided later."""
    return SpeechSpanOptions(
        threshold=asked.threshold if asked.threshold is not None else SPEECH_THRESHOLD,
        min_speech_ms=60,
        min_silence_ms=160,
        speech_pad_ms=0,
    )
