"""Real models behind real servers, each started once for all tests that ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from typeless_grpc.app import build, catalog
from typeless_grpc.client import AsyncClient
from typeless_grpc.config import Settings


@asynccontextmanager
async def served(model: str) -> AsyncIterator[AsyncClient]:
    """A client of a server with this model, warm. Skips where the model is not on this machine."""
    settings = Settings(port=0, model=model)
    if catalog(settings).find(model) is None:
        pytest.skip(f"model {model} is not on this machine: typeless models pull {model}")
    async with build(settings) as app:
        await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny_en() -> AsyncIterator[AsyncClient]:
    async with served("tiny.en") as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base() -> AsyncIterator[AsyncClient]:
    async with served("base") as client:
        yield client
