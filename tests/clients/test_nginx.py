"""The server behind the nginx of `deploy/`: transcripts and streams pass as they do without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.clients.affinity import check_affinity
from tests.clients.serving import BIN, KEY, Running, raw_samples, run, served
from tests.harness import REPOSITORY, serving
from tests.nginx import nginx
from tests.service.test_hand_over import two_servers
from tests.service.test_stream_resume import RAW
from tests.speech import cut, speech
from typeless_grpc.client import AsyncClient, CallFailed, Client, Options, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Running]:
    with served(tmp_path) as running, nginx(tmp_path, [running.target]) as port:
        yield Running(port)


async def test_all_calls_of_a_stream_reach_the_same_server_and_another_when_it_is_lost(tmp_path: Path):
    async with AsyncExitStack() as stack:
        guarded = {"auth_enabled": True, "require_auth": True, "api_keys": KEY}
        servers = [await stack.enter_async_context(serving(ScriptedEngine(), **guarded)) for _ in range(3)]
        port = stack.enter_context(nginx(tmp_path, [server.target for server in servers]))
        await check_affinity(f"127.0.0.1:{port}")
    with nginx(tmp_path, ["127.0.0.1:1", servers[0].target, "127.0.0.1:2"]) as port:
        async with serving(ScriptedEngine(), port=int(servers[0].target.rpartition(":")[2]), **guarded):
            await check_affinity(f"127.0.0.1:{port}")


async def test_streams_of_a_server_that_stops_continue_through_nginx_on_another(tmp_path: Path):
    async def transcript(client: AsyncClient) -> Any:
        options = StreamOptions(Options(language="en"), RAW)
        events = [event async for event in client.stream(spoken(), options)]
        assert not any(event.HasField("warning") for event in events)
        return events[-1].completed.transcript

    async def spoken() -> AsyncIterator[bytes]:
        for n, payload in enumerate(cut(speech(*[0.7, 0.9] * 10), [3200])):
            if n == 60:
                is_speaking.set()
            yield payload
            await asyncio.sleep(0.01)

    is_speaking = asyncio.Event()
    async with two_servers(tmp_path) as (first, second):
        async with AsyncClient(second.target) as client:
            expected = await transcript(client)
        is_speaking.clear()
        with nginx(tmp_path, [first.target, second.target]) as port:
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                streams = [asyncio.create_task(transcript(client)) for _ in range(6)]
                await is_speaking.wait()
                await first.server.stop()
                assert await asyncio.gather(*streams) == [expected] * 6


def test_calls_and_streams_pass_through_nginx(proxied: Running, tmp_path: Path):
    main = REPOSITORY / "clients" / "python" / "main.py"
    samples = raw_samples("en_short.flac", tmp_path / "speech.raw")
    for words in (("transcribe", REPOSITORY / "tests" / "audio" / "en_short.flac"), ("stream", samples)):
        done = run(BIN / "python", main, *words, env=proxied.environment())
        assert done.returncode == 0, done.stderr
        assert "close the window" in done.stdout


def test_without_a_server_callers_get_an_error_of_grpc_that_says_what_to_do(tmp_path: Path):
    with nginx(tmp_path, ["127.0.0.1:1"]) as port, Client(f"127.0.0.1:{port}", api_key="", retry=False) as client:
        for call in (client.server_info, lambda: next(client.stream([b""]))):
            with pytest.raises(CallFailed) as caught:
                call()
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_SERVER")
            assert caught.value.retry_after_s == 0.2
