"""Engines on other machines whose address, certificate or key changes: servers reach them again by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests import scripted_engine
from tests.certificates import Authority
from tests.scripted_engine import options, speech, text_of, until
from tests.servers import free_port
from typeless_grpc.app.engines import Connected
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.clock import SystemClock
from typeless_grpc.config import Loaded, Settings
from typeless_grpc.engine.interface import Engine, Ticket
from typeless_grpc.engine.observer import NoObserver
from typeless_grpc.engines.connection import RemoteOptions
from typeless_grpc.engines.remote import RemoteEngine

KEY = "a-key-of-more-than-20-characters"
NEW_KEY = "another-key-of-more-than-20-characters"


async def text(engine: Engine, prompt: str) -> str:
    return text_of(await asyncio.wait_for(engine.recognize(speech(0.5), options(prompt), Ticket()), 20))


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine("one", RemoteOptions(target=target, key=KEY), SystemClock(), NoObserver())
    running = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_engine_that_starts_again_on_another_address_of_its_name_is_reached():
    ports = free_port(), free_port()
    # To gRPC, a list of addresses is what a name with several addresses resolves to.
    async with connected("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as engine:
        for port in (*ports, ports[0]):
            async with scripted_engine.on_port(engine_listen=f"127.0.0.1:{port}", engine_key=KEY):
                await until(lambda: engine.is_up)
                assert await text(engine, f"on {port}") == f"on {port}"
            await until(lambda: not engine.is_up)


async def test_a_renewed_certificate_and_a_new_authority_are_used_by_the_next_connection(tmp_path: Path):
    cert_file, key_file = Authority(tmp_path).issue("engine")
    ca_file = tmp_path / "engines.pem"
    ca_file.write_bytes((tmp_path / "authority.pem").read_bytes())
    address = f"127.0.0.1:{free_port()}"
    listening = {"engine_listen": address, "engine_key": KEY, "tls_cert_file": cert_file, "tls_key_file": key_file}
    async with AsyncExitStack() as stack:
        async with scripted_engine.on_port(**listening):
            front = await stack.enter_async_context(
                scripted_engine.group(engine_address=[address], engine_key=KEY, engine_ca_file=ca_file)
            )
            assert await text(front.group, "first") == "first"
        ca_file.unlink()  # as if it were being replaced
        await until(lambda: not front.engines[0].is_up)
        Authority(tmp_path).issue("engine")  # the same files
        async with scripted_engine.on_port(**listening):
            ca_file.write_bytes((tmp_path / "authority.pem").read_bytes())
            assert await text(front.group, "second") == "second"


async def test_the_key_of_engines_and_servers_is_changed_without_an_interruption():
    def settings(key: str, **more: object) -> Settings:
        return Settings(engine_key=key, device="cpu", **more)

    address = f"127.0.0.1:{free_port()}"
    engine, server = {"engine_listen": address}, {"engine_address": [address]}
    of_engine, of_server = Reloads(settings(KEY, **engine)), Reloads(settings(KEY, **server))

    async def change(reloads: Reloads, others: dict[str, object]) -> None:
        assert await reloads.reload(lambda: Loaded(settings(NEW_KEY, **others), {}))

    @asynccontextmanager
    async def front(key: str, reloads: Reloads | None = None) -> AsyncIterator[Connected]:
        async with scripted_engine.group(reloads=reloads, engine_address=[address], engine_key=key) as parts:
            yield parts

    async with scripted_engine.on_port(of_engine), front(KEY, of_server) as parts:
        await change(of_engine, engine)
        assert await text(parts.group, "old key") == "old key"
        await change(of_server, server)
        assert await text(parts.group, "new key") == "new key"
        async with front(KEY) as late:
            assert await text(late.group, "still the old key") == "still the old key"
        await change(of_engine, engine)
        assert await text(parts.group, "only the new key") == "only the new key"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0), front(KEY):
                pass
