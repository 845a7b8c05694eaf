"""How a stream's pieces come to the engine: guessed at early, asked for again where that helps, in one language.

A final is begun early, as a guess that the pause will last: after a short silence on an engine that is nearly idle, on
a busy one when the end is likely, because earlier guesses cost others more than they save (docs/streaming.md has the
measurements). A guess is over the very samples that the final would be, so it changes when a final comes, and never
what it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.errors import EngineFailed, Overloaded, RateLimited, TypelessError
from typeless_grpc.speech.languages import is_clear
from typeless_grpc.streaming.finals import Piece, confidence_of
from typeless_grpc.streaming.machinery import Machinery, StreamOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.text.finishing import needs_words

_ATTEMPTS = 5
_MAX_RETRY_S = 10.0
# A text is trusted from here on: many of those cut within a sentence are below, nine of ten whole ones above.
SURE_CONFIDENCE = 0.65
_BUSY_BACKLOG_S = 0.4  # an engine with less to do takes guesses


@dataclass(frozen=True)
class _Guess:
    """A piece that is decoded before it is certain. span: of its audio, in samples."""

    span: tuple[int, int]
    options: DecodeOptions
    task: asyncio.Task[Recognition]


class PieceDecoder:
    """One stream's way to the engine, for what is final."""

    def __init__(self, machinery: Machinery, options: StreamOptions, samples: SampleBuffer) -> None:
        self._machinery, self._options, self._samples = machinery, options, samples
        self._guess: _Guess | None = None
        self._kept: dict[int, asyncio.Task[Recognition]] = {}  # guesses that were right, by piece
        self._places = asyncio.Semaphore(options.max_pieces_at_once)
        self._in_force = options.options
        self._language = ""  # of a FILE's first piece, of the last LIVE utterance that said it clearly
        self._language_piece = -1  # the id of that utterance
        self._detecting = asyncio.Lock()

    def reconfigure(self, options: DecodeOptions) -> None:
        """The options have changed: what was, or still will be, found out under the old ones tells nothing any more."""
        self._in_force, self._language, self._language_piece = options, "", -1

    async def recognition(self, piece: Piece) -> Recognition:
        """What the engine hears in a piece. Raises TypelessError once asking again does not help."""
        if self._options.is_file:
            audio = self._samples.cut(piece.audio_start, piece.audio_end)
            async with self._places:
                return await self._file_recognition(piece, audio, _for_final(piece.options))
        recognition = await self._live_recognition(piece)
        language = _clear_language(recognition)
        if language and piece.options == self._in_force and piece.id > self._language_piece:
            self._language, self._language_piece = language, piece.id
        return recognition

    async def _live_recognition(self, piece: Piece) -> Recognition:
        if (guessed := self._kept.pop(piece.id, None)) is not None:
            with suppress(TypelessError):
                return await _whole(guessed)
        options = self._live_options(piece)
        return await self._insist(lambda: self._recognized(piece, options))

    def _live_options(self, piece: Piece) -> DecodeOptions:
        """What is asked of the engine for an utterance now, as a guess or for certain."""
        return self.expecting(_for_final(piece.options))

    def _recognized(self, piece: Piece, options: DecodeOptions) -> Coroutine[Any, Any, Recognition]:
        audio = self._samples.cut(piece.audio_start, piece.audio_end)
        return self._machinery.engine.recognize(audio, options, Ticket(Lane.LIVE_FINAL, self._options.caller))

    async def _file_recognition(self, piece: Piece, audio: Audio, options: DecodeOptions) -> Recognition:
        """Decode a piece, expecting the language of the first one, as in a recording that is transcribed whole."""
        if options.language or self._language:
            return await self._transcribed(audio, options)
        async with self._detecting:
            if self._language:
                return await self._transcribed(audio, options)
            recognition = await self._transcribed(audio, options)
            if recognition.transcript.segments and piece.options == self._in_force:
                self._language = recognition.transcript.language
            return recognition

    async def _transcribed(self, audio: Audio, options: DecodeOptions) -> Recognition:
        asked = self.expecting(options)
        ticket = Ticket(Lane.UNARY, self._options.caller)
        return await self._insist(lambda: self._machinery.engine.transcribe(audio, asked, ticket))

    def expecting(self, options: DecodeOptions) -> DecodeOptions:
        """The options with the language that was spoken so far, where it is to be detected."""
        return options if options.language else replace(options, expected_language=self._language)

    async def _insist(self, ask: Callable[[], Awaitable[Recognition]]) -> Recognition:
        """Ask again where that can help: speech is not lost to a moment's load."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return await ask()
            except (Overloaded, RateLimited, EngineFailed) as error:
                if isinstance(error, EngineFailed) and attempt > 1:
                    raise
                await self._machinery.sleep(min(error.retry_after_s or 0.1, _MAX_RETRY_S) * attempt)
        return await ask()

    async def is_sure(self, piece: Piece) -> bool:
        """Whether the engine's text of a piece can be trusted; True where it has none, so that nobody waits for it."""
        self.guess(piece, is_likely=True)
        assert self._guess is not None
        task = self._guess.task
        await asyncio.wait([task])
        if task.cancelled() or task.exception() is not None:
            return True
        return confidence_of(task.result()) >= SURE_CONFIDENCE

    def guess(self, piece: Piece, *, is_likely: bool) -> None:
        """Begin with a piece that is not certain yet, if it is likely or the engine has little to do."""
        if self.has_begun(piece):
            return
        self.stop()
        if not is_likely and self._machinery.engine.backlog_s > _BUSY_BACKLOG_S:
            return
        options = self._live_options(piece)
        task = asyncio.create_task(self._recognized(piece, options))
        task.add_done_callback(_looked_at)
        self._guess = _Guess(_span(piece), options, task)

    def has_begun(self, piece: Piece) -> bool:
        """Whether there is a guess, and it is what the final would be: over this audio, expecting this language."""
        guess = self._guess
        return guess is not None and (guess.span, guess.options) == (_span(piece), self._live_options(piece))

    def keep_guess(self, piece: Piece) -> bool:
        """The piece is certain now, and `recognition` will be asked for it. Whether there was a right guess at it.

        To be called at once, before there is a guess at the next piece.
        """
        if self._guess is not None and self.has_begun(piece):
            self._kept[piece.id], self._guess = self._guess.task, None
            return True
        self.stop()
        return False

    def stop(self) -> None:
        """Take the guess back."""
        guess, self._guess = self._guess, None
        if guess is not None:
            guess.task.cancel()

    def close(self) -> None:
        """Take all guesses back."""
        self.stop()
        for guess in self._kept.values():
            guess.cancel()
        self._kept.clear()


def _span(piece: Piece) -> tuple[int, int]:
    return piece.audio_start, piece.audio_end


async def _whole(task: asyncio.Task[Recognition]) -> Recognition:
    """The task's result; cancelling this cancels it."""
    try:
        return await task
    except asyncio.CancelledError:
        task.cancel()
        raise


def _clear_language(recognition: Recognition) -> str:
    """The language to expect of the next utterances; "" if this one does not show it clearly."""
    transcript = recognition.transcript
    has_language = transcript.segments and is_clear(transcript.language_probability, transcript.speech_s)
    return transcript.language if has_language else ""


def _for_final(options: DecodeOptions) -> DecodeOptions:
    """What the engine is asked: words also where only the renditions need them, and renditions of the whole only."""
    return replace(options, word_timestamps=options.word_timestamps or needs_words(options), output_formats=())


def _looked_at(task: asyncio.Task[Recognition]) -> None:
    """A guess that nobody took may fail unseen."""
    if not task.cancelled():
        task.exception()
