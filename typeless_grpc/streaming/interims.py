"""When an utterance's text so far is asked for, and with how much effort.

Interims live on what finals leave over. One of a stream is out at a time, and few of all streams are at the engine at
once, since what runs there cannot be stopped for a final.

While the engine keeps up, each is heard that the session finds due, in order and up to its very sample, the final
waits for those of its utterance, and audio that comes faster than that waits, too: then the same audio gives the same
certain words, and so the same final. Once the engine has a backlog, or others have all places, only the newest is
heard, up to where the audio is by then; they come less often, or not at all. Where a final would have to wait for a
free worker, they are taken back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.errors import TypelessError
from typeless_grpc.streaming.finals import text_of
from typeless_grpc.streaming.machinery import Machinery, StreamOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import InterimDue, InterimHeard, Session

_BUSY_BACKLOG_S = 0.4  # an engine with more to do does not keep up
_NO_INTERIM_BACKLOG_S = 1.0  # with more to do than this, none is asked for
_BACKLOG_WAIT = 2.0  # for each second of backlog, so much more audio before the next interim
_REST = 2.0  # after an interim, of the time it took, where the engine is busy
_LEAD_SAMPLES = round(0.3 * SAMPLE_RATE_HZ)  # before speech; more of it would take time
_LEAST_DEADLINE_S = 2.0  # later than that, and than two intervals, an interim is no use
_MAX_WAITING = 2  # with more of them due, no more audio is taken on an engine that keeps up
_MOST_WAITING = 8  # with as many, the stream is behind
_AUDIO_WAITS_S = 2.0  # at most, for one of them
_FINAL_WAITS_S = 2.0  # at most, for the interims of its utterance, on an engine that keeps up


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
        is_welcome: Callable[[int], bool],
        heard: Callable[[InterimHeard], object],
        done: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """expecting: options with the language spoken so far. is_welcome: whether one of this piece is of use now."""
        self._machinery, self._options, self._session, self._samples = machinery, options, session, samples
        self._expecting, self._is_welcome, self._heard, self._done = expecting, is_welcome, heard, done
        self._waiting: deque[InterimDue] = deque(maxlen=_MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._task_piece = -1
        self._is_crowded = False  # all places were taken when one was due
        self._up_to = 0  # of the last one that was begun
        self._next_s = 0.0

    def due(self, one: InterimDue) -> None:
        """One is wanted as soon as the engine has time for it."""
        self._waiting.append(one)
        self.begin()

    def begin(self) -> None:
        """Ask for the next that is due, if it would cost nobody a final."""
        if self._task is not None or not self._waiting:
            return
        is_behind = self._is_behind()
        one = self._newest() if is_behind else self._waiting[0]
        if not self._is_welcome(one.utterance.piece_id) or (is_behind and not self._is_time_for(one)):
            return
        if not self._machinery.interim_places.take(self.begin):
            self._is_crowded = True
            return
        self._is_crowded = False
        if is_behind:
            self._waiting.clear()
        else:
            self._waiting.popleft()
        self._up_to, self._task_piece = one.up_to, one.utterance.piece_id
        self._task = asyncio.create_task(self._hear(one, self._audio_of(one)))
        self._task.add_done_callback(self._ended)

    def give_way(self) -> None:
        """Somebody's final would have to wait: what is out and what is due is taken back."""
        if self._machinery.engine.backlog_s > 0:
            self._waiting.clear()
            if self._task is not None:
                self._task.cancel()

    async def caught_up(self, finals: Collection[asyncio.Task[None]]) -> None:
        """Wait while several are due that came faster than the engine hears them, if it keeps up with all else.

        finals: at work now, which go first.
        """
        while len(self._waiting) > _MAX_WAITING and not self._is_behind():
            working = [*finals, *([self._task] if self._task is not None else [])]
            if not working:
                return
            done, _ = await asyncio.wait(working, timeout=_AUDIO_WAITS_S, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return

    async def settled(self, piece_id: int) -> None:
        """Wait for those of an utterance whose final is there, if the engine keeps up; then there are none of it."""
        self.give_way()
        try:
            async with asyncio.timeout(_FINAL_WAITS_S):
                while (task := self._of(piece_id)) is not None:
                    await asyncio.wait([task])
        except TimeoutError:
            if self._task is not None and self._task_piece == piece_id:
                self._task.cancel()
        for one in [one for one in self._waiting if one.utterance.piece_id == piece_id]:
            self._waiting.remove(one)

    async def close(self) -> None:
        """Take all back, and wait until nothing is out."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _of(self, piece_id: int) -> asyncio.Task[None] | None:
        """The one of this utterance that is out, begun now if it is due."""
        self.begin()
        return self._task if self._task_piece == piece_id else None

    def _is_behind(self) -> bool:
        is_busy = self._machinery.engine.backlog_s > _BUSY_BACKLOG_S
        return is_busy or self._is_crowded or len(self._waiting) == self._waiting.maxlen

    def _newest(self) -> InterimDue:
        """The last that is due, and up to where its utterance is by now if it goes on."""
        newest = self._waiting[-1]
        if self._session.current == newest.utterance:
            newest = replace(newest, up_to=self._session.heard)
        return newest

    def _audio_of(self, one: InterimDue) -> Audio:
        audio_start = one.utterance.audio_start
        if one.utterance.options.voice_activity.speech_padding_s is None:  # who says how much is kept has all of it
            audio_start = max(audio_start, one.utterance.speech_start - _LEAD_SAMPLES)
        return self._samples.cut(audio_start, one.up_to)

    def _is_time_for(self, one: InterimDue) -> bool:
        backlog_s, interval_s = self._machinery.engine.backlog_s, self._options.interim_interval_s
        if self._session.is_quiet or backlog_s > _NO_INTERIM_BACKLOG_S or self._machinery.clock.now_s() < self._next_s:
            return False
        since = max(self._up_to, one.utterance.speech_start)
        wait_s = _BACKLOG_WAIT * backlog_s + (interval_s or 0.0) * (self._up_to > one.utterance.speech_start)
        return one.up_to - since >= wait_s * SAMPLE_RATE_HZ

    async def _hear(self, one: InterimDue, audio: Audio) -> None:
        now = one.utterance
        clock, interval_s = self._machinery.clock, self._options.interim_interval_s or 0.0
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
        self._heard(InterimHeard(now.piece_id, text_of(recognition), one.up_to))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._machinery.interim_places.give_back()
        self._done(task)
        self.begin()
