"""Decodes the interims of a stream, with the capacity that finals leave.

One interim of a stream is in the engine at a time, and few of all streams are, because a running decode cannot be
stopped when a final arrives.

While the engine keeps up, every interim that the session finds due is decoded, in order and up to its exact sample. The
final waits for the interims of its utterance, and audio that arrives faster waits as well. So the same audio commits
the same words and gives the same final. Once the engine has a backlog, or other streams hold all slots, only the newest
interim is decoded, up to the end of the audio; interims come less often, or not at all. If a final would have to wait
for a free worker, the interims are cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import TypelessError
from typeless_grpc.streaming.decoding import Decoder
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.effects import InterimDue
from typeless_grpc.streaming.finals import mean_confidence, text_of
from typeless_grpc.streaming.inputs import InterimDecoded
from typeless_grpc.streaming.meter import StreamMeter
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.session import Session

_BUSY_BACKLOG_S = 0.4  # an engine with a longer backlog does not keep up
_NO_INTERIM_BACKLOG_S = 1.0  # with a longer backlog, no interim is decoded
_BACKLOG_WAIT = 2.0  # seconds of audio between interims for each second of backlog
_REST = 2.0  # pause after an interim on a busy engine, as a multiple of its decode time
_LEAD_SAMPLES = round(0.3 * SAMPLE_RATE_HZ)  # audio before the speech; more would take time
_MIN_DEADLINE_S = 2.0  # an interim is useless after this, and after two intervals
_MAX_WAITING = 2  # with more interims due, an engine that keeps up gets no more audio
_MAX_QUEUED = 8  # with so many, the stream is behind
_AUDIO_WAITS_S = 2.0  # longest wait of audio for one interim
FINAL_WAITS_S = 2.0  # longest wait of a final for its interims, on an engine that keeps up


class InterimHost(Protocol):
    """The stream that interims belong to.

    meter: has the context for decodes, because other streams may call `begin`.
    """

    meter: StreamMeter

    def accepts_interims_of(self, utterance_id: int) -> bool:
        """Whether an interim of this utterance can be used now: no earlier utterance is pending."""
        ...

    def take_interim(self, interim: InterimDecoded) -> None:
        """Take an interim that was decoded."""
        ...

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """Check a finished task for an unexpected error."""
        ...


class Interims:
    """The interims of one stream."""

    def __init__(
        self,
        dependencies: Dependencies,
        options: StreamOptions,
        session: Session,
        samples: SampleBuffer,
        decoder: Decoder,
        host: InterimHost,
    ) -> None:
        self._dependencies, self._options, self._session, self._samples = dependencies, options, session, samples
        self._decoder, self._host = decoder, host
        self._due: deque[InterimDue] = deque(maxlen=_MAX_QUEUED)
        self._task: asyncio.Task[None] | None = None
        self._task_utterance_id = -1
        self._lacked_slot = False  # no slot was free when an interim was due
        self._up_to = 0  # the sample up to which the last one that began decodes
        self._next_s = 0.0  # on a busy engine, the earliest time of the next one

    def add(self, due: InterimDue) -> None:
        """Decode this interim as soon as the engine has time for it."""
        self._skipped(len(self._due) == _MAX_QUEUED)
        self._due.append(due)
        self.begin()

    def begin(self) -> None:
        """Begin to decode the next interim that is due, if no final has to wait for it."""
        if self._task is not None or not self._due:
            return
        is_behind = self._is_behind()
        one = self._newest() if is_behind else self._due[0]
        if not self._host.accepts_interims_of(one.utterance.id) or (is_behind and not self._is_time_for(one)):
            return
        if not self._dependencies.interim_slots.acquire(self.begin):
            self._lacked_slot = True
            return
        self._lacked_slot = False
        if is_behind:
            self._skipped(len(self._due) - 1)
            self._due.clear()
        else:
            self._due.popleft()
        self._up_to, self._task_utterance_id = one.up_to, one.utterance.id
        self._task = asyncio.create_task(self._decode(one, self._audio_of(one)), context=self._host.meter.context)
        self._task.add_done_callback(self._ended)

    def yield_to_finals(self) -> None:
        """Cancel all interims if a final would have to wait for the engine."""
        if self._dependencies.engine.backlog_s > 0:
            self._skipped(len(self._due))
            self._due.clear()
            if self._task is not None:
                self._task.cancel()

    async def caught_up(self, finals: Collection[asyncio.Task[None]]) -> None:
        """Wait while more interims are due than an engine that keeps up may lag behind.

        finals: the running decodes of finals, which go first.
        """
        while len(self._due) > _MAX_WAITING and not self._is_behind():
            working = [*finals, *([self._task] if self._task is not None else [])]
            if not working:
                return
            done, _ = await asyncio.wait(working, timeout=_AUDIO_WAITS_S, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return

    async def settled(self, utterance_id: int) -> None:
        """Wait for the interims of an utterance whose final is decoded; drop them if the engine does not keep up."""
        self.yield_to_finals()
        try:
            async with asyncio.timeout(FINAL_WAITS_S):
                while (task := self._task_of(utterance_id)) is not None:
                    await asyncio.wait([task])
        except TimeoutError:
            if self._task is not None and self._task_utterance_id == utterance_id:
                self._task.cancel()
        for one in [one for one in self._due if one.utterance.id == utterance_id]:
            self._due.remove(one)
            self._skipped(1)

    async def close(self) -> None:
        """Cancel all, and wait until none runs."""
        self._due.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _task_of(self, utterance_id: int) -> asyncio.Task[None] | None:
        """Return the running interim of this utterance; begin it if it is due."""
        self.begin()
        return self._task if self._task_utterance_id == utterance_id else None

    def _is_behind(self) -> bool:
        """Whether the engine does not keep up, so that only the newest interim is decoded."""
        is_busy = self._dependencies.engine.backlog_s > _BUSY_BACKLOG_S
        return is_busy or self._lacked_slot or len(self._due) == self._due.maxlen

    def _newest(self) -> InterimDue:
        """Return the newest one that is due, up to the end of the audio if its utterance is open."""
        newest = self._due[-1]
        if self._session.current == newest.utterance:
            newest = replace(newest, up_to=self._session.segmented)
        return newest

    def _audio_of(self, one: InterimDue) -> Audio:
        audio_start = one.utterance.audio_start
        if one.utterance.options.voice_activity.speech_padding_s is None:  # a requested padding is kept whole
            audio_start = max(audio_start, one.utterance.speech_start - _LEAD_SAMPLES)
        return self._samples.cut(audio_start, one.up_to)

    def _is_time_for(self, one: InterimDue) -> bool:
        """Whether an engine that does not keep up has time for an interim: enough audio came since the last one."""
        backlog_s, interval_s = self._dependencies.engine.backlog_s, self._options.interim_interval_s
        if (
            self._session.is_quiet
            or backlog_s > _NO_INTERIM_BACKLOG_S
            or self._dependencies.clock.now_s() < self._next_s
        ):
            return False
        since = max(self._up_to, one.utterance.speech_start)
        wait_s = _BACKLOG_WAIT * backlog_s + (interval_s or 0.0) * (self._up_to > one.utterance.speech_start)
        return one.up_to - since >= wait_s * SAMPLE_RATE_HZ

    async def _decode(self, one: InterimDue, audio: Audio) -> None:
        """Decode one interim, and rest for a while that grows with the time it took."""
        utterance = one.utterance
        clock, interval_s = self._dependencies.clock, self._options.interim_interval_s or 0.0
        began_s = clock.now_s()
        deadline_s = began_s + max(_MIN_DEADLINE_S, 2 * interval_s)
        ticket = Ticket(Lane.LIVE_INTERIM, self._options.caller, deadline_s)
        options = replace(self._decoder.expecting(utterance.options), word_timestamps=False, output_formats=())
        try:
            recognition = await self._dependencies.engine.recognize(audio, options, ticket)
        except TypelessError:
            self._next_s = clock.now_s() + interval_s  # after a failure, too: no text depends on an interim
            self._dependencies.observer.interim("dropped")
            return
        self._next_s = clock.now_s() + _REST * (clock.now_s() - began_s)
        confidence = mean_confidence(recognition.transcript.segments)
        self._host.take_interim(InterimDecoded(utterance.id, text_of(recognition), one.up_to, confidence))

    def _skipped(self, n: int) -> None:
        for _ in range(n):
            self._dependencies.observer.interim("skipped")

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._dependencies.interim_slots.release()
        self._host.task_ended(task)
        self.begin()
