"""The server behind the nginx of `deploy/`: transcripts and streams pass as they do without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.clients.affinity import check_affinity
from tests.clients.serving import BIN, KEY, Running, raw_samples, run, served
from tests.harness import REPOSITORY, serving
from tests.nginx import nginx
from typeless_grpc.client import CallFailed, Client
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
