"""The cost of the interceptors: the same calls with and without them, alternately, in one process.

    python -m benchmarks.chain [--calls 2000] [--redis redis://…]

`without` is a bare grpc.aio server with the same servicer; `with` is the real server, with keys and limits on. Both
answer `GetServerInfo` over one connection, one call after another. The chain costs the difference of the medians. CPU
time, which includes the client, is reported too, because other work on the machine changes it less.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory

import grpc

from typeless_grpc.app.root import listen
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.config import Settings
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc
from typeless_grpc.servicers.server import ServerFacts, ServerServicer
from typeless_grpc.telemetry import logs

KEY = "a-key-for-the-benchmark"
FACTS = ServerFacts("0", "base", 2**25, 3600.0, 3600.0, 60.0, 60.0, 10)
ROUND = 100  # calls to one server, before as many to the other


async def seconds(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> tuple[list[float], float]:
    """The seconds of each call of a round, and the mean CPU seconds of a call."""
    stub = server_pb2_grpc.ServerServiceStub(channel)
    took = []
    worked = time.process_time()
    for _ in range(ROUND):
        began = time.perf_counter()
        await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=metadata)
        took.append(time.perf_counter() - began)
    return took, (time.process_time() - worked) / ROUND


async def bare(stack: AsyncExitStack) -> int:
    """Start a server without interceptors and return its port."""
    server = grpc.aio.server()
    ServerServicer(FACTS).register(server)
    port: int = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return port


async def main(n_calls: int, redis_url: str) -> None:
    logs.configure("info", "json")
    async with AsyncExitStack() as stack:
        settings = Settings(
            port=0,
            data_dir=stack.enter_context(TemporaryDirectory()),
            auth_enabled=True,
            require_auth=True,
            api_keys=KEY,
            rate_limit_config="1000000/second",
            redis_url=redis_url,
        )
        listening = await stack.enter_async_context(
            listen(settings, engine=ScriptedEngine(), detector=LoudnessDetector())
        )
        ports = {"without": await bare(stack), "with": listening.port}
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            for name, port in ports.items()
        }
        took: dict[str, list[float]] = {name: [] for name in channels}
        worked: dict[str, list[float]] = {name: [] for name in channels}
        for n in range(-1, max(1, n_calls // ROUND)):
            for name, channel in channels.items():
                times, work = await seconds(channel, (("x-api-key", KEY),))
                if n >= 0:  # the first round warms up
                    took[name] += times
                    worked[name].append(work)
    medians = {name: statistics.median(times) * 1000 for name, times in took.items()}
    work_ms = {name: statistics.median(times) * 1000 for name, times in worked.items()}
    for name in channels:
        print(f"{name:8} {medians[name]:.3f} ms a call, {work_ms[name]:.3f} ms of CPU")
    chain, work = (of["with"] - of["without"] for of in (medians, work_ms))
    print(f"chain    {chain:.3f} ms a call, {work:.3f} ms of CPU (medians of {len(took['with'])} calls)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--redis", default="", help="URL of a Redis for the limits (default: in memory)")
    settings = parser.parse_args()
    asyncio.run(main(settings.calls, settings.redis))
