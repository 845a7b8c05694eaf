"""Requests to a model, and how a batch of them is run.

A request is for one window: a stretch of audio of at most 30 s. Requests with equal batch keys are run together, in a
thread: their audio is encoded one by one, their texts are searched for in one batch, and words are aligned one by one.
Whether something is to be decoded again is decided elsewhere (`utterances.py`), with a new request, so that no request
waits for another's second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.quality import (
    Issue,
    compression_ratio,
    issues_of,
    may_loop,
    may_stop_early,
    repeats_itself,
    uncovered_from,
    without_loops,
)
from typeless_grpc.engine.decoding.sentences import SentencePolicy, TimedWord, sentences
from typeless_grpc.engine.interface import DecodeOptions, Task
from typeless_grpc.engine.model import DecodingTask, Encoded, Hypothesis, Model, RawSegment
from typeless_grpc.speech.languages import Languages, among, chosen
from typeless_grpc.speech.transcript import Segment, Word

# Of 293 recordings in twelve languages Hindi has the most tokens, 14.5 a second in its own script and 9 in others;
# English has 3. So a search first ends where nearly all texts have ended, because that bounds what a loop takes, and
# only a text that is cut off there and is no loop is searched for with more tokens than speech of any language has.
FIRST_TOKENS_AT_ONCE = 16
FIRST_TOKENS_PER_S = 7.0
MOST_TOKENS_AT_ONCE = 24
MOST_TOKENS_PER_S = 14.0

# Silence that is encoded where only the language is detected, for a text that is decoded with 30 s.
DETECTION_SILENCE_S = 1.0
# A text with a lower mean log probability is decoded once more (docs/measurements/second-pass.md).
LOW_LOGPROB = -0.5


@dataclass(frozen=True, eq=False)
class Window:
    """Audio to decode: float32, mono, 16 kHz, at most 30 s. speech: where someone speaks in it, in samples."""

    audio: Audio
    speech: tuple[Span, ...]

    @property
    def audio_s(self) -> float:
        """Its length in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ

    @property
    def speech_s(self) -> float:
        """How much speech there is in it, in seconds."""
        return sum(span.end - span.start for span in self.speech) / SAMPLE_RATE_HZ

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """From where to where someone speaks, in seconds; all of it where that is not known."""
        spans = [(span.start / SAMPLE_RATE_HZ, span.end / SAMPLE_RATE_HZ) for span in self.speech]
        return spans or [(0.0, self.audio_s)]


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """Search for a window's text once.

    options.language: None detects it; expected is then the language of the speech before, "" for none. silence_s: how
    much silence is encoded behind the audio. max_tokens: of the text; None is as many as speech can have.
    """

    window: Window
    options: DecodeOptions
    beam_size: int
    silence_s: float
    expected: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class DetectRequest:
    """Detect a window's language. The fields are those of DecodeRequest."""

    window: Window
    options: DecodeOptions
    silence_s: float
    expected: str = ""


@dataclass(frozen=True, eq=False)
class FallbackRequest:
    """Decode a window as faster-whisper does, with temperatures in turn until its checks pass. expected: as above."""

    window: Window
    options: DecodeOptions
    beam_size: int
    temperatures: Sequence[float]
    expected: str = ""


Request = DecodeRequest | DetectRequest | FallbackRequest


@dataclass(frozen=True)
class DecodeResult:
    """What the model made of a window.

    segments: times in seconds of the window; those of looped are repetitions that nobody spoke. languages: as detected,
    empty where the language was given. issues: why the text may be wrong. rest_s: where speech begins that the text
    leaves out, None where it leaves nothing out. n_tokens: that the search wrote.
    """

    segments: tuple[RawSegment, ...]
    language: str
    language_probability: float
    languages: Languages = ()
    looped: tuple[RawSegment, ...] = ()
    issues: frozenset[Issue] = frozenset()
    rest_s: float | None = None
    n_tokens: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(one.segment.text for one in self.segments)

    @property
    def avg_logprob(self) -> float:
        """The mean log probability of the least likely segment's tokens; of no text, less than of any."""
        return min((one.avg_logprob for one in self.segments), default=-math.inf)


@dataclass(frozen=True)
class Language:
    """The language that a window is in. languages: as detected, empty where it was given."""

    code: str
    probability: float
    languages: Languages = ()


IsWanted = Callable[[], bool]  # whether somebody still waits; asked between steps, from any thread


def batch_key(model: Model, request: Request) -> Hashable:
    """Requests with equal keys can be run together, whatever else they are for."""
    match request:
        case FallbackRequest():
            return (model.name, object())
        case DetectRequest():
            return (model.name, "language")
        case DecodeRequest():
            task = task_of(request.options, request.options.language or "en")
            n_positions = model.n_positions(request.window.audio_s, request.silence_s)
            return (model.name, n_positions, request.beam_size, model.n_prompt_tokens(task))


def run(model: Model, requests: Sequence[Request], is_wanted: Sequence[IsWanted]) -> list[DecodeResult | None]:
    """Run requests with equal batch keys: a result for each, None for one that nobody waits for any more."""
    results: list[DecodeResult | None] = [None] * len(requests)
    decodes: list[tuple[int, DecodeRequest, IsWanted]] = []
    for index, (request, wanted) in enumerate(zip(requests, is_wanted, strict=True)):
        if not wanted():
            continue
        match request:
            case DecodeRequest():
                decodes.append((index, request, wanted))
            case DetectRequest():
                encoded = model.encode(request.window.audio, request.silence_s)
                language = _language(model, encoded, request)
                results[index] = DecodeResult((), language.code, language.probability, language.languages)
            case FallbackRequest():
                results[index] = _with_fallback(model, request, wanted)
    for index, result in _decode(model, decodes):
        results[index] = result
    return results


def warm_up(model: Model) -> None:
    """Decode a second of silence, so that the first caller does not pay for lazy initialization."""
    window = Window(np.zeros(SAMPLE_RATE_HZ, np.float32), ())
    options = DecodeOptions(language="en", word_timestamps=True)
    run(model, [DecodeRequest(window, options, beam_size=1, silence_s=1.0)], [lambda: True])


def task_of(options: DecodeOptions, language: str) -> DecodingTask:
    """The decoder's part of a caller's options."""
    return DecodingTask(language, options.task, options.prompt, tuple(options.hotwords))


@dataclass(frozen=True)
class _Item:
    """A request of a batch, once its audio is encoded."""

    index: int
    request: DecodeRequest
    is_wanted: IsWanted
    encoded: Encoded
    language: Language

    @property
    def task(self) -> DecodingTask:
        return task_of(self.request.options, self.language.code)


def _decode(model: Model, decodes: Sequence[tuple[int, DecodeRequest, IsWanted]]) -> list[tuple[int, DecodeResult]]:
    items = []
    for index, request, is_wanted in decodes:
        if is_wanted():
            encoded = model.encode(request.window.audio, request.silence_s)
            items.append(_Item(index, request, is_wanted, encoded, _language(model, encoded, request)))
    items = [item for item in items if item.is_wanted()]
    if not items:
        return []
    hypotheses = _search(model, items, _first_tokens)
    dense = [
        place
        for place, (item, one) in enumerate(zip(items, hypotheses, strict=True))
        if item.request.max_tokens is None and one.is_cut_off and not repeats_itself(one.text)
    ]
    for place, one in zip(dense, _search(model, [items[place] for place in dense], _most_tokens), strict=True):
        hypotheses[place] = one
    return [
        (item.index, _result(model, item, hypothesis))
        for item, hypothesis in zip(items, hypotheses, strict=True)
        if item.is_wanted()
    ]


def _search(model: Model, items: Sequence[_Item], limit: Callable[[DecodeRequest], int]) -> list[Hypothesis]:
    """The texts of items. limit: of a text's tokens; one that reaches its own is cut off, whatever others may have."""
    if not items:
        return []
    limits = [limit(item.request) for item in items]
    found = model.decode(
        [item.encoded for item in items],
        [item.task for item in items],
        beam_size=items[0].request.beam_size,
        max_tokens=max(limits),
    )
    return [
        replace(one, is_cut_off=True) if len(one.tokens) >= most else one
        for one, most in zip(found, limits, strict=True)
    ]


def _language(model: Model, encoded: Encoded | None, request: Request) -> Language:
    if request.options.language:
        return Language(request.options.language, 1.0)
    encoded = encoded or model.encode(request.window.audio, DETECTION_SILENCE_S)
    languages = among(model.detect_language(encoded), request.options.allowed_languages)
    code, probability = chosen(languages, request.expected, request.window.speech_s)
    return Language(code, probability, languages)


def _first_tokens(request: DecodeRequest) -> int:
    return request.max_tokens or FIRST_TOKENS_AT_ONCE + math.ceil(FIRST_TOKENS_PER_S * request.window.audio_s)


def _most_tokens(request: DecodeRequest) -> int:
    return MOST_TOKENS_AT_ONCE + math.ceil(MOST_TOKENS_PER_S * request.window.audio_s)


def _result(model: Model, item: _Item, hypothesis: Hypothesis) -> DecodeResult:
    window, options = item.request.window, item.request.options
    words: Sequence[TimedWord] = ()
    looped: Sequence[TimedWord] = ()
    rest_s = None
    n_tokens = len(hypothesis.tokens)
    # The words of a translation have other places than those that were spoken.
    is_translated = options.task is Task.TRANSLATE
    is_loop = hypothesis.is_cut_off if is_translated else may_loop(hypothesis)
    is_short = not is_translated and may_stop_early(hypothesis.text, window.speech_s)
    if hypothesis.text and (options.word_timestamps or is_loop or is_short):
        words = model.align(item.encoded, item.task, hypothesis.tokens)
        if is_loop:
            found = without_loops(words)
            words, looped = found.words, found.looped
            if looped:
                hypothesis = _spoken(hypothesis, words)
        if is_short or (looped and not is_translated):
            rest_s = uncovered_from(words, window.spans_s)
    end_s = window.spans_s[-1][1] if rest_s is None else words[-1].end_s
    segments = _segments(item, hypothesis, words if options.word_timestamps else (), end_s)
    return DecodeResult(
        segments,
        item.language.code,
        item.language.probability,
        item.language.languages,
        _segments(item, _spoken(hypothesis, looped), looped, end_s) if looped else (),
        issues_of(hypothesis, window.speech_s, low_logprob=LOW_LOGPROB),
        rest_s,
        n_tokens,
    )


def _spoken(hypothesis: Hypothesis, words: Sequence[TimedWord]) -> Hypothesis:
    """The hypothesis with only these words of its text."""
    probabilities = [max(word.probability, 1e-6) for word in words]
    return replace(
        hypothesis,
        text="".join(word.text for word in words).strip(),
        avg_logprob=sum(map(math.log, probabilities)) / len(probabilities) if probabilities else 0.0,
        is_cut_off=False,
    )


def _segments(item: _Item, hypothesis: Hypothesis, words: Sequence[TimedWord], end_s: float) -> tuple[RawSegment, ...]:
    """A text as segments: a sentence each where words have times, else one from the first speech to end_s."""
    spoken = [word for word in words if word.text.strip()]
    groups = [(group[0].start_s, group[-1].end_s, group) for group in sentences(spoken, SentencePolicy())]
    if not groups and hypothesis.text:
        groups = [(item.request.window.spans_s[0][0], end_s, [])]
    ratio = compression_ratio(hypothesis.text)
    return tuple(
        RawSegment(_segment(item, hypothesis, start_s, end_s, group), hypothesis.avg_logprob, ratio)
        for start_s, end_s, group in groups
    )


def _segment(item: _Item, hypothesis: Hypothesis, start_s: float, end_s: float, words: Sequence[TimedWord]) -> Segment:
    audio_s = item.request.window.audio_s
    return Segment(
        start_s=min(start_s, audio_s),
        end_s=min(end_s, audio_s),
        text="".join(word.text for word in words).strip() if words else hypothesis.text,
        language=item.language.code,
        confidence=hypothesis.confidence,
        no_speech_probability=hypothesis.no_speech_probability,
        words=tuple(_word(word, audio_s) for word in words),
    )


def _word(word: TimedWord, audio_s: float) -> Word:
    return Word(
        word.text.strip(), min(word.start_s, audio_s), min(word.end_s, audio_s), min(1.0, max(0.0, word.probability))
    )


def _with_fallback(model: Model, request: FallbackRequest, is_wanted: IsWanted) -> DecodeResult | None:
    language = _language(model, None, request)
    segments = model.decode_with_fallback(
        request.window.audio,
        task_of(request.options, language.code),
        beam_size=request.beam_size,
        temperatures=request.temperatures,
        word_timestamps=request.options.word_timestamps,
        is_wanted=is_wanted,
    )
    if segments is None:
        return None
    return DecodeResult(tuple(segments), language.code, language.probability, language.languages)
