"""When an utterance's text so far is asked for.

Interims live on what finals leave over. One of a stream is out at a time; the pause to the next is longer than what the
last one took; few of all streams are at the engine at once, since what runs there cannot be stopped for a final; and
once the engine has a backlog they come less often, or not at all. None is begun while the speaker pauses: the final may
be near.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.errors import TypelessError
from typeless_grpc.streaming.finals import text_of
from typeless_grpc.streaming.machinery import Machinery, StreamOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import InterimHeard, Session, Utterance

_NO_INTERIM_BACKLOG_S = 1.0  # with more to do than this, none is asked for
_BACKLOG_WAIT = 2.0  # for each second of backlog, so much more audio before the next interim
_REST = 2.0  # after an interim, of the time it took
_MIN_NEW_SAMPLES = SAMPLE_RATE_HZ // 4  # over less new audio an interim says nothing new
_LEAD_SAMPLES = round(0.3 * SAMPLE_RATE_HZ)  # before speech; more of it would take time
_LEAST_DEADLINE_S = 2.0  # later than that, and than two intervals, an interim is no use


class Interims:
    """One stream's interims. heard: told of each; done: told of each task that ends."""

    def __init__(
        self,
        machinery: Machinery,
        options: StreamOptions,
        session: Session,
        samples: SampleBuffer,
        *,
        expecting: Callable[[DecodeOptions], DecodeOptions],
        is_welcome: Callable[[], bool],
        heard: Callable[[InterimHeard], object],
        done: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """expecting: options with the language spoken so far. is_welcome: whether the stream has a use for one now."""
        self._machinery, self._options, self._session, self._samples = machinery, options, session, samples
        self._expecting, self._is_welcome, self._heard, self._done = expecting, is_welcome, heard, done
        self._task: asyncio.Task[None] | None = None
        self._up_to = 0
        self._next_s = 0.0

    def begin(self) -> None:
        """Ask for one, if it is wanted, due, and would cost nobody a final."""
        now, interval_s = self._session.current, self._options.interim_interval_s
        if now is None or interval_s is None or self._task is not None:
            return
        if self._session.is_quiet or not self._is_welcome() or not self._is_due(now, interval_s):
            return
        if not self._machinery.interim_places.take(self.begin):
            return
        audio_start = now.audio_start
        if now.options.voice_activity.speech_padding_s is None:  # who says how much is kept has all of it
            audio_start = max(audio_start, now.speech_start - _LEAD_SAMPLES)
        audio = self._samples.cut(audio_start, self._samples.end)
        self._up_to = self._samples.end
        self._task = asyncio.create_task(self._hear(now, audio, audio_start, interval_s))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Take back the one that is out."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Take it back, and wait until it is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_due(self, now: Utterance, interval_s: float) -> bool:
        backlog_s = self._machinery.engine.backlog_s
        if backlog_s > _NO_INTERIM_BACKLOG_S or self._machinery.clock.now_s() < self._next_s:
            return False
        is_first = self._up_to <= now.speech_start
        wait_s = min(self._options.first_interim_s, interval_s) if is_first else interval_s
        n_new = self._samples.end - (now.speech_start if is_first else self._up_to)
        return n_new >= max(_MIN_NEW_SAMPLES, (wait_s + _BACKLOG_WAIT * backlog_s) * SAMPLE_RATE_HZ)

    async def _hear(self, now: Utterance, audio: Audio, audio_start: int, interval_s: float) -> None:
        clock = self._machinery.clock
        began_s = clock.now_s()
        deadline_s = began_s + max(_LEAST_DEADLINE_S, 2 * interval_s)
        ticket = Ticket(Lane.LIVE_INTERIM, self._options.caller, deadline_s)
        options = replace(self._expecting(now.options), word_timestamps=False, output_formats=())
        try:
            recognition = await self._machinery.engine.recognize(audio, options, ticket)
        except TypelessError:
            self._next_s = clock.now_s() + interval_s  # an interim is no promise
            return
        self._next_s = clock.now_s() + _REST * (clock.now_s() - began_s)
        self._heard(InterimHeard(now.piece_id, text_of(recognition), audio_start + len(audio)))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._machinery.interim_places.give_back()
        self._done(task)
