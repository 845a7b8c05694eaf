"""Decodes the pieces of a call through the scheduler: each in its language, and once more where its text is in doubt.

A piece is decoded with only a second of silence encoded behind it, which is cheap and for most speech as good as
Whisper's 30 s. Where the text has a low confidence, or cannot be used, the piece is decoded once more: with more
silence behind it, which helps the encoder's attention, and with at least five beams, as faster-whisper's fallback
draws five samples whatever the beam size is. The better text is kept. So all work for a piece is at most about three
times its first decode (docs/measurements/second-pass.md).

A prompt and hotwords can mislead the decoder: it goes on with their text, in a loop, or ends after a word. A piece
whose text may have been lost so is decoded anew without them, because they may help a text but not replace it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.hallucinations import filtered
from typeless_grpc.engine.decoding.inference import (
    DecodeRequest,
    DecodeResult,
    DetectRequest,
    FallbackRequest,
    Request,
    Window,
    batch_key,
    run,
)
from typeless_grpc.engine.decoding.languages import Utterance, cut_where_it_changes, utterances
from typeless_grpc.engine.decoding.quality import (
    COMPRESSION_RATIO_THRESHOLD,
    UNUSABLE,
    Issue,
    are_alike,
    is_too_slow,
    may_echo,
    uncovered_from,
)
from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.engine.model import FULL_WINDOW_S, TEMPERATURES, Model
from typeless_grpc.engine.planning.cuts import CutPolicy, Piece
from typeless_grpc.engine.planning.strategies import Plan
from typeless_grpc.engine.scheduler import Scheduler, Task, Turn
from typeless_grpc.speech.languages import LanguageTally, seem_mixed
from typeless_grpc.speech.transcript import joined

# What a window is expected to cost, in seconds of an idle engine: at once, for each second that is encoded, by how much
# more of it for each further beam, and for its square; only ratios matter, the scheduler measures the rest
# (docs/measurements/encoder.md). It also bounds the memory of a batch: eight short windows, or three of 20 s.
COST_AT_ONCE = 0.04
COST_PER_S = 0.018
COST_OF_A_BEAM = 0.25
COST_PER_S2 = 0.00023
MAX_BATCH_COST_S = 1.4

# Silence that is encoded after the speech, at first and in the second pass: that of the recording, and then more, of
# which there is at least LEAST_ADDED_S (docs/measurements/silence.md, second-pass.md).
SILENCE_S = 1.0
SECOND_PASS_SILENCE_S = 6.0
LEAST_ADDED_S = 0.3
# Longer pieces and texts have no second pass for a low confidence alone: of their 30 s less is missing, and two
# searches on one thread would take longer than faster-whisper takes for all of it.
SECOND_PASS_MAX_S = 8.0
SECOND_PASS_MAX_TOKENS = 30
# The second text may be so many tokens longer.
SECOND_PASS_MORE_TOKENS = 8
# As many as faster-whisper uses by default; at the least.
SECOND_PASS_BEAM_SIZE = 5

# By how much the text in another language must be likelier than in the main one, as a mean log probability of tokens.
LIKELIER = 0.1

# Characters of text that a piece is conditioned on: about the 224 tokens that Whisper uses.
CONDITION_CHARACTERS = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class RecognizerOptions:
    """default_model: for calls that name none. beam_size: likewise.

    is_full_window: decode as faster-whisper does, 30 s at a time. cuts: see their module. max_windows_at_once: of one
    call in the inference queue, so that a recording of an hour does not fill it.
    """

    default_model: str
    beam_size: int = 1
    is_full_window: bool = False
    cuts: CutPolicy = field(default_factory=CutPolicy)
    max_windows_at_once: int = 16


WindowScheduler = Scheduler["Decode", DecodeResult]


@dataclass(frozen=True)
class Decode:
    """A request, and the model that is to run it."""

    model: Model
    request: Request


@dataclass(frozen=True)
class Call:
    """What all windows of a call share.

    turns: of those that ran, in the order of their ends. expected: the recording's language as far as it is known.
    has_hints: the caller gave a prompt or hotwords.
    """

    model: Model
    audio: Audio
    options: DecodeOptions
    ticket: Ticket
    turns: list[Turn]
    expected: str = ""
    has_hints: bool = False


# The result for a piece, or for its parts where it is in more than one language.
Decoded = list[tuple[Piece, DecodeResult]]

# An utterance, its language, and how probable that is.
Detected = tuple[Utterance, str, float]


def run_batch(tasks: Sequence[Task[Decode, DecodeResult]]) -> Sequence[DecodeResult | Exception | None]:
    """What the scheduler runs: a batch is of one model, because the model is part of its key."""
    return run(tasks[0].work.model, [task.work.request for task in tasks], [task.is_wanted for task in tasks])


class UtteranceDecoder:
    """Decodes the pieces of a plan."""

    def __init__(self, scheduler: WindowScheduler, options: RecognizerOptions) -> None:
        self._scheduler = scheduler
        self._options = options

    def cost_s(self, plan: Plan) -> float:
        """What a plan is expected to cost, in seconds of an idle engine."""
        return sum(self._cost_s(piece.audio_s + LEAST_ADDED_S) for piece in plan.pieces)

    async def decoded(self, call: Call, plan: Plan) -> Decoded:
        """The results for all pieces: in order or side by side, in the language each is found to be in."""
        call = replace(call, has_hints=bool(call.options.prompt or call.options.hotwords))
        calls = [_with_words(call) if plan.overlaps(index) else call for index in range(len(plan.pieces))]
        if plan.is_conditioned:
            return await self._one_after_the_other(call, plan.pieces)
        if call.options.language or call.expected or len(plan.pieces) <= 1:
            return _one_row(await self._side_by_side(calls, plan.pieces))
        # The longest of the first few says what to expect of the rest.
        place = max(range(min(3, len(plan.pieces))), key=lambda index: plan.pieces[index].audio_s)
        first = await self._decode_piece(calls[place], plan.pieces[place])
        expected = language_of(first, call.options)[0]
        rest = [index for index in range(len(plan.pieces)) if index != place]
        expecting = [replace(calls[index], expected=expected) for index in rest]
        parts = await self._side_by_side(expecting, [plan.pieces[index] for index in rest])
        return _one_row([*parts[:place], first, *parts[place:]])

    async def _one_after_the_other(self, call: Call, pieces: Sequence[Piece]) -> Decoded:
        """Each piece conditioned on the text of those before it, but for text that was kept out."""
        decoded: Decoded = []
        text = call.options.prompt
        for piece in pieces:
            now = replace(call, options=replace(call.options, prompt=text[-CONDITION_CHARACTERS:]))
            parts = await self._decode_piece(now, piece)
            decoded += parts
            spoken = [one.text for part, result in parts for one in filtered(result, part).segments]
            text = joined([text, *spoken])
            call = replace(call, expected=call.expected or language_of(parts, call.options)[0])
        return decoded

    async def _decode_piece(self, call: Call, piece: Piece) -> Decoded:
        """The result for a piece, or for its parts where the language changes in it, or the decoder stopped early."""
        decoded: Decoded = []
        for part, result in await self._decode_in_languages(call, piece):
            if result.rest_s is None or call.ticket.lane is Lane.LIVE_INTERIM:
                decoded.append((part, result))
                continue
            before, rest = part.split(result.rest_s)
            decoded.append((before, result))
            decoded += await self._decode_piece(_in_language(call, result.language), rest)
        return decoded

    async def _decode_in_languages(self, call: Call, piece: Piece) -> Decoded:
        result = await self._decode(call, piece)
        is_one = call.options.language is not None or call.ticket.lane is Lane.LIVE_INTERIM
        if is_one or self._options.is_full_window or not (result.languages and seem_mixed(result.languages)):
            return [(piece, result)]
        parts = utterances(piece)
        if len(parts) < 2:
            return [(piece, result)]
        expecting = replace(call, expected=result.language)
        found = await _all_of([self._detect(expecting, piece, *part.shown()) for part in parts])
        detected = [(part, *one) for part, one in zip(parts, found, strict=True)]
        runs = cut_where_it_changes(piece, await self._confirmed(call, piece, detected, result))
        if [language for _, language, _ in runs] == [result.language]:
            return [(piece, result)]
        again = await _all_of([self._decode(_in_language(call, language), part) for part, language, _ in runs])
        return [
            (part, replace(one, language_probability=probability))
            for (part, _, probability), one in zip(runs, again, strict=True)
        ]

    async def _confirmed(
        self, call: Call, piece: Piece, detected: Sequence[Detected], main: DecodeResult
    ) -> list[Detected]:
        """The languages of utterances, where another than the main one also makes for the likelier text.

        A few seconds of unusual speech sound like a language that nobody speaks there, which the text then shows.
        """
        others = [part for part in cut_where_it_changes(piece, detected) if part[1] != main.language]
        in_main = await _all_of([self._decode_once(_in_language(call, main.language), part) for part, _, _ in others])
        in_other = await _all_of([self._decode_once(_in_language(call, other), part) for part, other, _ in others])
        refuted = [
            part.speech
            for (part, _, _), one, other in zip(others, in_main, in_other, strict=True)
            if other.avg_logprob < one.avg_logprob + LIKELIER
        ]
        return [
            (utterance, main.language, main.language_probability)
            if any(utterance.spans[0] in speech for speech in refuted)
            else (utterance, language, probability)
            for utterance, language, probability in detected
        ]

    async def _detect(self, call: Call, piece: Piece, start: int, end: int) -> tuple[str, float]:
        """The language between two samples of the recording, and its probability."""
        part = Piece(start, end, (Span(start, end),), most_pause=end - start)
        window = _window(call, part)
        request = DetectRequest(window, call.options, LEAST_ADDED_S, call.expected)
        result = await self._submit(call, request, window.audio_s + LEAST_ADDED_S)
        return result.language, result.language_probability

    async def _side_by_side(self, calls: Sequence[Call], pieces: Sequence[Piece]) -> list[Decoded]:
        slots = asyncio.Semaphore(self._options.max_windows_at_once)

        async def decode(call: Call, piece: Piece) -> Decoded:
            async with slots:
                return await self._decode_piece(call, piece)

        return await _all_of([decode(call, piece) for call, piece in zip(calls, pieces, strict=True)])

    async def _decode(self, call: Call, piece: Piece) -> DecodeResult:
        """Decode a piece as its caller asks, and without prompt and hotwords where they cost it its text."""
        result = await self._decode_conditioned(call, piece)
        if not call.has_hints or call.ticket.lane is Lane.LIVE_INTERIM:
            return result
        window = _window(call, piece)
        is_lost = _loses_speech(result, window)
        if not is_lost and not may_echo(result.text, f"{call.options.prompt} {' '.join(call.options.hotwords)}"):
            return result
        alone = _in_language(call, call.options.language or result.language)
        alone = replace(alone, options=replace(alone.options, prompt="", hotwords=()), has_hints=False)
        other = await self._decode_conditioned(alone, piece)
        if is_lost:
            best = min((result, other), key=lambda one: (_loses_speech(one, window), _severity(one), -one.avg_logprob))
        else:
            best = result if _loses_speech(other, window) or are_alike(result.text, other.text) else other
        return replace(best, language_probability=result.language_probability, languages=result.languages)

    async def _decode_conditioned(self, call: Call, piece: Piece) -> DecodeResult:
        """Decode a piece, and once more where its text has a low confidence or cannot be used."""
        if call.ticket.lane is Lane.LIVE_INTERIM:  # it is soon replaced by another
            return await self._decode_once(call, piece)
        if call.options.temperatures or self._options.is_full_window:
            return await self._with_fallback(call, piece, call.options.temperatures or TEMPERATURES)
        first = await self._decode_once(call, piece)
        is_short = piece.audio_s <= SECOND_PASS_MAX_S and first.n_tokens <= SECOND_PASS_MAX_TOKENS
        if not first.issues & UNUSABLE and not (first.issues and is_short):
            return first
        again = call if call.options.language else _in_language(call, first.language)
        second = await self._second_pass(again, piece, first, has_more_beams=is_short)
        best = better(first, second)
        return replace(best, language_probability=first.language_probability, languages=first.languages)

    async def _decode_once(self, call: Call, piece: Piece) -> DecodeResult:
        window = _window(call, piece)
        added_s = _added_s(window, SILENCE_S)
        request = DecodeRequest(window, call.options, self._beam_size(call), added_s, call.expected)
        return await self._submit(call, request, window.audio_s + added_s)

    async def _second_pass(
        self, call: Call, piece: Piece, first: DecodeResult, *, has_more_beams: bool
    ) -> DecodeResult:
        window = _window(call, piece)
        added_s = _added_s(window, SECOND_PASS_SILENCE_S)
        beam_size = max(self._beam_size(call), SECOND_PASS_BEAM_SIZE if has_more_beams else 1)
        max_tokens = None if Issue.EMPTY in first.issues else SECOND_PASS_MORE_TOKENS + first.n_tokens
        request = DecodeRequest(window, call.options, beam_size, added_s, call.expected, max_tokens)
        return await self._submit(call, request, window.audio_s + added_s)

    def _beam_size(self, call: Call) -> int:
        return call.options.beam_size or self._options.beam_size

    async def _with_fallback(self, call: Call, piece: Piece, temperatures: Sequence[float]) -> DecodeResult:
        window, beam_size = _window(call, piece), self._beam_size(call)
        request = FallbackRequest(window, call.options, beam_size, temperatures, call.expected)
        return await self._submit(call, request, FULL_WINDOW_S)

    async def _submit(self, call: Call, request: Request, encoded_s: float) -> DecodeResult:
        done = await self._scheduler.submit(
            Decode(call.model, request),
            key=batch_key(call.model, request),
            cost_s=self._cost_s(encoded_s, 1 if isinstance(request, DetectRequest) else request.beam_size),
            ticket=call.ticket,
            is_begun=bool(call.turns),
        )
        call.turns.append(done.turn)
        return done.result

    def _cost_s(self, encoded_s: float, beam_size: int = 1) -> float:
        encoded_s = FULL_WINDOW_S if self._options.is_full_window else min(encoded_s, FULL_WINDOW_S)
        beams = 1 + COST_OF_A_BEAM * (beam_size - 1)
        return COST_AT_ONCE + COST_PER_S * beams * encoded_s + COST_PER_S2 * encoded_s**2


def better(first: DecodeResult, second: DecodeResult) -> DecodeResult:
    """The one with the lesser issues, else the one whose tokens are likelier."""
    ranks = [(_severity(one), -one.avg_logprob) for one in (first, second)]
    return second if ranks[1] < ranks[0] else first


def _severity(result: DecodeResult) -> int:
    """Of the worst issue: 2 for no text or one without an end, 1 for more than anybody can say, else 0."""
    if result.issues & {Issue.EMPTY, Issue.CUT_OFF}:
        return 2
    return 1 if Issue.TOO_FAST in result.issues else 0


def _loses_speech(result: DecodeResult, window: Window) -> bool:
    """Whether a text is not that of all the speech: it is none, it loops, or it ends too soon and nobody noticed."""
    segments = [one.segment for one in result.segments]
    is_loop = result.looped or any(one.compression_ratio > COMPRESSION_RATIO_THRESHOLD for one in result.segments)
    if result.issues & UNUSABLE or is_loop or is_too_slow(result.text, window.speech_s):
        return True
    texts = [TimedWord(one.text, one.start_s, one.end_s, one.confidence) for one in segments]
    return result.rest_s is None and uncovered_from(texts, window.spans_s) is not None


def _added_s(window: Window, silence_s: float) -> float:
    """How much silence to add for so much of it after the speech."""
    return max(LEAST_ADDED_S, silence_s - (window.audio_s - window.spans_s[-1][1]))


def _window(call: Call, piece: Piece) -> Window:
    return Window(piece.shown(call.audio), piece.shown_speech())


async def _all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, side by side; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* Exception as errors:  # the caller needs no group of one
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _one_row(parts: Sequence[Decoded]) -> Decoded:
    return [one for part in parts for one in part]


def _in_language(call: Call, language: str) -> Call:
    return replace(call, options=replace(call.options, language=language))


def _with_words(call: Call) -> Call:
    return replace(call, options=replace(call.options, word_timestamps=True))


def language_of(decoded: Decoded, options: DecodeOptions) -> tuple[str, float]:
    """The language of most of the speech, and its probability."""
    if options.language:
        return options.language, 1.0
    tally = LanguageTally()
    for piece, result in decoded:
        speech_s = sum(span.end - span.start for span in piece.speech) / SAMPLE_RATE_HZ
        tally.add(result.language, result.language_probability, speech_s)
    return tally.main()
