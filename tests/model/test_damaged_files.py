"""The files of a model are damaged while it is served, and before the next start."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness import AUDIO
from typeless_grpc.app.models import catalog
from typeless_grpc.app.starting import build
from typeless_grpc.client import AsyncClient
from typeless_grpc.config import Settings
from typeless_grpc.errors import TypelessError

pytestmark = pytest.mark.model

NAME = "tiny.en"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model in a data directory of its own."""
    found = catalog(Settings(model=NAME)).find(NAME)
    if found is None:
        pytest.skip(f"model {NAME} is not on this machine: typeless models pull {NAME}")
    return Path(shutil.copytree(found, tmp_path / "models" / NAME))


@asynccontextmanager
async def server(model: Path) -> AsyncIterator[AsyncClient]:
    settings = Settings(port=0, model=NAME, data_dir=model.parents[1], rate_limit_enabled=False, max_concurrent_jobs=0)
    async with build(settings) as app:
        await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            yield client


async def text(client: AsyncClient) -> str:
    answer = await client.transcribe((AUDIO / "en_two_sentences.flac").read_bytes())
    return answer.transcript.text


async def test_a_served_model_outlives_its_files_and_damaged_ones_are_refused(model: Path):
    weights = model / "model.bin"
    whole = weights.read_bytes()
    async with server(model) as client:
        expected = await text(client)
        os.truncate(weights, len(whole) // 2)
        assert await text(client) == expected
        with weights.open("r+b") as file:
            file.write(b"\0" * (len(whole) // 2))
        assert await text(client) == expected
        weights.unlink()
        assert await text(client) == expected
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(damaged)
        with pytest.raises(TypelessError) as caught:
            async with server(model):
                pass
        assert caught.value.reason == "MODEL_ALTERED"
    weights.unlink()
    with pytest.raises(TypelessError) as caught:
        async with server(model):
            pass
    assert caught.value.reason in ("MODEL_ALTERED", "MODEL_UNAVAILABLE", "MODEL_NOT_FOUND")
    weights.write_bytes(whole)
    async with server(model) as client:
        assert await text(client) == expected
