"""Runs a batch of requests on a model, in a thread.

Each request is for one window of at most 30 s. The audio of a batch is encoded one by one, the texts are searched for
together, and words are aligned one by one. Whether something is decoded again is decided in `chunk_decoder.py`, with a
new request, so that no request waits for the second pass of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.decoding.loops import may_loop, remove_loops, repeats_itself
from typeless_grpc.engine.decoding.quality import issues_of, may_stop_early, uncovered_from
from typeless_grpc.engine.decoding.requests import (
    DecodeRequest,
    DecodeResult,
    DetectRequest,
    FallbackRequest,
    Request,
    Window,
    task_of,
)
from typeless_grpc.engine.decoding.segments import segments_of
from typeless_grpc.engine.interface import DecodeOptions, Task
from typeless_grpc.engine.model import DecodingTask, Encoded, Hypothesis, Model, TimedWord
from typeless_grpc.speech.languages import Languages, among, chosen

# Of 293 recordings in twelve languages, Hindi has the most tokens: 14.5 a second in its own script and 9 in others;
# English has 3. The first search ends where nearly all texts have ended, which bounds the time that a loop takes. A
# text that is cut off there and is no loop is searched for again, with more tokens than speech of any language has.
FIRST_TOKENS_AT_ONCE = 16
FIRST_TOKENS_PER_S = 7.0
MOST_TOKENS_AT_ONCE = 24
MOST_TOKENS_PER_S = 14.0

# Silence that is encoded to detect the language of a window that is then decoded with temperatures.
DETECTION_SILENCE_S = 1.0
# Below this mean log probability a text has low confidence (docs/measurements/second-pass.md).
LOW_LOGPROB = -0.5

IsWanted = Callable[[], bool]  # whether the caller still waits; called between steps, from any thread


@dataclass(frozen=True)
class DetectedLanguage:
    """The language of a window. candidates: all that were detected; empty if the language was given."""

    code: str
    probability: float
    candidates: Languages = ()


def run(model: Model, requests: Sequence[Request], is_wanted: Sequence[IsWanted]) -> list[DecodeResult | None]:
    """Run requests with equal batch keys. Returns a result for each; None for those that are not wanted any more."""
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
                results[index] = DecodeResult((), language.code, language.probability, language.candidates)
            case FallbackRequest():
                results[index] = _decode_with_fallback(model, request, wanted)
    for index, result in _decode(model, decodes):
        results[index] = result
    return results


def warm_up(model: Model) -> None:
    """Decode a second of silence, so that lazy initialization does not delay the first call."""
    window = Window(np.zeros(SAMPLE_RATE_HZ, np.float32), ())
    options = DecodeOptions(language="en", word_timestamps=True)
    run(model, [DecodeRequest(window, options, beam_size=1, silence_s=1.0)], [lambda: True])


@dataclass(frozen=True)
class _Item:
    """A request of a batch, with its encoded audio."""

    index: int
    request: DecodeRequest
    is_wanted: IsWanted
    encoded: Encoded
    language: DetectedLanguage

    @property
    def task(self) -> DecodingTask:
        return task_of(self.request.options, self.language.code)


def _decode(model: Model, decodes: Sequence[tuple[int, DecodeRequest, IsWanted]]) -> list[tuple[int, DecodeResult]]:
    """Encode the audio of requests, search for their texts together, and check them. Returns results by index."""
    items = []
    for index, request, is_wanted in decodes:
        if is_wanted():
            encoded = model.encode(request.window.audio, request.silence_s)
            items.append(_Item(index, request, is_wanted, encoded, _language(model, encoded, request)))
    items = [item for item in items if item.is_wanted()]
    if not items:
        return []
    hypotheses = _search(model, items, _first_tokens)
    incomplete = [
        position
        for position, (item, one) in enumerate(zip(items, hypotheses, strict=True))
        if item.request.max_tokens is None and one.is_cut_off and not repeats_itself(one.text)
    ]
    longer = _search(model, [items[position] for position in incomplete], _most_tokens)
    for position, hypothesis in zip(incomplete, longer, strict=True):
        hypotheses[position] = hypothesis
    return [
        (item.index, _result(model, item, hypothesis))
        for item, hypothesis in zip(items, hypotheses, strict=True)
        if item.is_wanted()
    ]


def _search(model: Model, items: Sequence[_Item], limit: Callable[[DecodeRequest], int]) -> list[Hypothesis]:
    """Search for the texts of items, together. limit: the most tokens that the text of a request may have."""
    if not items:
        return []
    limits = [limit(item.request) for item in items]
    hypotheses = model.decode(
        [item.encoded for item in items],
        [item.task for item in items],
        beam_size=items[0].request.beam_size,
        max_tokens=max(limits),
    )
    return [
        replace(one, is_cut_off=True) if len(one.tokens) >= most else one
        for one, most in zip(hypotheses, limits, strict=True)
    ]


def _language(model: Model, encoded: Encoded | None, request: Request) -> DetectedLanguage:
    """Return the given language, or detect it. encoded: the window's audio, None if it is not encoded yet."""
    if request.options.language:
        return DetectedLanguage(request.options.language, 1.0)
    encoded = encoded or model.encode(request.window.audio, DETECTION_SILENCE_S)
    candidates = among(model.detect_language(encoded), request.options.allowed_languages)
    code, probability = chosen(candidates, request.expected_language, request.window.speech_s)
    return DetectedLanguage(code, probability, candidates)


def _first_tokens(request: DecodeRequest) -> int:
    """Return the limit of the first search, in which nearly all texts end."""
    return request.max_tokens or FIRST_TOKENS_AT_ONCE + math.ceil(FIRST_TOKENS_PER_S * request.window.audio_s)


def _most_tokens(request: DecodeRequest) -> int:
    """Return the limit of the search that follows for texts that did not end."""
    return MOST_TOKENS_AT_ONCE + math.ceil(MOST_TOKENS_PER_S * request.window.audio_s)


def _result(model: Model, item: _Item, hypothesis: Hypothesis) -> DecodeResult:
    """Check a hypothesis, align it where the checks or the caller need the times, and make its segments."""
    window, options, language = item.request.window, item.request.options, item.language
    words: Sequence[TimedWord] = ()
    looped: Sequence[TimedWord] = ()
    uncovered_from_s = None
    n_tokens = len(hypothesis.tokens)
    # The alignment of a translation does not show the order of the spoken words.
    is_translated = options.task is Task.TRANSLATE
    is_loop = hypothesis.is_cut_off if is_translated else may_loop(hypothesis)
    is_short = not is_translated and may_stop_early(hypothesis.text, window.speech_s)
    if hypothesis.text and (options.word_timestamps or is_loop or is_short):
        words = model.align(item.encoded, item.task, hypothesis.tokens)
        if is_loop:
            without_loops = remove_loops(words)
            words, looped = without_loops.words, without_loops.looped
            if looped:
                hypothesis = _with_words(hypothesis, words)
        if is_short or (looped and not is_translated):
            uncovered_from_s = uncovered_from(words, window.spans_s)
    end_s = window.spans_s[-1][1] if uncovered_from_s is None else words[-1].end_s
    timed = words if options.word_timestamps else ()
    removed = (
        segments_of(window, _with_words(hypothesis, looped), looped, language=language.code, end_s=end_s)
        if looped
        else ()
    )
    return DecodeResult(
        segments=segments_of(window, hypothesis, timed, language=language.code, end_s=end_s),
        language=language.code,
        language_probability=language.probability,
        languages=language.candidates,
        looped=removed,
        issues=issues_of(hypothesis, window.speech_s, low_logprob=LOW_LOGPROB),
        uncovered_from_s=uncovered_from_s,
        n_tokens=n_tokens,
    )


def _with_words(hypothesis: Hypothesis, words: Sequence[TimedWord]) -> Hypothesis:
    """Return the hypothesis reduced to some of its words."""
    probabilities = [max(word.probability, 1e-6) for word in words]
    return replace(
        hypothesis,
        text="".join(word.text for word in words).strip(),
        avg_logprob=sum(map(math.log, probabilities)) / len(probabilities) if probabilities else 0.0,
        is_cut_off=False,
    )


def _decode_with_fallback(model: Model, request: FallbackRequest, is_wanted: IsWanted) -> DecodeResult | None:
    """Run faster-whisper's own decoding; None once the result is not wanted any more."""
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
    return DecodeResult(tuple(segments), language.code, language.probability, language.candidates)
