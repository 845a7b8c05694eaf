"""What is heard in the pieces of a call: each through the scheduler, in a window to be trusted, and in its language."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.cuts import CutPolicy, Piece
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.engine.judgement import judged
from typeless_grpc.engine.languages import Utterance, cut_where_it_changes, utterances
from typeless_grpc.engine.scheduler import Scheduler, Task, Turn
from typeless_grpc.engine.strategies import Plan
from typeless_grpc.engine.transcript import joined
from typeless_grpc.engine.verification import Checks, Doubt, sparse
from typeless_grpc.engine.whisper import TEMPERATURES, Heard, WhisperModel, Window
from typeless_grpc.engine.window import FULL_WINDOW_S, WindowPolicy

# A window's expected cost in seconds of an idle engine, for each second shown, and once; only ratios matter, the
# scheduler measures the rest (docs/encoder-window.md: 15 s take 0.17 s to encode and about as much to decode).
COST_PER_S = 0.02
COST_AT_ONCE = 0.05

# What the encoder is shown to tell the language of an utterance, in seconds; room for languages.LOOKED_AT_S.
LANGUAGE_WINDOW_S = 5.0

# By how much the text in another language must be likelier than in the main one, as a mean log probability of tokens.
LIKELIER = 0.1

# Characters of text that a piece is conditioned on: about the 224 tokens that Whisper uses.
CONDITION_CHARACTERS = 1000

T = TypeVar("T")


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
class Call:
    """What all windows of a call share.

    turns: of those that ran, in the order of their ends. expected: the recording's language as far as it is known.
    """

    model: WhisperModel
    audio: Audio
    options: DecodeOptions
    ticket: Ticket
    turns: list[Turn]
    expected: str = ""


# What was heard in a piece, or in its parts where it is in more than one language.
Understood = list[tuple[Piece, Heard]]

# An utterance, its language, and how probable that is.
Told = tuple[Utterance, str, float]


def run_batch(tasks: Sequence[Task[Decode, Heard]]) -> Sequence[Heard | Exception | None]:
    """What the scheduler runs: a batch is of one model, because the model is part of its key."""
    model = tasks[0].work.model
    return model.decode([task.work.window for task in tasks], [task.is_wanted for task in tasks])


class Hearing:
    """Hears what is said in the pieces of a plan."""

    def __init__(self, scheduler: WindowScheduler, options: RecognizerOptions) -> None:
        self._scheduler = scheduler
        self._options = options
        self._tight_windows = options.windows.tightened()

    def cost_s(self, plan: Plan, language: str | None) -> float:
        """What a plan is expected to cost, in seconds of an idle engine."""
        choose = self._options.windows.choose
        return sum(_cost_s(choose(piece.least_s, language)) for piece in plan.pieces)

    async def understood(self, call: Call, plan: Plan) -> Understood:
        """What was heard in all pieces: in order or side by side, in the language each is found to be in.

        A piece that says far less than the others is heard again as faster-whisper does it; the longer text is kept.
        """
        understood = await self._understood(call, plan)
        if not self._options.windows.verified:
            return understood
        places = sparse([(_text(heard), _spoken_s(piece)) for piece, heard in understood])
        again = await _all_of([self._thoroughly(call, *understood[place]) for place in places])
        for place, heard in zip(places, again, strict=True):
            piece, before = understood[place]
            understood[place] = (piece, max(before, heard, key=lambda one: len(_text(one))))
        return understood

    async def _understood(self, call: Call, plan: Plan) -> Understood:
        calls = [_with_words(call) if plan.overlaps(index) else call for index in range(len(plan.pieces))]
        if plan.is_conditioned:
            return await self._one_after_the_other(call, plan.pieces)
        if call.options.language or call.expected or len(plan.pieces) <= 1:
            return _one_row(await self._side_by_side(calls, plan.pieces))
        # The longest of the first few says what to expect of the rest.
        place = max(range(min(3, len(plan.pieces))), key=lambda index: plan.pieces[index].audio_s)
        first = await self._understand(calls[place], plan.pieces[place])
        expected = language_of(first, call.options)[0]
        rest = [index for index in range(len(plan.pieces)) if index != place]
        told = [replace(calls[index], expected=expected) for index in rest]
        parts = await self._side_by_side(told, [plan.pieces[index] for index in rest])
        return _one_row([*parts[:place], first, *parts[place:]])

    async def _one_after_the_other(self, call: Call, pieces: Sequence[Piece]) -> Understood:
        """Each piece conditioned on the text of those before it, but for text that is not to be trusted."""
        understood: Understood = []
        text = call.options.prompt
        for piece in pieces:
            now = replace(call, options=replace(call.options, prompt=text[-CONDITION_CHARACTERS:]))
            parts = await self._understand(now, piece)
            understood += parts
            said = [one.text for part, heard in parts for one in judged(heard, part).segments]
            text = joined([text, *said])
            call = replace(call, expected=call.expected or language_of(parts, call.options)[0])
        return understood

    async def _understand(self, call: Call, piece: Piece) -> Understood:
        """What was heard in a piece, or in its parts where the language changes within it."""
        piece = self._in_smallest_window(call, piece)
        heard = await self._decode(call, piece)
        if Doubt.MIXED not in heard.doubts:
            return [(piece, heard)]
        looks = utterances(piece)
        expecting = replace(call, expected=heard.language)
        found = await _all_of([self._detected(expecting, piece, *look.shown()) for look in looks])
        told = await self._confirmed(call, piece, [(look, *one) for look, one in zip(looks, found, strict=True)], heard)
        parts = cut_where_it_changes(piece, told)
        decoded = await _all_of([self._decode(_in_language(call, language), part) for part, language, _ in parts])
        return [
            (part, replace(heard, language_probability=probability))
            for (part, _, probability), heard in zip(parts, decoded, strict=True)
        ]

    async def _confirmed(self, call: Call, piece: Piece, told: Sequence[Told], main: Heard) -> list[Told]:
        """The languages of utterances, where another than the main one also makes for the likelier text.

        A few seconds of unusual speech sound like a language that nobody speaks there, which the text then shows.
        """
        doubtful = [part for part in cut_where_it_changes(piece, told) if part[1] != main.language]
        in_main = await _all_of([self._look(_in_language(call, main.language), part) for part, _, _ in doubtful])
        in_other = await _all_of([self._look(_in_language(call, other), part) for part, other, _ in doubtful])
        refuted = [
            part.speech
            for (part, _, _), one, other in zip(doubtful, in_main, in_other, strict=True)
            if _likelihood(other) < _likelihood(one) + LIKELIER
        ]
        return [
            (look, main.language, main.language_probability)
            if any(look.spans[0] in speech for speech in refuted)
            else (look, language, probability)
            for look, language, probability in told
        ]

    async def _detected(self, call: Call, piece: Piece, start: int, end: int) -> tuple[str, float]:
        """The language between two samples of the recording, and its probability."""
        look = Piece(start, end, (Span(start, end),), most_pause=end - start)
        window = replace(self._window(call, look), shown_s=LANGUAGE_WINDOW_S, detect_only=True)
        heard = await self._submit(call, window)
        return heard.language, heard.language_probability

    async def _side_by_side(self, calls: Sequence[Call], pieces: Sequence[Piece]) -> list[Understood]:
        places = asyncio.Semaphore(self._options.max_windows_at_once)

        async def understand(call: Call, piece: Piece) -> Understood:
            async with places:
                return await self._understand(call, piece)

        return await _all_of([understand(call, piece) for call, piece in zip(calls, pieces, strict=True)])

    async def _decode(self, call: Call, piece: Piece) -> Heard:
        """Decode a piece in growing windows until the result can be trusted, at last as faster-whisper does it."""
        policy = self._windows(call)
        window = self._window(call, piece)
        if call.ticket.lane is Lane.LIVE_INTERIM:
            return await self._look(call, piece)  # soon replaced by another: worth one look, and no second one
        if call.options.language is None and len(utterances(piece)) > 1:
            window = replace(window, may_be_mixed=True)
        is_greedy = (call.options.temperatures or TEMPERATURES)[0] == 0.0
        if policy.verified and is_greedy and not call.options.is_thorough:
            for shown_s in policy.ladder(piece.needed_s, _known_language(call)):
                heard = await self._submit(call, replace(window, shown_s=shown_s))
                if not heard.doubts or Doubt.MIXED in heard.doubts:
                    return heard
                window = replace(window, is_reconsidered=False)  # where it did not help, longer windows may
        return await self._submit(call, replace(window, thorough=True, is_bounded=policy.verified))

    async def _thoroughly(self, call: Call, piece: Piece, before: Heard) -> Heard:
        has_words = any(one.segment.words for one in before.segments)
        options = replace(call.options, language=before.language, word_timestamps=has_words)
        told = replace(call, options=options)
        return await self._submit(told, replace(self._window(told, piece), thorough=True, is_bounded=True))

    async def _look(self, call: Call, piece: Piece) -> Heard:
        """Decode a piece once, whatever comes of it."""
        shown_s = self._windows(call).choose(piece.needed_s, _known_language(call))
        window = replace(self._window(call, piece), shown_s=shown_s, checks=None, is_reconsidered=False)
        return await self._submit(call, window)

    def _in_smallest_window(self, call: Call, piece: Piece) -> Piece:
        """The piece with as much of the silence before its speech as its smallest window has room for.

        Whoever says how much is to be kept has all of it.
        """
        if call.options.voice_activity.speech_padding_s is not None:
            return piece
        windows = self._windows(call)
        return piece.shortened(windows.room_s(windows.choose(piece.least_s, _known_language(call))))

    def _windows(self, call: Call) -> WindowPolicy:
        is_live = call.ticket.lane in (Lane.LIVE_FINAL, Lane.LIVE_INTERIM)
        return self._tight_windows if is_live else self._options.windows

    def _window(self, call: Call, piece: Piece) -> Window:
        return Window(
            audio=piece.shown(call.audio),
            speech=piece.shown_speech(),
            shown_s=FULL_WINDOW_S,
            options=call.options,
            beam_size=call.options.beam_size or self._options.beam_size,
            is_reconsidered=call.options.is_reconsidered,
            checks=self._options.checks,
            expected=call.expected,
        )

    async def _submit(self, call: Call, window: Window) -> Heard:
        done = await self._scheduler.submit(
            Decode(call.model, window),
            key=call.model.batch_key(window),
            cost_s=_cost_s(window.shown_s),
            ticket=call.ticket,
            is_begun=bool(call.turns),
        )
        call.turns.append(done.turn)
        return done.result


async def _all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, side by side; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* Exception as errors:  # the caller needs no group of one
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _one_row(parts: Sequence[Understood]) -> Understood:
    return [one for part in parts for one in part]


def _known_language(call: Call) -> str | None:
    """The language that windows are chosen for; None where it is to be detected."""
    return call.options.language if call.model.is_multilingual else "en"


def _in_language(call: Call, language: str) -> Call:
    return replace(call, options=replace(call.options, language=language))


def _likelihood(heard: Heard) -> float:
    """The mean log probability of a text's tokens; of none, less than of any."""
    return max((one.avg_logprob for one in heard.segments), default=-math.inf)


def _with_words(call: Call) -> Call:
    return replace(call, options=replace(call.options, word_timestamps=True))


def _text(heard: Heard) -> str:
    return joined([one.segment.text for one in heard.segments])


def _spoken_s(piece: Piece) -> float:
    return sum(span.end - span.start for span in piece.speech) / SAMPLE_RATE_HZ


def language_of(understood: Understood, options: DecodeOptions) -> tuple[str, float]:
    """The language that most of the speech is in, and its probability where most of it was heard."""
    if options.language:
        return options.language, 1.0
    speech: dict[str, int] = {}
    for piece, heard in understood:
        n_samples = sum(span.end - span.start for span in piece.speech)
        speech[heard.language] = speech.get(heard.language, 0) + n_samples
    if not speech:
        return "", 0.0
    language = max(speech, key=lambda code: speech[code])
    in_it = [(piece.audio_s, heard.language_probability) for piece, heard in understood if heard.language == language]
    return language, max(in_it)[1]


def _cost_s(shown_s: float) -> float:
    return COST_AT_ONCE + COST_PER_S * shown_s
