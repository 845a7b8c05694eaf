"""What callers expect of an `Engine`: in this process, in another one, on an address, and as a group of processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from tests import scripted_engine
from tests.scripted_engine import begun, begun_by_process, hold, options, release, speech, text_of, until
from tests.servers import free_port
from typeless_grpc.account import CallAccount, opened
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.clock import SystemClock
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Engine,
    Lane,
    PostProcessing,
    Ticket,
    VoiceActivityOptions,
)
from typeless_grpc.engine.observer import BatchReport
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, NotFound
from typeless_grpc.telemetry.engine_metrics import EngineMetrics

CLOCK = SystemClock()
ADDRESS = -1

call_name: ContextVar[str] = ContextVar("call_name", default="")

pytestmark = pytest.mark.asyncio(loop_scope="module")


class RecordingMetrics(EngineMetrics):
    """Keeps the batches, and the calls that their windows came from."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())
        self.batches: list[tuple[BatchReport, list[str]]] = []
        self.refused_for: list[tuple[Lane, str]] = []

    def batch_ended(self, batch: BatchReport) -> None:
        self.batches.append((batch, [window.context.get(call_name, "") for window in batch.windows]))

    def refused(self, lane: Lane, reason: str) -> None:
        self.refused_for.append((lane, reason))


@dataclass
class Bench:
    """An engine of n processes, 0 for this one, and what it has reported.

    n_queued: windows in its queue. is_idle: whether all processes have reported that they have nothing to do.
    """

    engine: Engine
    n_processes: int
    n_queued: Callable[[Lane], int]
    is_idle: Callable[[], bool]
    metrics: RecordingMetrics
    journal: Path
    done: list[str] = field(default_factory=list)

    async def decode(self, prompt: str, lane: Lane = Lane.UNARY, caller: str = "") -> None:
        """Decode half a second with a prompt, and note when it is done."""
        await self.engine.recognize(speech(0.5), options(prompt), Ticket(lane, caller))
        self.done.append(prompt)

    async def until(self, *prompts: str) -> None:
        """Wait until decodes with these prompts have begun."""
        await until(lambda: set(prompts) <= set(begun(self.journal)))

    async def occupied(self) -> list[asyncio.Task[None]]:
        """Let each engine begin a decode, which ends with `release`."""
        with suppress(TimeoutError):
            await until(self.is_idle, 5.0)  # else one of them may get two
        prompts = [f"wait {number}" for number in range(max(1, self.n_processes))]
        tasks = [asyncio.create_task(self.decode(prompt)) for prompt in prompts]
        await self.until(*prompts)
        return tasks

    def begin(self, *prompts: str, lane: Lane = Lane.UNARY, caller: str = "") -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.decode(prompt, lane, caller)) for prompt in prompts]

    async def queued(self, n: int, lane: Lane = Lane.UNARY) -> None:
        """Wait until n windows of a lane are in the queue."""
        await until(lambda: self.n_queued(lane) == n)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[0, 1, ADDRESS, 2], ids=["here", "a process", "an address", "a group"]
)
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    journal = tmp_path_factory.mktemp("engine") / "journal"
    metrics = RecordingMetrics()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(scripted_engine.JOURNAL, str(journal))
        async with AsyncExitStack() as stack:
            connections: list[Any] = []
            if request.param == 0:
                built = await stack.enter_async_context(scripted_engine.built(metrics))
                engine: Engine = built.recognizer
                n_queued: Callable[[Lane], int] = built.scheduler.n_queued
            elif request.param == ADDRESS:
                settings = {"engine_key": "a-key-of-more-than-20-characters"}
                port = free_port()
                await stack.enter_async_context(scripted_engine.on_port(engine_listen=f"127.0.0.1:{port}", **settings))
                parts = await stack.enter_async_context(
                    scripted_engine.group(metrics, engine_address=[f"127.0.0.1:{port}"], **settings)
                )
                engine, n_queued = parts.engines[0], parts.group.n_queued
            else:
                parts = await stack.enter_async_context(
                    scripted_engine.group(metrics, engine_processes=request.param, engine_stall_s=30.0)
                )
                await until(lambda: all(one.is_up for one in parts.engines))
                engine, n_queued = parts.group if request.param > 1 else parts.engines[0], parts.group.n_queued
                connections = list(parts.engines)

            def is_idle() -> bool:
                return not any(one.n_sent or one.backlog_s for one in connections)

            yield Bench(engine, abs(request.param), n_queued, is_idle, metrics, journal)


@pytest.fixture
def bench(running: Bench) -> Iterator[Bench]:
    running.journal.write_text("")
    running.done.clear()
    running.metrics.batches.clear()
    running.metrics.refused_for.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(scripted_engine.JOURNAL, str(running.journal))
        hold()
        yield running
        release()


@pytest.mark.parametrize(
    ("audio", "wanted"),
    [
        (speech(4.0, 6.0), options("yes", word_timestamps=True, hotwords=("Ann", "Bob"))),
        (speech(*[9.0] * 14), options(chunking=Chunking.VAD)),  # 154 s are more than one message
        (speech(*[29.0] * 18), options(chunking=Chunking.VAD)),  # 558 s are more than the shared memory
        (speech(2.0, 2.0, pause_s=0.6), options(voice_activity=VoiceActivityOptions(end_silence_s=0.4))),
        (speech(2.0), options(model="other", post_processing=PostProcessing(replacements={"a": "ü"}))),
        (speech(2.0, 2.0), DecodeOptions(allowed_languages=("de", "es"), temperatures=(0.0, 0.4))),
        (np.zeros(SAMPLE_RATE_HZ, np.float32), options()),
        (np.zeros(0, np.float32), options()),
    ],
    ids=["words", "long", "longest", "voice activity", "another model", "languages", "silence", "no audio"],
)
async def test_transcripts_are_those_of_a_recognizer(bench: Bench, audio: Audio, wanted: DecodeOptions):
    async with scripted_engine.built() as built:
        expected = await built.recognizer.transcribe(audio, wanted, Ticket())
    found = await bench.engine.transcribe(audio, wanted, Ticket())
    assert found == replace(expected, queue_s=found.queue_s)


async def test_an_utterance_of_more_than_30_s_is_refused(bench: Bench):
    with pytest.raises(InvalidInput) as refusal:
        await bench.engine.recognize(np.zeros(31 * SAMPLE_RATE_HZ, np.float32), options(), Ticket())
    assert [one.field for one in refusal.value.violations] == ["audio"]


async def test_a_language_that_the_model_lacks_is_refused(bench: Bench):
    with pytest.raises(InvalidInput) as refusal:
        await bench.engine.transcribe(speech(1.0), DecodeOptions(language="fr"), Ticket())
    assert refusal.value.reason == "LANGUAGE_NOT_SUPPORTED"
    assert [one.field for one in refusal.value.violations] == ["options.language"]


async def test_an_unknown_model_is_not_found(bench: Bench):
    with pytest.raises(NotFound) as refusal:
        await bench.engine.transcribe(speech(1.0), options(model="none"), Ticket())
    assert refusal.value.reason == "MODEL_NOT_FOUND"


async def test_a_failure_of_the_model_is_reported(bench: Bench):
    with pytest.raises(EngineFailed) as failure:
        await bench.engine.recognize(speech(1.0), options("fail"), Ticket())
    assert failure.value.reason == "ENGINE_FAILED"


async def test_work_that_is_late_is_refused(bench: Bench):
    with pytest.raises(DeadlineExceeded):
        await bench.engine.transcribe(speech(1.0), options(), Ticket(deadline_s=CLOCK.now_s() - 1.0))


async def test_a_deadline_that_passes_in_the_queue_ends_the_call(bench: Bench):
    occupying = await bench.occupied()
    ticket = Ticket(deadline_s=CLOCK.now_s() + 0.1)
    late = asyncio.create_task(bench.engine.recognize(speech(0.5), options("late"), ticket))
    await asyncio.sleep(0.2)  # the deadline passes
    release()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(*occupying)
    assert "late" not in begun(bench.journal)


async def test_cancelled_work_never_runs(bench: Bench):
    occupying = await bench.occupied()
    cancelled = bench.begin(*(f"cancelled {number}" for number in range(4)))
    await bench.queued(4)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    await bench.queued(0)
    release()
    await asyncio.gather(*occupying)
    await bench.decode("last")
    assert not [prompt for prompt in begun(bench.journal) if prompt.startswith("cancelled")]


async def test_urgent_work_goes_first(bench: Bench):
    occupying = await bench.occupied()
    n = max(1, bench.n_processes)
    jobs = bench.begin(*(f"job {number}" for number in range(6 * n)), lane=Lane.JOBS)
    await bench.queued(6 * n, Lane.JOBS)
    finals = bench.begin(*(f"final {number}" for number in range(n)), lane=Lane.LIVE_FINAL)
    await bench.queued(n, Lane.LIVE_FINAL)
    release()
    await asyncio.gather(*occupying, *jobs, *finals)
    for order in begun_by_process(bench.journal):
        waited = [prompt.partition(" ")[0] for prompt in order if not prompt.startswith("wait")]
        assert waited == sorted(waited)  # finals before jobs
    assert {f"final {number}" for number in range(n)} <= set(begun(bench.journal))


async def test_callers_share_the_engine_fairly(bench: Bench):
    occupying = await bench.occupied()
    n = max(1, bench.n_processes)
    many = bench.begin(*(f"eager {number}" for number in range(8 * n)), caller="eager")
    await bench.queued(8 * n)
    one = bench.begin("modest 0", caller="modest")
    await bench.queued(8 * n + 1)
    release()
    await asyncio.gather(*occupying, *many, *one)
    (order,) = [order for order in begun_by_process(bench.journal) if "modest 0" in order]
    assert order.index("modest 0") <= 3  # behind the one that occupies it


async def test_parallel_calls_get_their_own_results(bench: Bench):
    async def text(number: int) -> str:
        return text_of(await bench.engine.transcribe(speech(0.5 + number / 10), options(f"call {number}"), Ticket()))

    assert await asyncio.gather(*(text(number) for number in range(24))) == [f"call {n}" for n in range(24)]


async def test_the_call_is_charged_for_what_it_used(bench: Bench):
    began_s = CLOCK.now_s()
    with opened(CallAccount()) as used:
        recognition = await bench.engine.recognize(speech(1.0), options("slow"), Ticket())
    assert 0.35 < used.processing_s <= CLOCK.now_s() - began_s
    assert used.queue_s == recognition.queue_s


async def test_its_work_is_observed_in_the_context_of_the_call(bench: Bench):
    call_name.set("mine")
    began_s = CLOCK.now_s()
    await bench.engine.recognize(speech(1.0), options("slow"), Ticket(Lane.LIVE_FINAL))
    # The report of an earlier call may still be on its way.
    await until(lambda: any("mine" in names for _, names in bench.metrics.batches))
    ((batch, names),) = [one for one in bench.metrics.batches if "mine" in one[1]]
    assert names == ["mine"]
    assert [window.lane for window in batch.windows] == [Lane.LIVE_FINAL]
    assert batch.windows[0].is_done
    assert began_s - 0.05 <= batch.windows[0].submitted_s <= batch.started_s <= batch.ended_s - 0.35
    assert {stage.name for stage in batch.stages} >= {"encode", "decode"}


async def test_refusals_are_observed(bench: Bench):
    with pytest.raises(EngineFailed):
        await bench.engine.recognize(speech(1.0), options("fail"), Ticket(Lane.JOBS))
    await until(lambda: bench.metrics.refused_for)
    assert bench.metrics.refused_for == [(Lane.JOBS, "ENGINE_FAILED")]


async def test_an_idle_engine_has_no_backlog_and_is_not_stalled(bench: Bench):
    await until(lambda: bench.engine.backlog_s == bench.engine.stalled_s == 0)


async def test_a_busy_engine_reports_its_backlog(bench: Bench):
    n = max(1, bench.n_processes)
    # Each process measures its pace by a slow call; one of them may get two.
    while sum("slow pace" in prompts for prompts in begun_by_process(bench.journal)) < n:
        await asyncio.gather(*bench.begin(*["slow pace"] * n))
    waiting = [*await bench.occupied(), *bench.begin(*(f"after {number}" for number in range(3 * n)))]
    await until(lambda: bench.engine.backlog_s > 0.2 and bench.engine.stalled_s > 0)
    release()
    await asyncio.gather(*waiting)
