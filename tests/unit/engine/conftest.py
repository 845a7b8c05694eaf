from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.unit.engine.pool_bench import FakeModel, PoolBench, Users, opened
from typeless_grpc.engine.pool import PoolOptions


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[PoolBench]:
    """A bench for three models of 10 bytes; tests that need another one parametrize it."""
    with opened(**{"options": PoolOptions("default", max_memory_bytes=30)} | getattr(request, "param", {})) as one:
        yield one


@pytest.fixture
def users(bench: PoolBench) -> Users:
    """Begin to use a model, and use it until the event is set."""

    async def begin(name: str) -> tuple[asyncio.Task[FakeModel], asyncio.Event]:
        began, done = asyncio.Event(), asyncio.Event()

        async def use() -> FakeModel:
            async with bench.pool.use(name) as model:
                began.set()
                await done.wait()
                return model

        using = asyncio.create_task(use())
        await began.wait()
        return using, done

    return begin
