"""Which engine a call goes to, and how calls that may crash one are kept apart from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.engines.dispatch import PATIENCE_S, Dispatch
from typeless_grpc.engines.group import INTERIM_PAUSE_S, InterimLosses
from typeless_grpc.errors import DeadlineExceeded, Overloaded

MAX_WAIT_S = 60.0


@dataclass
class Engine:
    name: str
    is_up: bool = True
    is_reserved: bool = False
    is_suspicious: bool = False
    generation: int = 1
    n_sent: int = 0
    backlog_s: float = 0.0

    def wait_s(self, lane: Lane) -> float:
        return self.backlog_s


class Bench:
    """A dispatch over engines, and calls that say where they went and stay there until they are ended."""

    def __init__(self, *engines: Engine) -> None:
        self.clock = FakeClock(100.0)
        self.dispatch = Dispatch(engines, self.clock, MAX_WAIT_S)
        self.went: list[tuple[str, str]] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def call(self, name: str, lane: Lane = Lane.UNARY, **more: float) -> asyncio.Task[None]:
        """Begin a call that may use any engine."""

        async def use() -> None:
            engine = await self.dispatch.choose(Ticket(lane, "", more.get("deadline_s")), ())
            self.went.append((name, engine.name))

        return await self._begun(use())

    async def quarantined(self, name: str, lane: Lane = Lane.UNARY, n_losses: int = 0) -> asyncio.Task[None]:
        """Begin a call that must be alone."""
        self._ends[name] = asyncio.Event()

        async def use() -> None:
            engine = await self.dispatch.reserve(Ticket(lane), (), n_losses)
            with self.dispatch.released(engine):
                self.went.append((name, engine.name))
                await self._ends[name].wait()

        return await self._begun(use())

    async def _begun(self, use: object) -> asyncio.Task[None]:
        task = asyncio.create_task(use)  # type: ignore[arg-type]
        await until_idle()
        return task

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await until_idle()

    async def later(self, seconds: float = 0.0) -> None:
        """Let time pass, and the state of an engine change."""
        self.clock.advance(seconds)
        self.dispatch.changed()
        await until_idle()


async def test_a_call_goes_to_the_engine_that_serves_it_first():
    bench = Bench(
        Engine("slow", backlog_s=2.0), Engine("silent", is_suspicious=True), Engine("down", is_up=False), Engine("free")
    )
    await bench.call("one")
    assert bench.went == [("one", "free")]


async def test_quarantined_calls_are_alone_and_leave_another_engine_to_the_others():
    bench = Bench(Engine("a", n_sent=3), Engine("b"))
    await bench.quarantined("first")
    await bench.quarantined("second")
    for number in range(3):
        await bench.call(f"call {number}")
    assert bench.went == [("first", "b"), *((f"call {number}", "a") for number in range(3))]
    await bench.end("first")
    assert bench.went[-1] == ("second", "b")
    await bench.end("second")


async def test_with_three_engines_two_quarantined_calls_run_at_a_time():
    bench = Bench(Engine("a"), Engine("b"), Engine("c"))
    for name in ("first", "second", "third"):
        await bench.quarantined(name)
    assert [name for name, _ in bench.went] == ["first", "second"]
    await bench.end("first", "second", "third")
    assert [name for name, _ in bench.went] == ["first", "second", "third"]


async def test_with_one_engine_quarantined_calls_and_others_take_turns():
    bench = Bench(Engine("only"))
    await bench.quarantined("first")
    await bench.quarantined("second")
    await bench.call("call 1")
    await bench.call("call 2")
    assert [name for name, _ in bench.went] == ["first"]
    with pytest.raises(Overloaded) as refusal:
        await bench.dispatch.choose(Ticket(Lane.LIVE_INTERIM), ())
    assert refusal.value.reason == "INTERIM_DROPPED"
    await bench.end("first")
    assert [name for name, _ in bench.went] == ["first", "call 1", "call 2", "second"]
    await bench.end("second")


async def test_a_quarantined_call_waits_a_moment_for_a_second_engine():
    down = Engine("down", is_up=False)
    bench = Bench(Engine("up"), down)
    await bench.quarantined("first")
    await bench.later(PATIENCE_S / 2)
    assert not bench.went
    down.is_up = True
    await bench.later()
    assert [name for name, _ in bench.went] == ["first"]
    await bench.end("first")
    down.is_up = False
    await bench.quarantined("second")
    await bench.later(PATIENCE_S)
    assert bench.went[-1] == ("second", "up")
    await bench.end("second")


async def test_the_least_likely_causes_go_first():
    bench = Bench(Engine("only"))
    await bench.quarantined("first")
    for name, lane, n_losses in (
        ("lost one", Lane.LIVE_FINAL, 1),
        ("job", Lane.JOBS, 0),
        ("call", Lane.UNARY, 0),
        ("final", Lane.LIVE_FINAL, 0),
    ):
        await bench.quarantined(name, lane, n_losses)
    await bench.end("first", "final", "call", "job", "lost one")
    assert [name for name, _ in bench.went] == ["first", "final", "call", "job", "lost one"]


async def test_a_quarantined_call_that_is_cancelled_while_it_waits_delays_nobody():
    bench = Bench(Engine("only"))
    await bench.quarantined("first")
    cancelled = await bench.quarantined("cancelled")
    await bench.quarantined("last")
    cancelled.cancel()
    await bench.end("first")
    assert [name for name, _ in bench.went] == ["first", "last"]
    await bench.end("last")
    await bench.call("after")
    assert bench.went[-1] == ("after", "only")


async def test_an_engine_that_another_front_has_reserved_gets_no_calls():
    reserved = Engine("reserved", is_reserved=True)
    bench = Bench(reserved, Engine("free", backlog_s=5.0))
    await bench.call("one")
    await bench.quarantined("quarantined")
    assert bench.went == [("one", "free")]
    reserved.is_reserved = False
    await bench.later()
    assert bench.went[-1] == ("quarantined", "reserved")
    await bench.end("quarantined")


@pytest.mark.parametrize("is_quarantined", [False, True])
async def test_waiting_for_an_engine_ends(is_quarantined: bool):
    engine = Engine("only", is_up=False)
    bench = Bench(engine)
    begin = bench.quarantined if is_quarantined else bench.call
    waiting: Sequence[asyncio.Task[None]] = [await begin("late")]
    await bench.later(MAX_WAIT_S - 1)
    engine.is_up = engine.is_reserved = True  # there is hope again
    await bench.later()
    engine.is_up = False
    await bench.later(MAX_WAIT_S - 1)
    assert not waiting[0].done()
    await bench.later(2.0)
    with pytest.raises(Overloaded) as refusal:
        await waiting[0]
    assert refusal.value.reason == "ENGINE_UNAVAILABLE"


async def test_a_deadline_ends_the_wait():
    bench = Bench(Engine("only", is_up=False))
    call = await bench.call("late", deadline_s=101.0)
    await bench.later(1.0)
    with pytest.raises(DeadlineExceeded):
        await call


def test_interims_of_a_caller_pause_when_two_of_them_lost_their_engines():
    clock = FakeClock()
    losses = InterimLosses(clock)
    losses.add("ann")
    losses.add("bob")
    assert not losses.is_paused("ann")
    clock.advance(INTERIM_PAUSE_S - 1)
    losses.add("ann")
    assert losses.is_paused("ann")
    assert not losses.is_paused("bob")
    clock.advance(1)
    assert not losses.is_paused("ann")
    losses.add("ann")
    assert losses.is_paused("ann")
