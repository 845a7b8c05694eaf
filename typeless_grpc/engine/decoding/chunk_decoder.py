"""Decodes one chunk in one language: once, and again if its text fails the quality checks.

The first pass encodes only a second of silence after the chunk, which is cheap and for most speech as good as Whisper's
30 s. If the text has low confidence or cannot be used, a second pass encodes more silence, which helps the encoder's
attention, and searches with at least five beams, because faster-whisper's fallback draws five samples whatever the beam
size is. The better text is kept. All passes over a chunk together take at most about three times as long as the first
(docs/measurements/second-pass.md).

A prompt and hotwords can mislead the decoder: it continues their text, loops, or ends after a word. If they may have
cost a chunk its text, the chunk is decoded again without them, because they may help a text but not replace it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from typeless_grpc.engine.decoding.quality import (
    UNUSABLE,
    Issue,
    are_similar,
    is_too_slow,
    may_echo,
    uncovered_from,
)
from typeless_grpc.engine.decoding.requests import (
    DecodeRequest,
    DecodeResult,
    DetectRequest,
    FallbackRequest,
    Window,
)
from typeless_grpc.engine.decoding.submission import DecodeContext, RecognizerOptions, Submitter
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.model import COMPRESSION_RATIO_THRESHOLD, FULL_WINDOW_S, TEMPERATURES, TimedWord
from typeless_grpc.engine.planning.chunk import Chunk

# Silence after the speech in the first and the second pass: that of the recording, and then computed silence, of which
# there is at least MIN_ADDED_S (docs/measurements/silence.md, second-pass.md).
SILENCE_S = 1.0
SECOND_PASS_SILENCE_S = 6.0
MIN_ADDED_S = 0.3
# Longer chunks and texts have no second pass for low confidence alone: they miss less of their 30 s, and two searches
# on one thread would take longer than faster-whisper takes for all of it.
SECOND_PASS_MAX_S = 8.0
SECOND_PASS_MAX_TOKENS = 30
# The second text may be so many tokens longer than the first.
SECOND_PASS_MORE_TOKENS = 8
# At least as many as faster-whisper's default.
SECOND_PASS_BEAM_SIZE = 5


class ChunkDecoder:
    """Decodes chunks in one language each."""

    def __init__(self, submitter: Submitter, options: RecognizerOptions) -> None:
        self._submitter = submitter
        self._options = options
        self.observer = submitter.observer

    async def decode(self, context: DecodeContext, chunk: Chunk) -> DecodeResult:
        """Decode a chunk with the caller's hints, and without them if they may have cost it its text."""
        result = await self._decode_with_retry(context, chunk)
        if not context.has_hints or context.ticket.lane is Lane.LIVE_INTERIM:
            return result
        window = context.window(chunk)
        is_lost = loses_speech(result, window)
        hints = f"{context.options.prompt} {' '.join(context.options.hotwords)}"
        if not is_lost and not may_echo(result.text, hints):
            return result
        unhinted = context.in_language(context.options.language or result.language)
        unhinted = replace(unhinted, options=replace(unhinted.options, prompt="", hotwords=()), has_hints=False)
        self.observer.decoded_again("hints")
        other = await self._decode_with_retry(unhinted, chunk)
        if is_lost:
            best = min((result, other), key=lambda one: (loses_speech(one, window), _severity(one), -one.avg_logprob))
        else:
            best = result if loses_speech(other, window) or are_similar(result.text, other.text) else other
        return replace(best, language_probability=result.language_probability, languages=result.languages)

    async def decode_once(self, context: DecodeContext, chunk: Chunk) -> DecodeResult:
        """Decode a chunk in one pass, without quality checks."""
        window = context.window(chunk)
        added_s = _added_s(window, SILENCE_S)
        request = DecodeRequest(window, context.options, self._beam_size(context), added_s, context.expected_language)
        return await self._submitter.submit(context, request, window.audio_s + added_s)

    async def detect_language(self, context: DecodeContext, chunk: Chunk) -> tuple[str, float]:
        """Return the language of a chunk, and its probability."""
        window = context.window(chunk)
        request = DetectRequest(window, context.options, MIN_ADDED_S, context.expected_language)
        result = await self._submitter.submit(context, request, window.audio_s + MIN_ADDED_S)
        return result.language, result.language_probability

    async def _decode_with_retry(self, context: DecodeContext, chunk: Chunk) -> DecodeResult:
        """Decode a chunk in one pass, and in a second one if the quality checks fail; return the better result."""
        if context.ticket.lane is Lane.LIVE_INTERIM:  # another interim will soon replace it
            return await self.decode_once(context, chunk)
        if context.options.temperatures or self._options.is_full_window:
            return await self._decode_with_fallback(context, chunk, context.options.temperatures or TEMPERATURES)
        first = await self.decode_once(context, chunk)
        is_short = chunk.window_s <= SECOND_PASS_MAX_S and first.n_tokens <= SECOND_PASS_MAX_TOKENS
        if not first.issues & UNUSABLE and not (first.issues and is_short):
            return first
        self.observer.decoded_again(_worst(first.issues).value)
        again = context if context.options.language else context.in_language(first.language)
        second = await self._second_pass(again, chunk, first, has_more_beams=is_short)
        best = better(first, second)
        return replace(best, language_probability=first.language_probability, languages=first.languages)

    async def _second_pass(
        self, context: DecodeContext, chunk: Chunk, first: DecodeResult, *, has_more_beams: bool
    ) -> DecodeResult:
        """Decode a chunk with more silence. has_more_beams: also with at least SECOND_PASS_BEAM_SIZE beams."""
        window = context.window(chunk)
        added_s = _added_s(window, SECOND_PASS_SILENCE_S)
        beam_size = max(self._beam_size(context), SECOND_PASS_BEAM_SIZE if has_more_beams else 1)
        max_tokens = None if Issue.EMPTY in first.issues else SECOND_PASS_MORE_TOKENS + first.n_tokens
        request = DecodeRequest(window, context.options, beam_size, added_s, context.expected_language, max_tokens)
        return await self._submitter.submit(context, request, window.audio_s + added_s)

    async def _decode_with_fallback(
        self, context: DecodeContext, chunk: Chunk, temperatures: Sequence[float]
    ) -> DecodeResult:
        """Decode a chunk as faster-whisper does, with temperatures in order until its own checks pass."""
        request = FallbackRequest(
            context.window(chunk),
            context.options,
            self._beam_size(context),
            temperatures,
            context.expected_language,
        )
        return await self._submitter.submit(context, request, FULL_WINDOW_S)

    def _beam_size(self, context: DecodeContext) -> int:
        return context.options.beam_size or self._options.beam_size


def better(first: DecodeResult, second: DecodeResult) -> DecodeResult:
    """Return the result with the less severe issues; if they are equal, the one whose tokens are likelier."""
    ranks = [(_severity(one), -one.avg_logprob) for one in (first, second)]
    return second if ranks[1] < ranks[0] else first


def loses_speech(result: DecodeResult, window: Window) -> bool:
    """Whether a text leaves out speech: it is empty, it loops, or it ends too soon and the checks did not notice."""
    segments = [one.segment for one in result.segments]
    is_loop = result.looped or any(one.compression_ratio > COMPRESSION_RATIO_THRESHOLD for one in result.segments)
    if result.issues & UNUSABLE or is_loop or is_too_slow(result.text, window.speech_s):
        return True
    texts = [TimedWord(one.text, one.start_s, one.end_s, one.confidence) for one in segments]
    return result.uncovered_from_s is None and uncovered_from(texts, window.spans_s) is not None


def _worst(issues: frozenset[Issue]) -> Issue:
    """Return the first of the issues in the order of their definition, the most severe first."""
    return next(issue for issue in Issue if issue in issues)


def _severity(result: DecodeResult) -> int:
    """Return the severity of the worst issue: 2 for an empty or cut-off text, 1 for one that is too fast, else 0."""
    if result.issues & {Issue.EMPTY, Issue.CUT_OFF}:
        return 2
    return 1 if Issue.TOO_FAST in result.issues else 0


def _added_s(window: Window, silence_s: float) -> float:
    """Return the computed silence to add, so that the window has silence_s after its speech."""
    return max(MIN_ADDED_S, silence_s - (window.audio_s - window.spans_s[-1][1]))
