from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path

import pytest

from typeless_grpc.client import AsyncClient, CallFailed, Options, Tls


async def test_the_files_of_tls_and_key_are_read_when_the_client_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    client = AsyncClient("localhost:1", api_key="", tls=Tls(ca=tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        await client.server_info()
    monkeypatch.setenv("TYPELESS_API_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="TYPELESS_API_KEY_FILE"):
        async with AsyncClient("localhost:1"):
            pass


@pytest.mark.parametrize(("target", "key"), [("", "key"), ("localhost:1", "ké")], ids=["target", "key"])
async def test_an_invalid_target_or_key_is_an_error_of_the_constructor(target: str, key: str):
    with pytest.raises(ValueError, match="not"):
        AsyncClient(target, api_key=key)


async def test_a_recording_that_blocks_does_not_block_the_event_loop(tmp_path: Path):
    pipe = tmp_path / "recording.wav"
    os.mkfifo(pipe)
    async with AsyncClient("localhost:1", api_key="", retry=False) as client:
        call = asyncio.create_task(client.transcribe(pipe, Options()))
        # Opening either end waits for the other one.
        await asyncio.to_thread(pipe.write_bytes, b"audio")
        with pytest.raises(CallFailed):
            await call


async def test_a_closed_client_makes_no_calls():
    client = AsyncClient("localhost:1", api_key="")
    await client.close()
    with pytest.raises(ValueError, match="closed"):
        await client.server_info()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("client_stream", "Control Item StreamOptions"),
        ("client_jobs", "AsyncJobs Jobs Retries"),
        ("client_mic", "MICROPHONE NoMicrophone async_microphone microphone"),
    ],
)
def test_a_former_module_works_and_warns(module: str, names: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, f"typeless_grpc.{module}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"typeless_grpc.{module} is now typeless_grpc.client"):
        former = importlib.import_module(f"typeless_grpc.{module}")
    assert all(hasattr(former, name) for name in names.split())
