"""Callers with connections of their own, which can be reset."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tests.hardening.audio import N_NUMBERS
from tests.hardening.server import ADMIN_KEY, Server
from tests.harness import Stubs
from tests.relay import Proxy, proxied
from tests.service.console import Site
from typeless_grpc.pb.v1 import admin_pb2_grpc

NOTICED_S = 2.0


@dataclass
class Caller(Stubs):
    """A client with connections of its own, which can be cut."""

    connection: grpc.aio.Channel
    channel: Any
    site: Site
    proxies: Sequence[Proxy]
    random: random.Random

    @property
    def admin(self) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self.channel)

    def number(self) -> int:
        return self.random.randrange(N_NUMBERS)

    def seconds(self) -> float:
        return self.random.choice((0.5, 1.0, 2.0, 4.0))

    async def cut(self) -> None:
        """Reset the connections; return when the channel is connected again."""
        was_ready = self.connection.get_state() is grpc.ChannelConnectivity.READY
        for one in self.proxies:
            one.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NOTICED_S):
                if was_ready:
                    await self.connection.wait_for_state_change(grpc.ChannelConnectivity.READY)
                await self.connection.channel_ready()


class KeyedChannel:
    """A channel that sends a key with every call. Interceptors of grpc.aio would turn writes into iterators."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._channel, self._metadata = channel, (("x-api-key", key),)

    def __getattr__(self, shape: str) -> Callable[..., Any]:
        make = getattr(self._channel, shape)
        return lambda *args, **options: functools.partial(make(*args, **options), metadata=self._metadata)


@asynccontextmanager
async def caller(server: Server, seed: int, key: str = ADMIN_KEY) -> AsyncIterator[Caller]:
    """A caller with connections of its own, through proxies."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    async with (
        proxied(server.target) as grpc_way,
        proxied(f"127.0.0.1:{server.console_port}") as console_way,
        grpc.aio.insecure_channel(grpc_way.target, options) as connection,
    ):
        site = Site(int(console_way.target.rpartition(":")[2]))
        yield Caller(connection, KeyedChannel(connection, key), site, (grpc_way, console_way), random.Random(seed))
