"""The real server around an engine that returns at once, to measure everything but the model."""

from __future__ import annotations

import argparse
import asyncio
import signal

from typeless_grpc.app.root import listen
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.config import load
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.telemetry import logs


async def main() -> None:
    """Serve until SIGTERM, with the arguments that `typeless serve` takes from the benchmarks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--port", type=int)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = load({"port": arguments.port, "model": arguments.model}).settings
    logs.configure(settings.log_level, settings.log_format)
    engine = ScriptedEngine(lambda _: "text")
    async with listen(settings, engine=engine, detector=SileroDetector()) as listening:
        await listening.server.serving()
        print(f"scripted takes calls on 127.0.0.1:{listening.port}:", flush=True)
        await stop.wait()


asyncio.run(main())
