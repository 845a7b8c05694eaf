"""Two processes that take calls on one port behave as one server: keys, limits, streams, settings, life."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.harness import AUDIO
from tests.servers import free_port, redis_server
from typeless_grpc.pb.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    audio_pb2,
    server_pb2,
    server_pb2_grpc,
    transcription_pb2,
    transcription_pb2_grpc,
)

pytestmark = pytest.mark.timeout(200)

ADMIN = (("x-api-key", "an-admin-key-of-this-test"),)
TIMEOUT_S = 60.0
PCM = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
SPOKEN = (AUDIO / "en_short_s16le_16k.raw").read_bytes()
SETTINGS = """
[server]
front_processes = 2
[limits]
max_batch_items = {max_batch_items}
rate_limit_transcribe = "6/minute"
[streams]
stream_store = "database"
"""


@dataclass(frozen=True)
class Server:
    """A server of two fronts. metrics_port: of the first front."""

    process: psutil.Process
    port: int
    metrics_port: int
    settings: Path

    @property
    def fronts(self) -> list[psutil.Process]:
        """The processes that take calls."""
        return [one for one in self.process.children() if self._listens(one)]

    def _listens(self, process: psutil.Process) -> bool:
        try:
            found = process.net_connections("tcp")
        except psutil.Error:
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in found)

    def configure(self, **settings: int) -> None:
        """Write the settings."""
        self.settings.write_text(SETTINGS.format(**settings))

    @asynccontextmanager
    async def connected(self, front: psutil.Process) -> AsyncIterator[grpc.aio.Channel]:
        """A connection that this front has."""
        async with AsyncExitStack() as others:
            for _ in range(64):  # of which half lead to each of two fronts
                before = _peers(front, self.port)
                channel = grpc.aio.insecure_channel(
                    f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
                )
                await others.enter_async_context(channel)
                await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
                if _peers(front, self.port) - before:
                    yield channel
                    return
        raise AssertionError("no connection reached this front")


def _peers(front: psutil.Process, port: int) -> set[int]:
    found = front.net_connections("tcp")
    return {one.raddr.port for one in found if one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run a server of two fronts until this closes; it must end well."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder))
        engine_port, port, metrics_port = free_port(), free_port(), free_port()
        engine = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale.engine", str(engine_port), "1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_ended, engine)
        assert engine.stdout is not None
        engine.stdout.readline()
        settings = folder / "settings.toml"
        given = {
            "engine_address": f"127.0.0.1:{engine_port}",
            "redis_url": redis.url,
            "data_dir": folder / "data",
            "metrics_port": metrics_port,
            "auth_enabled": True,
            "require_auth": True,
            "admin_keys": ADMIN[0][1],
        }
        settings.write_text(SETTINGS.format(max_batch_items=5))
        process = subprocess.Popen(
            [sys.executable, "-m", "typeless_grpc.cli", "serve", "--port", str(port), "--config", str(settings)],
            env=os.environ | {f"TYPELESS_{name.upper()}": str(value) for name, value in given.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_ended, process)
        assert process.stdout is not None
        assert "takes calls on" in process.stdout.readline()
        yield Server(psutil.Process(process.pid), port, metrics_port, settings)


def _ended(process: subprocess.Popen[str]) -> None:
    with process:
        if process.poll() is None:
            process.terminate()
        assert process.wait(TIMEOUT_S) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("fronts")) as one:
        yield one


@pytest.fixture
async def channels(server: Server) -> AsyncIterator[list[grpc.aio.Channel]]:
    """A connection to each front."""
    async with AsyncExitStack() as stack:
        await until(lambda: len(server.fronts) == 2)
        yield [await stack.enter_async_context(server.connected(front)) for front in server.fronts]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 # another process sets no event
            await asyncio.sleep(0.05)


async def new_key(channel: grpc.aio.Channel) -> tuple[tuple[str, str]]:
    made = await admin_pb2_grpc.AdminServiceStub(channel).CreateApiKey(
        admin_pb2.CreateApiKeyRequest(display_name="new"), metadata=ADMIN
    )
    return (("x-api-key", made.secret),)


async def max_batch_items(channel: grpc.aio.Channel) -> int:
    info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
        server_pb2.GetServerInfoRequest(), metadata=ADMIN
    )
    return int(info.max_batch_items)


async def test_a_key_that_one_front_made_works_in_the_other_at_once(channels: list[grpc.aio.Channel]):
    key = await new_key(channels[0])
    stub = server_pb2_grpc.ServerServiceStub(channels[1])
    await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=key)


async def test_a_quota_holds_for_both_together_to_the_call(channels: list[grpc.aio.Channel]):
    key = await new_key(channels[0])
    audio = audio_pb2.AudioSource(content=SPOKEN, format=PCM)

    async def code(channel: grpc.aio.Channel) -> grpc.StatusCode:
        stub = transcription_pb2_grpc.TranscriptionServiceStub(channel)
        try:
            await stub.Transcribe(transcription_pb2.TranscribeRequest(audio=audio), metadata=key)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = await asyncio.gather(*(code(channels[number % 2]) for number in range(10)))
    assert codes.count(grpc.StatusCode.OK) == 6
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 4


class Call:
    """A call of a stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = transcription_pb2_grpc.TranscriptionServiceStub(channel).StreamTranscribe(metadata=ADMIN)

    async def send(self, **request: Any) -> None:
        await self._call.write(transcription_pb2.StreamTranscribeRequest(**request))

    async def until(self, kind: str) -> transcription_pb2.StreamTranscribeResponse:
        """Read up to the first event of this kind."""
        async with asyncio.timeout(TIMEOUT_S):
            while (event := await self._call.read()) is not grpc.aio.EOF:
                if event.WhichOneof("event") == kind:
                    return event
        raise AssertionError(f"the call ended before {kind}: {await self._call.details()}")

    def cancel(self) -> None:
        self._call.cancel()


LIVE = transcription_pb2.StreamConfig(format=PCM, options=transcription_pb2.TranscriptionOptions(language="en"))
END = transcription_pb2.STREAM_CONTROL_END


async def test_a_stream_resumes_on_the_other_front(channels: list[grpc.aio.Channel]):
    first = Call(channels[0])
    await first.send(config=LIVE)
    session_id = (await first.until("started")).started.session_id
    await first.send(audio=SPOKEN + bytes(32_000))
    final = await first.until("segment")
    first.cancel()

    second = Call(channels[1])
    again = transcription_pb2.StreamConfig(resume_session_id=session_id, resume_after_sequence=0)
    await second.send(config=again)
    resumed = await second.until("started")
    assert resumed.started.resumed
    await second.send(audio=(SPOKEN + bytes(32_000))[resumed.acknowledged_bytes :])
    assert (await second.until("segment")).segment == final.segment
    await second.send(control=END)
    completed = await second.until("completed")
    assert list(completed.completed.transcript.segments) == [final.segment]


async def test_a_reload_reaches_both(server: Server, channels: list[grpc.aio.Channel]):
    server.configure(max_batch_items=7)
    server.process.send_signal(signal.SIGHUP)
    for channel in channels:
        async with asyncio.timeout(TIMEOUT_S):
            while await max_batch_items(channel) != 7:  # noqa: ASYNC110 # another process sets no event
                await asyncio.sleep(0.05)


def test_each_front_has_its_own_metrics(server: Server):
    for index in range(2):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port + index}/metrics", timeout=10) as answer:
            assert b"typeless_engine_up" in answer.read()


async def test_a_killed_front_is_started_again_and_the_calls_of_the_other_go_on(server: Server):
    killed, other = server.fronts
    async with server.connected(other) as channel:
        call = Call(channel)
        await call.send(config=LIVE)
        await call.until("started")
        killed.kill()
        await until(lambda: len(server.fronts) == 2 and killed not in server.fronts)
        assert other in server.fronts
        await call.send(audio=SPOKEN)
        await call.send(control=END)
        await call.until("completed")


async def test_sigterm_drains_both_which_hand_over_their_streams(server: Server):
    """The last test of this server."""
    async with AsyncExitStack() as stack:
        calls = []
        for front in server.fronts:
            calls.append(Call(await stack.enter_async_context(server.connected(front))))
            await calls[-1].send(config=LIVE)
            await calls[-1].until("started")
        server.process.terminate()
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="Resume the session") as caught:
                await call.until("completed")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await until(lambda: server.process.status() == psutil.STATUS_ZOMBIE)
