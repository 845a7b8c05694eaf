"""Engine processes that crash, hang, or lose their front: calls see a delay, and the rest goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests import scripted_engine
from tests.harness import REPOSITORY, request, serving
from tests.scripted_engine import begun, count, options, release, speech, text_of, until
from tests.servers import free_port
from typeless_grpc.app.engines import Connected, connected
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Settings
from typeless_grpc.engine.interface import Lane, Ticket
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, Overloaded
from typeless_grpc.pb.v1 import models_pb2, models_pb2_grpc
from typeless_grpc.servicers.models import ModelServicer
from typeless_grpc.telemetry.engine_metrics import EngineMetrics
from typeless_grpc.telemetry.metrics import Metrics

STALL_S = 2.0
KEY = "a-key-of-more-than-20-characters"


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(scripted_engine.JOURNAL, str(tmp_path / "journal"))
    return tmp_path / "journal"


@pytest.fixture
def metrics() -> EngineMetrics:
    return Metrics().engine


async def text(parts: Connected, prompt: str, lane: Lane = Lane.UNARY) -> str:
    return text_of(await parts.group.recognize(speech(0.5), options(prompt), Ticket(lane)))


def decoding(parts: Connected) -> int:
    """The process of the engine that has calls."""
    (busy,) = [process for process, engine in zip(parts.processes, parts.engines, strict=True) if engine.n_sent]
    assert busy.pid is not None
    return busy.pid


def restarts(metrics: EngineMetrics, reason: str) -> float:
    return count(metrics.engine_restarts, reason=reason)


@pytest.mark.parametrize("n_processes", [1, 2], ids=["on the new one", "on another one"])
async def test_the_calls_of_a_killed_engine_are_decoded_again(n_processes: int, journal: Path, metrics: EngineMetrics):
    async with scripted_engine.group(metrics, engine_processes=n_processes) as parts:
        call = asyncio.create_task(text(parts, "busy one"))
        await until(lambda: begun(journal) == ["busy one"])
        os.kill(decoding(parts), signal.SIGKILL)
        assert await call == "busy one"
        assert begun(journal) == ["busy one"] * 2
        await until(lambda: all(engine.is_up for engine in parts.engines))
    assert (restarts(metrics, "exited"), count(metrics.engine_retries)) == (1, 1)


async def test_all_calls_of_a_killed_engine_succeed(journal: Path, metrics: EngineMetrics):
    async with scripted_engine.group(metrics, engine_processes=2) as parts:
        calls = [asyncio.create_task(text(parts, f"slow {number}")) for number in range(8)]
        await until(lambda: len(begun(journal)) >= 2)
        assert parts.processes[0].pid is not None
        os.kill(parts.processes[0].pid, signal.SIGKILL)
        assert await asyncio.gather(*calls) == [f"slow {number}" for number in range(8)]


@pytest.mark.parametrize("how", ["frozen", "stuck"])
async def test_an_engine_that_hangs_is_killed(how: str, journal: Path, metrics: EngineMetrics):
    async with scripted_engine.group(metrics, engine_processes=2, engine_stall_s=STALL_S) as parts:
        if how == "frozen":
            call = asyncio.create_task(text(parts, "busy one"))
            await until(lambda: begun(journal) == ["busy one"])
            os.kill(decoding(parts), signal.SIGSTOP)
            assert await call == "busy one"
        else:
            stuck = asyncio.create_task(text(parts, "hang"))
            await until(lambda: begun(journal) == ["hang"])
            others = [asyncio.create_task(text(parts, f"other {number}")) for number in range(4)]
            assert await asyncio.gather(*others) == [f"other {number}" for number in range(4)]
            with pytest.raises(EngineFailed) as failure:
                await stuck
            assert failure.value.reason == "ENGINE_CRASHED"
            assert begun(journal).count("hang") == 3  # beside others, then twice alone
        await until(lambda: all(engine.is_up for engine in parts.engines))
    assert restarts(metrics, "silent" if how == "frozen" else "stalled") == (1 if how == "frozen" else 3)


async def test_audio_that_crashes_the_engine_fails_alone(journal: Path):
    async with scripted_engine.group(engine_processes=2) as parts:
        await until(lambda: all(engine.is_up for engine in parts.engines))
        calls = [asyncio.create_task(text(parts, f"slow {number}")) for number in range(4)]
        await until(lambda: len(begun(journal)) >= 2)
        with pytest.raises(EngineFailed) as failure:
            await text(parts, "die", Lane.LIVE_FINAL)
        assert failure.value.reason == "ENGINE_CRASHED"
        assert not failure.value.retryable
        assert await asyncio.gather(*calls) == [f"slow {number}" for number in range(4)]
        assert begun(journal).count("die") == 3  # beside others, then twice alone
        assert await text(parts, "after") == "after"


async def test_while_no_engine_is_up_calls_wait_and_interims_are_dropped(journal: Path):
    async with scripted_engine.group(engine_processes=1) as parts:
        (process,), (engine,) = parts.processes, parts.engines
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not engine.is_up)
        with pytest.raises(Overloaded) as refusal:
            await text(parts, "interim", Lane.LIVE_INTERIM)
        assert refusal.value.reason == "INTERIM_DROPPED"
        with pytest.raises(DeadlineExceeded):
            await parts.group.transcribe(speech(0.5), options("late"), Ticket(deadline_s=SystemClock().now_s() + 0.05))
        assert 0 < parts.group.stalled_s < 10
        assert await text(parts, "final", Lane.LIVE_FINAL) == "final"
        assert begun(journal) == ["final"]


async def test_an_engine_that_cannot_start_is_reported():
    settings = Settings(engine_processes=2, device="cpu", log_level="error")
    metrics = Metrics().engine
    async with connected(settings, metrics, metrics, Reloads(settings), module="tests.no_such_module") as parts:
        with pytest.raises(EngineFailed) as failure:
            await asyncio.wait_for(parts.warm(), 30)
    assert failure.value.reason == "ENGINE_NOT_STARTED"


FRONT = """
import asyncio
from tests import scripted_engine
from typeless_grpc.telemetry import logs

async def main():
    logs.configure("error", "json")
    async with scripted_engine.group(engine_processes=2) as parts:
        await scripted_engine.until(lambda: all(engine.is_up for engine in parts.engines))
        print(*(process.pid for process in parts.processes), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("is_frozen", [False, True], ids=["running", "frozen"])
async def test_engines_end_with_their_front(is_frozen: bool):
    front = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FRONT, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    assert front.stdout is not None
    engines = [int(pid) for pid in (await front.stdout.readline()).split()]
    assert len(engines) == 2
    if is_frozen:
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
    front.kill()
    await front.wait()
    await until(lambda: not [pid for pid in engines if is_running(pid)])


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def test_engines_end_with_their_group_and_are_pinned():
    async with scripted_engine.group(engine_processes=2) as parts:
        await until(lambda: all(engine.is_up for engine in parts.engines))
        pids = [process.pid for process in parts.processes if process.pid is not None]
        cores = [set(psutil.Process(pid).cpu_affinity() or ()) for pid in pids]
    assert not [pid for pid in pids if is_running(pid)]
    if len(os.sched_getaffinity(0)) >= 2:
        assert not cores[0] & cores[1]
        assert cores[0] | cores[1] == os.sched_getaffinity(0)


# ---- engines on other machines --------------------------------------------------------------------------------------


@asynccontextmanager
async def front(*ports: int, key: str = KEY) -> AsyncIterator[Connected]:
    """A front of engines on addresses. It may have to wait for them."""
    settings = Settings(
        engine_address=[f"127.0.0.1:{port}" for port in ports], engine_key=key, engine_stall_s=STALL_S, device="cpu"
    )
    metrics = Metrics().engine
    async with connected(settings, metrics, metrics, Reloads(settings)) as parts:
        yield parts


def on_port(port: int) -> dict[str, object]:
    return {"engine_listen": f"127.0.0.1:{port}", "engine_key": KEY}


async def test_two_fronts_share_an_engine_that_stops_and_starts_again(journal: Path):
    port = free_port()
    async with front(port) as one, front(port) as two:
        waiting = asyncio.create_task(text(one, "early"))
        async with scripted_engine.on_port(**on_port(port)):
            assert await asyncio.wait_for(waiting, 30) == "early"
            assert await asyncio.gather(text(one, "a"), text(two, "b")) == ["a", "b"]
            last = asyncio.create_task(text(one, "slow last"))
            await until(lambda: "slow last" in begun(journal))
        assert await last == "slow last"  # an engine that stops finishes what it has
        await until(lambda: not one.engines[0].is_up and not two.engines[0].is_up)
        again = asyncio.create_task(text(two, "again"))
        async with scripted_engine.on_port(**on_port(port)):
            assert await asyncio.wait_for(again, 30) == "again"
    assert begun(journal).count("slow last") == 1


async def test_calls_move_from_an_engine_that_stops_to_another():
    ports = free_port(), free_port()
    async with front(*ports) as parts, scripted_engine.on_port(**on_port(ports[0])):
        async with scripted_engine.on_port(**on_port(ports[1])):
            await until(lambda: all(engine.is_up for engine in parts.engines))
            calls = [asyncio.create_task(text(parts, f"slow {number}")) for number in range(6)]
            await until(lambda: all(engine.n_sent for engine in parts.engines))
        assert await asyncio.gather(*calls) == [f"slow {number}" for number in range(6)]
        assert await text(parts, "after") == "after"


async def test_a_front_with_another_key_gets_nothing(caplog: pytest.LogCaptureFixture):
    port = free_port()
    async with scripted_engine.on_port(**on_port(port)), front(port, key="another-key-of-more-than-20") as parts:
        await until(lambda: "engine_key" in caplog.text)
        assert not parts.engines[0].is_up


# ---- the server around them -----------------------------------------------------------------------------------------


async def test_calls_and_streams_of_a_server_survive_its_engines(journal: Path):
    async with scripted_engine.group(engine_processes=2) as parts, serving(parts.group) as served:
        await until(lambda: all(engine.is_up for engine in parts.engines))
        calls = [
            asyncio.ensure_future(served.transcription.Transcribe(request(1.0, language="en", prompt=f"slow {number}")))
            for number in range(4)
        ]
        await until(lambda: len(begun(journal)) >= 2)
        assert parts.processes[1].pid is not None
        os.kill(parts.processes[1].pid, signal.SIGKILL)
        answers = await asyncio.gather(*calls)
        assert [answer.transcript.text.rpartition(" ")[0] for answer in answers] == [f"slow {n}" for n in range(4)]


async def test_the_models_of_all_engines_are_listed_loaded_and_unloaded():
    async with scripted_engine.group(engine_processes=2) as parts:
        await until(lambda: all(engine.is_up for engine in parts.engines))
        service = ModelServicer(parts.models, parts.models, "scripted")
        async with serving(parts.group, more=[service]) as served:
            stub = models_pb2_grpc.ModelServiceStub(served.channel)
            loaded = await stub.LoadModel(models_pb2.LoadModelRequest(name="other"))
            assert (loaded.model.name, loaded.model.memory_bytes) == ("other", 2)
            await until(lambda: set(parts.models.loaded()) == {"scripted", "other"})
            listed = (await stub.ListModels(models_pb2.ListModelsRequest())).models
            assert {model.name: model.loaded for model in listed} == {"scripted": True, "other": True}
            # An engine that is started again loads it again.
            assert parts.processes[0].pid is not None
            os.kill(parts.processes[0].pid, signal.SIGKILL)
            await until(lambda: not parts.engines[0].is_up)
            await until(lambda: parts.engines[0].is_up and parts.engines[0].models["other"].HasField("loaded"))
            await stub.UnloadModel(models_pb2.UnloadModelRequest(name="other"))
            await until(lambda: set(parts.models.loaded()) == {"scripted"})


async def test_cancelling_a_call_frees_its_engine(journal: Path):
    async with scripted_engine.group(engine_processes=1) as parts, serving(parts.group) as served:
        held = served.transcription.Transcribe(request(1.0, language="en", prompt="wait held"))
        await until(lambda: begun(journal) == ["wait held"])
        queued = [
            served.transcription.Transcribe(request(1.0, language="en", prompt=f"queued {number}"))
            for number in range(4)
        ]
        await until(lambda: parts.engines[0].n_sent == 5)
        for call in queued:
            call.cancel()
        await until(lambda: parts.engines[0].n_sent == 1)
        release()
        await held
        assert begun(journal) == ["wait held"]
