"""A call's way through the engine: find the speech, cut it into pieces, decode them side by side, judge the result."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import DetectorState, Probabilities, Span, SpeechSpanOptions, speech_spans
from typeless_grpc.engine.cuts import CutPolicy, Piece, plan
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Task, Ticket, VoiceActivity
from typeless_grpc.engine.judgement import Judgement
from typeless_grpc.engine.likelihood import likely_speech
from typeless_grpc.engine.models import ModelPool
from typeless_grpc.engine.scheduler import Scheduler, Turn
from typeless_grpc.engine.scheduler import Task as Scheduled
from typeless_grpc.engine.transcript import Transcript
from typeless_grpc.engine.verification import Checks
from typeless_grpc.engine.whisper import TEMPERATURES, Heard, WhisperModel, Window
from typeless_grpc.engine.window import FULL_WINDOW_S, WindowPolicy
from typeless_grpc.errors import InvalidInput

T = TypeVar("T")

# A window's expected cost in seconds of an idle engine, for each second shown, and once; only ratios matter, the
# scheduler measures the rest (docs/encoder-window.md: 15 s take 0.17 s to encode and about as much to decode).
COST_PER_S = 0.02
COST_AT_ONCE = 0.05

# Lower than Silero's 0.5: faint speech costs a word where it is missed, noise only some time (docs/encoder-window.md).
SPEECH_THRESHOLD = 0.4


# Voice activity is asked for this many samples at a time: 30 s.
DETECTION_STEP = 30 * SAMPLE_RATE_HZ


class SpeechFinder(Protocol):
    """Tells speech from the rest, frame by frame; `audio.vad.SpeechDetector` is the real one."""

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities: ...

    def finish(self, state: DetectorState) -> Probabilities: ...


@dataclass(frozen=True)
class RecognizerOptions:
    """default_model: for calls that name none. beam_size: likewise.

    windows, checks, cuts: see their modules. max_windows_at_once: of one call in the line, so that a recording of an
    hour neither fills it nor holds all of its features in memory.
    """

    default_model: str
    beam_size: int = 1
    windows: WindowPolicy = field(default_factory=WindowPolicy)
    checks: Checks = field(default_factory=Checks)
    cuts: CutPolicy = field(default_factory=CutPolicy)
    max_windows_at_once: int = 16


WindowScheduler = Scheduler["Decode", Heard]


@dataclass(frozen=True)
class Decode:
    """A window and the model that is to decode it."""

    model: WhisperModel
    window: Window


@dataclass(frozen=True)
class _Call:
    """What all windows of a call share. turns: of those that ran, in the order of their ends."""

    model: WhisperModel
    audio: Audio
    options: DecodeOptions
    ticket: Ticket
    turns: list[Turn]


def run_batch(tasks: Sequence[Scheduled[Decode, Heard]]) -> Sequence[Heard | Exception | None]:
    """What the scheduler runs: a batch is of one model, because the model is part of its key."""
    model = tasks[0].work.model
    return model.decode([task.work.window for task in tasks], [task.is_wanted for task in tasks])


class Recognizer:
    """The engine over loaded models."""

    def __init__(
        self,
        models: ModelPool[WhisperModel],
        speech: SpeechFinder,
        scheduler: WindowScheduler,
        options: RecognizerOptions,
        executor: Executor,
    ) -> None:
        """executor: threads for voice activity."""
        self._models = models
        self._speech = speech
        self._scheduler = scheduler
        self._options = options
        self._executor = executor

    @property
    def backlog_s(self) -> float:
        """See `Engine`."""
        return self._scheduler.backlog_s(Lane.UNARY)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe a recording of any length; see `Engine`."""
        self._scheduler.check(0.0, ticket)
        async with self._model(options) as model:
            with self._scheduler.coming():
                pieces = await self._off_loop(self._pieces, audio, options.voice_activity)
            return await self._recognize(model, audio, pieces, options, ticket)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance as it is; see `Engine`."""
        if len(utterance) > FULL_WINDOW_S * SAMPLE_RATE_HZ:
            raise InvalidInput("audio", f"an utterance has at most {FULL_WINDOW_S:.0f} s")
        async with self._model(options) as model:
            speech: tuple[Span, ...] = (Span(0, len(utterance)),)
            if ticket.lane is not Lane.LIVE_INTERIM:
                with self._scheduler.coming():
                    speech = await self._off_loop(self._speech_in, utterance, options.voice_activity)
            whole = Piece(0, len(utterance), speech, most_pause=len(utterance))
            return await self._recognize(model, utterance, [whole], options, ticket)

    @asynccontextmanager
    async def _model(self, options: DecodeOptions) -> AsyncIterator[WhisperModel]:
        async with self._models.use(options.model or self._options.default_model) as model:
            _check(model, options)
            yield model

    async def _off_loop(self, find: Callable[..., T], *of: Any) -> T:
        """Look at audio in a thread that stops, after half a minute of audio at most, once the caller has gone."""
        gone = threading.Event()
        work = functools.partial(find, *of, gone.is_set)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            gone.set()

    def _pieces(self, audio: Audio, asked: VoiceActivity, cancelled: Callable[[], bool]) -> list[Piece]:
        speech = self._speech_in(audio, asked, cancelled)
        return plan(speech, len(audio), _cut_policy(self._options.cuts, asked))

    def _speech_in(self, audio: Audio, asked: VoiceActivity, cancelled: Callable[[], bool]) -> tuple[Span, ...]:
        state = DetectorState()
        parts = []
        for start in range(0, len(audio), DETECTION_STEP):
            if cancelled():
                return ()
            parts.append(self._speech.probabilities(audio[start : start + DETECTION_STEP], state))
        probabilities = np.concatenate([*parts, self._speech.finish(state)])
        spans = speech_spans(probabilities, _span_options(asked), len(audio))
        # Whoever sets the threshold says what speech is.
        return tuple(likely_speech(spans, probabilities) if asked.threshold is None else spans)

    async def _recognize(
        self, model: WhisperModel, audio: Audio, pieces: Sequence[Piece], options: DecodeOptions, ticket: Ticket
    ) -> Recognition:
        self._scheduler.check(
            sum(_cost_s(self._options.windows.choose(piece.audio_s, options.language)) for piece in pieces), ticket
        )
        judgement = Judgement()
        turns: list[Turn] = []
        call = _Call(model, audio, options, ticket, turns)
        heard = await self._in_one_language(call, pieces)
        language, probability = _language(heard, options)
        for piece, one in zip(pieces, heard, strict=True):
            judgement.add(one, piece)
        transcript = Transcript(
            segments=tuple(judgement.segments),
            suppressed=tuple(judgement.suppressed),
            language=language,
            language_probability=probability,
            audio_s=len(audio) / SAMPLE_RATE_HZ,
            speech_s=sum(span.end - span.start for piece in pieces for span in piece.speech) / SAMPLE_RATE_HZ,
            model=model.name,
        )
        return Recognition(transcript, queue_s=waited_s(turns), n_chunks=len(pieces))

    async def _in_one_language(self, call: _Call, pieces: Sequence[Piece]) -> list[Heard]:
        """Decode all pieces, in the language that the longest of the first few is found to be in."""
        if call.options.language or len(pieces) <= 1:
            return await self._side_by_side(call, pieces)
        first = max(pieces[:3], key=lambda piece: piece.audio_s)
        place = pieces.index(first)
        heard = await self._decode(call, first)
        known = replace(call, options=replace(call.options, language=heard.language))
        rest = await self._side_by_side(known, [piece for piece in pieces if piece is not first])
        return [*rest[:place], heard, *rest[place:]]

    async def _side_by_side(self, call: _Call, pieces: Sequence[Piece]) -> list[Heard]:
        places = asyncio.Semaphore(self._options.max_windows_at_once)

        async def decode(piece: Piece) -> Heard:
            async with places:
                return await self._decode(call, piece)

        try:
            async with asyncio.TaskGroup() as group:
                decoding = [group.create_task(decode(piece)) for piece in pieces]
        except* Exception as errors:  # the first one ended the others; the caller needs no group of one
            raise errors.exceptions[0] from None
        return [task.result() for task in decoding]

    async def _decode(self, call: _Call, piece: Piece) -> Heard:
        """Decode a piece in growing windows until the result can be trusted, at last as faster-whisper does it."""
        policy = self._options.windows
        language = call.options.language if call.model.is_multilingual else "en"
        window = Window(
            audio=piece.shown(call.audio),
            speech=piece.shown_speech(),
            shown_s=FULL_WINDOW_S,
            options=call.options,
            beam_size=call.options.beam_size or self._options.beam_size,
            checks=self._options.checks,
        )
        if call.ticket.lane is Lane.LIVE_INTERIM:
            # Soon replaced by another: worth one look, and no second one.
            return await self._submit(
                call, replace(window, shown_s=policy.choose(piece.audio_s, language), checks=None)
            )
        if policy.verified and (call.options.temperatures or TEMPERATURES)[0] == 0.0:
            for shown_s in policy.ladder(piece.audio_s, language):
                heard = await self._submit(call, replace(window, shown_s=shown_s))
                if not heard.doubts:
                    return heard
        return await self._submit(call, replace(window, thorough=True))

    async def _submit(self, call: _Call, window: Window) -> Heard:
        done = await self._scheduler.submit(
            Decode(call.model, window),
            key=call.model.batch_key(window),
            cost_s=_cost_s(window.shown_s),
            ticket=call.ticket,
            is_begun=bool(call.turns),
        )
        call.turns.append(done.turn)
        return done.result


def _check(model: WhisperModel, options: DecodeOptions) -> None:
    if options.language and options.language not in model.languages:
        known = "this language" if model.is_multilingual else "a language other than English"
        why = f"model '{model.name}' does not know {known}"
        raise InvalidInput("options.language", why, reason="LANGUAGE_NOT_SUPPORTED")
    if options.task is Task.TRANSLATE and not model.is_multilingual:
        why = f"model '{model.name}' knows English only, and has nothing to translate"
        raise InvalidInput("options.task", why, reason="TASK_NOT_SUPPORTED")


def _language(heard: Sequence[Heard], options: DecodeOptions) -> tuple[str, float]:
    """The recording's language and its probability: of the piece it was detected on, else as the caller said."""
    if options.language:
        return options.language, 1.0
    detected = [one for one in heard if one.language_probability < 1.0] or heard
    return (detected[0].language, detected[0].language_probability) if detected else ("", 0.0)


def waited_s(turns: Sequence[Turn]) -> float:
    """How long a call only waited: from its first window's arrival to its last one's end, less what any of them ran."""
    if not turns:
        return 0.0
    waited, reached_s = 0.0, min(turn.submitted_s for turn in turns)
    for turn in sorted(turns, key=lambda turn: turn.started_s):
        waited += max(0.0, turn.started_s - reached_s)
        reached_s = max(reached_s, turn.ended_s)
    return waited


def _cost_s(shown_s: float) -> float:
    return COST_AT_ONCE + COST_PER_S * shown_s


def _span_options(asked: VoiceActivity) -> SpeechSpanOptions:
    """Fine enough to find every pause; which of them are cuts is decided later."""
    return SpeechSpanOptions(
        threshold=asked.threshold if asked.threshold is not None else SPEECH_THRESHOLD,
        min_speech_ms=60,
        min_silence_ms=160,
        speech_pad_ms=0,
    )


def _cut_policy(ours: CutPolicy, asked: VoiceActivity) -> CutPolicy:
    """Our choices where the caller made none; the margin of the shortest window stays."""
    return replace(
        ours,
        longest_s=min(ours.longest_s, asked.max_utterance_s or ours.longest_s),
        padding_s=ours.padding_s if asked.speech_padding_s is None else asked.speech_padding_s,
        silence_s=ours.silence_s if asked.end_silence_s is None else asked.end_silence_s,
    )
