"""Several engines as one.

A call goes to the engine that will serve it first. If its engine is lost, it is decoded again on another one, or on the
new one: alone, because it may be the cause (`dispatch.py`). A call that loses engines while it is alone on them is the
cause, and fails; the others succeed with a delay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from typeless_grpc.audio.formats import Audio
from typeless_grpc.clock import Clock
from typeless_grpc.engine.interface import DecodeOptions, Lane, Recognition, Ticket
from typeless_grpc.engines.connection import EngineLost
from typeless_grpc.engines.dispatch import Connection, Dispatch, connection_of, interim_dropped, unavailable
from typeless_grpc.engines.remote import RemoteEngine
from typeless_grpc.errors import EngineFailed, Overloaded
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

MAX_LOSSES_ALONE = 2  # engines that a call may lose alone before it fails
MAX_LOSSES = 20  # engines that a call may lose in all before it is refused
RESTART_S = 10.0  # for which calls only wait for an engine; without one for longer, the group is broken
# Interims of a caller, two of which lost their engines within this time, are dropped for as long: nobody decodes them
# again, so the cause could be among them.
INTERIM_PAUSE_S = 60.0
Decode = Callable[[RemoteEngine, bool], Awaitable[Recognition]]  # with whether the call must be alone
MOVES = ("DRAINING", "RESERVED")  # reasons of an engine's refusals that do not concern the call


@dataclass(frozen=True)
class GroupOptions:
    """max_wait_s: how long a call waits for an engine when none is up."""

    max_wait_s: float


class InterimLosses:
    """Remembers whose interims lost their engines."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost_s: dict[str, tuple[float, ...]] = {}  # the last two moments, by caller

    def add(self, caller: str) -> None:
        """Note that an engine was lost with an interim of a caller."""
        now_s = self._clock.now_s()
        recent = {one: moments for one, moments in self._lost_s.items() if now_s - moments[-1] < INTERIM_PAUSE_S}
        self._lost_s = recent | {caller: (*recent.get(caller, ()), now_s)[-2:]}

    def is_paused(self, caller: str) -> bool:
        """Whether interims of a caller are dropped."""
        moments = self._lost_s.get(caller, ())
        return len(moments) == 2 and self._clock.now_s() - moments[0] < INTERIM_PAUSE_S


class EngineGroup:
    """An `Engine` over several. Belongs to one event loop."""

    def __init__(
        self,
        engines: Sequence[RemoteEngine],
        clock: Clock,
        options: GroupOptions,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        """on_retry: called for each call that is decoded again."""
        self._engines = engines
        self._clock = clock
        self._on_retry = on_retry
        self._dispatch = Dispatch(engines, clock, options.max_wait_s)
        self._interim_losses = InterimLosses(clock)
        self._down_since_s: float | None = clock.now_s()

    def changed(self) -> None:
        """Note that an engine is up or down, or reserved."""
        if any(engine.is_up for engine in self._engines):
            self._down_since_s = None
        elif self._down_since_s is None:
            self._down_since_s = self._clock.now_s()
        self._dispatch.changed()

    async def up(self) -> None:
        """Wait until an engine is up."""
        await self._dispatch.up()

    @property
    def backlog_s(self) -> float:
        """See `Engine`: of the engine that would serve new work first."""
        return min((engine.backlog_s for engine in self._engines if engine.is_up), default=RESTART_S)

    @property
    def stalled_s(self) -> float:
        """See `Engine`: of the engine with the most progress."""
        if self._down_since_s is not None:
            down_s = self._clock.now_s() - self._down_since_s
            return down_s if down_s < RESTART_S else float("inf")
        return min((engine.stalled_s for engine in self._engines if engine.is_up), default=0.0)

    def n_queued(self, lane: Lane) -> int:
        """Return how many windows of a lane are in the queues of all engines."""
        return sum(engine.n_queued(lane) for engine in self._engines)

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._decode(
            lambda engine, is_alone: engine.transcribe(audio, options, ticket, is_alone=is_alone), ticket
        )

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self._decode(
            lambda engine, is_alone: engine.recognize(utterance, options, ticket, is_alone=is_alone), ticket
        )

    async def _decode(self, decode: Decode, ticket: Ticket) -> Recognition:
        """Decode a call on the engine that serves it first; if the engine is lost, alone on another one."""
        if ticket.lane is Lane.LIVE_INTERIM and self._interim_losses.is_paused(ticket.caller):
            raise interim_dropped()
        n_lost = n_lost_alone = 0
        left_out: set[Connection] = set()  # to engines that were lost, or take no new calls
        while True:
            if n_lost:
                engine = await self._dispatch.reserve(ticket, left_out, n_lost_alone)
            else:
                engine = await self._dispatch.choose(ticket, left_out)
            connection = connection_of(engine)
            try:
                if not n_lost:
                    return await decode(engine, False)
                with self._dispatch.released(engine):
                    return await decode(engine, True)
            except EngineLost as lost:
                left_out.add(connection)
                n_lost += 1
                n_lost_alone += lost.was_alone
                self._check_losses(ticket, lost, n_lost, n_lost_alone)
                log.warning("engine was lost; its call is decoded again", engine=engine.name, why=lost.why)
                self._on_retry()
            except Overloaded as refusal:
                if refusal.reason not in MOVES:
                    raise
                if refusal.reason == "DRAINING":
                    left_out.add(connection)

    def _check_losses(self, ticket: Ticket, lost: EngineLost, n_lost: int, n_lost_alone: int) -> None:
        """Raise if a call that lost an engine is not decoded again."""
        if ticket.lane is Lane.LIVE_INTERIM:
            self._interim_losses.add(ticket.caller)
            raise interim_dropped() from lost
        if n_lost_alone == MAX_LOSSES_ALONE:
            log.error("two engines were lost while they decoded this call and nothing else; it fails")
            why = f"{MAX_LOSSES_ALONE} engines were lost while they decoded this audio and nothing else."
            raise EngineFailed(why, reason="ENGINE_CRASHED") from lost
        if n_lost == MAX_LOSSES:
            raise unavailable() from lost
