"""The engine process of the simulation: it waits as long as base would take, and computes nothing.

python -m benchmarks.scale.engine PORT SLOWDOWN

Its text ends with the times at which it received the call and answered it, so that callers can tell its time from that
of everything else.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.scale.signals import terminated
from tests import scripted_engine
from typeless_grpc.app.engine_server import serve_port
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.config import Settings
from typeless_grpc.engine.costs import decode_cost
from typeless_grpc.engine.interface import DecodeOptions, Recognition, Ticket
from typeless_grpc.engine.scripted import transcript_of
from typeless_grpc.engines.reports import Reports
from typeless_grpc.engines.servicer import Served

WORDS_PER_S = 2.5
CONFIDENCE = 0.9
_STAMPS = re.compile(r"b(\d+) e(\d+)\W*$")


class WaitingEngine:
    """Implements `Engine`: any number of calls at once, each as long as on an idle engine."""

    backlog_s = stalled_s = 0.0

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        began_s, audio_s = time.monotonic(), len(audio) / SAMPLE_RATE_HZ
        await asyncio.sleep(self._slowdown * decode_cost(audio_s))
        words = " ".join(f"word{number}" for number in range(round(audio_s * WORDS_PER_S)))
        text = f"{words} b{began_s * 1e6:.0f} e{time.monotonic() * 1e6:.0f}"
        return Recognition(transcript_of(audio, options, text, CONFIDENCE), queue_s=0.0, n_chunks=1)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`."""
        return await self.transcribe(utterance, options, ticket)


def times_of(text: str) -> tuple[float, float] | None:
    """When the engine received the call that returned this text, and when it answered; None if the text lacks them."""
    found = _STAMPS.search(text)
    return (int(found[1]) / 1e6, int(found[2]) / 1e6) if found else None


async def main(port: int, slowdown: float) -> None:
    """Serve until SIGTERM."""
    reports = Reports()
    settings = Settings(engine_listen=f"127.0.0.1:{port}", max_held_audio_s=1e6, drain_timeout_s=1.0)
    async with AsyncExitStack() as stack:
        built = await stack.enter_async_context(scripted_engine.built(reports))
        served = Served(
            WaitingEngine(slowdown),
            built.scheduler,
            built.models,
            scripted_engine.Shelf(),
            scripted_engine.MODELS[0],
            "nothing",
        )

        async def warm() -> None:
            await built.models.load(scripted_engine.MODELS[0])

        server = await stack.enter_async_context(serve_port(Reloads(settings), served, reports, warm))
        await server.warming
        print("ready", flush=True)
        await terminated()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
