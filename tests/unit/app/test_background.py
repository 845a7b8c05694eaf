from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from typeless_grpc.app.background import keep_jobs
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine


@pytest.mark.parametrize("is_ready", [False, True], ids=["before the engine is ready", "just as it is"])
async def test_a_server_that_stops_early_does_not_wait_for_a_worker_that_never_started(tmp_path: Path, is_ready: bool):
    ready = asyncio.Event()
    async with asyncio.timeout(60):
        async with keep_jobs(
            Settings(data_dir=tmp_path), engine=ScriptedEngine(), detector=LoudnessDetector(), is_ready=ready
        ):
            if is_ready:
                ready.set()
