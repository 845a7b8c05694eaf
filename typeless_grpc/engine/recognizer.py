"""A call's way through the engine: find the speech, cut it into windows, decode them, judge what came out."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Probabilities, Span, SpeechSpanOptions, speech_spans
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket, VoiceActivity
from typeless_grpc.engine.models import ModelPool
from typeless_grpc.engine.transcript import Segment, Suppressed, SuppressionReason, Transcript
from typeless_grpc.engine.whisper import WINDOW_S, Heard, WhisperModel
from typeless_grpc.engine.window import plan
from typeless_grpc.errors import InvalidInput, Overloaded

# faster_whisper.transcribe.WhisperModel.transcribe, defaults of the thresholds of these names.
NO_SPEECH_THRESHOLD = 0.6
LOG_PROB_THRESHOLD = -1.0
COMPRESSION_RATIO_THRESHOLD = 2.4

T = TypeVar("T")


class SpeechFinder(Protocol):
    """Tells speech from the rest, frame by frame; `audio.vad.SpeechDetector` is the real one."""

    def recording_probabilities(self, audio: Audio) -> Probabilities: ...


@dataclass(frozen=True)
class RecognizerOptions:
    """default_model: for calls that name none. beam_size: likewise. max_calls: at once, waiting ones included."""

    default_model: str
    beam_size: int = 1
    max_calls: int = 64


class Recognizer:
    """The engine over loaded models: windows of all calls take turns, one at a time, in `executor`'s threads."""

    def __init__(
        self, models: ModelPool[WhisperModel], speech: SpeechFinder, options: RecognizerOptions, executor: Executor
    ) -> None:
        self._models = models
        self._speech = speech
        self._options = options
        self._executor = executor
        self._turn = asyncio.Lock()
        self._n_calls = 0

    @property
    def backlog_s(self) -> float:
        """See `Engine`; this engine does not measure its speed."""
        return 0.0

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one utterance; see `Engine`."""
        return await self.transcribe(utterance, options, ticket)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """Transcribe one recording; see `Engine`."""
        if self._n_calls >= self._options.max_calls:
            raise Overloaded(f"The engine has {self._n_calls} calls, its limit. Try again, or another replica.")
        self._n_calls += 1
        try:
            return await self._transcribe(audio, options)
        finally:
            self._n_calls -= 1

    async def _transcribe(self, audio: Audio, options: DecodeOptions) -> Recognition:
        name = options.model or self._options.default_model
        model = await self._models.get(name)
        _check_language(model, options.language)
        spans = await self._off_loop(lambda _: self._spans(audio, options.voice_activity))
        windows = _windows(spans, options.voice_activity)
        judged = Judged()
        queue_s = 0.0
        language, probability = options.language or "", 1.0 if options.language else 0.0
        for window in windows:
            piece = audio[window.start : window.end]
            asked_s = time.monotonic()
            async with self._turn:
                queue_s += time.monotonic() - asked_s
                if not language:
                    language, probability = await self._off_loop(functools.partial(_detect, model, piece))
                work = functools.partial(self._decode, model, piece, options, language)
                heard = await self._off_loop(work)
            judged.add(heard, window.start / SAMPLE_RATE_HZ)
        transcript = Transcript(
            segments=tuple(judged.segments),
            suppressed=tuple(judged.suppressed),
            language=language,
            language_probability=probability,
            audio_s=len(audio) / SAMPLE_RATE_HZ,
            speech_s=sum(span.end - span.start for span in spans) / SAMPLE_RATE_HZ,
            model=name,
        )
        return Recognition(transcript, queue_s, len(windows))

    def _spans(self, audio: Audio, asked: VoiceActivity) -> list[Span]:
        return speech_spans(self._speech.recording_probabilities(audio), _span_options(asked), len(audio))

    def _decode(
        self, model: WhisperModel, piece: Audio, options: DecodeOptions, language: str, cancelled: Callable[[], bool]
    ) -> list[Heard]:
        beam_size = options.beam_size or self._options.beam_size
        return list(model.decode(piece, options, language, beam_size=beam_size, cancelled=cancelled))

    async def _off_loop(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run work in a thread; when this task is cancelled, tell it and wait for it, so that it is truly over."""
        gone = threading.Event()
        running = asyncio.get_running_loop().run_in_executor(self._executor, work, gone.is_set)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            gone.set()
            await asyncio.wait([running])
            raise


class Judged:
    """Segments sorted into what was said and what the model only made up."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.suppressed: list[Suppressed] = []

    def add(self, heard: Sequence[Heard], offset_s: float) -> None:
        """Judge the segments of a window that starts at offset_s."""
        for one in heard:
            segment = _moved(one.segment, offset_s)
            if reason := _why_not_speech(one):
                self.suppressed.append(Suppressed(segment, reason))
            elif segment.text:
                self.segments.append(segment)


def _why_not_speech(heard: Heard) -> SuppressionReason | None:
    if heard.segment.no_speech_probability > NO_SPEECH_THRESHOLD and heard.avg_logprob < LOG_PROB_THRESHOLD:
        return SuppressionReason.NO_SPEECH
    if heard.compression_ratio > COMPRESSION_RATIO_THRESHOLD:
        return SuppressionReason.REPETITION
    return None


def _moved(segment: Segment, offset_s: float) -> Segment:
    words = tuple(replace(w, start_s=w.start_s + offset_s, end_s=w.end_s + offset_s) for w in segment.words)
    return replace(segment, start_s=segment.start_s + offset_s, end_s=segment.end_s + offset_s, words=words)


def _detect(model: WhisperModel, piece: Audio, _cancelled: Callable[[], bool]) -> tuple[str, float]:
    return model.detect_language(piece)


def _check_language(model: WhisperModel, language: str | None) -> None:
    if language and language not in model.languages:
        known = "English only" if not model.is_multilingual else "not this language"
        raise InvalidInput("options.language", f"model '{model.name}' knows {known}", reason="LANGUAGE_NOT_SUPPORTED")


def _windows(spans: list[Span], asked: VoiceActivity) -> list[Span]:
    """Utterances as the caller defines them are decoded one by one; left to us, they share windows."""
    if asked.end_silence_s is not None:
        return spans
    return plan(spans, max_window_samples=round(_max_utterance_s(asked) * SAMPLE_RATE_HZ))


def _max_utterance_s(asked: VoiceActivity) -> float:
    return min(asked.max_utterance_s or WINDOW_S, WINDOW_S)


def _span_options(asked: VoiceActivity) -> SpeechSpanOptions:
    """Our choices where the caller made none."""
    return SpeechSpanOptions(
        threshold=asked.threshold if asked.threshold is not None else 0.5,
        min_silence_ms=_ms(asked.end_silence_s, 2000),
        speech_pad_ms=_ms(asked.speech_padding_s, 400),
        max_speech_s=_max_utterance_s(asked),
    )


def _ms(seconds: float | None, default_ms: int) -> int:
    return default_ms if seconds is None else round(seconds * 1000)
