"""Computes what a load needs: cores, processes, memory, store traffic and money, from measured costs.

    python -m benchmarks.capacity --cores 64 --streams 1000
    python -m benchmarks.capacity --streams 1000 --gpu-streams 200 --usd-a-gpu-hour 0.8

Every parameter has its measured default, from docs/scaling.md, and an option to replace it: measure your own with
`benchmarks.scale` and `benchmarks.engines`. Nothing here is measured at the size that is requested; it is arithmetic.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


def cost(default: float, help: str) -> Any:
    """A parameter of the model."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Costs:
    """Measured costs, on cores of the machine in docs/scaling.md."""

    engine_cpu_ms: float = cost(85.0, "CPU of the engine for a second of a live stream, interims included, in ms")
    call_cpu_ms: float = cost(115.0, "CPU of the engine for a unary call, in ms")
    call_audio_s: float = cost(4.0, "audio of a unary call, in seconds")
    front_cpu_ms: float = cost(9.0, "CPU of a front for a second of a live stream, in ms")
    front_loop_ms: float = cost(6.0, "the part of it in the event loop, in ms")
    front_call_ms: float = cost(4.4, "CPU of a front for a unary call, in ms")
    front_call_loop_ms: float = cost(2.6, "the part of it in the event loop, in ms")
    front_load: float = cost(0.6, "of its event loop's time that a front may use, so that delays stay short")
    engine_load: float = cost(0.7, "of their cores' time that engines may use, so that finals do not queue")
    engine_process_mb: float = cost(430.0, "memory of an engine process with its model, in MB")
    front_mb: float = cost(215.0, "memory of a front, in MB")
    stream_mb: float = cost(1.1, "memory of an open stream, in MB")
    stream_messages: float = cost(10.0, "messages from a caller in a second of a stream")
    stream_events: float = cost(1.4, "events to a caller in a second of a stream")
    transactions: float = cost(1.7, "PostgreSQL transactions in a second of a durable stream")
    wal_kb: float = cost(2.65, "PostgreSQL's write-ahead log of a second of a durable stream, in kB")
    postgres_cpu_ms: float = cost(0.45, "CPU of PostgreSQL for a second of a durable stream, in ms")
    redis_commands: float = cost(3.8, "Redis commands in a second of a stream, those in scripts included")
    call_redis_commands: float = cost(8.0, "Redis commands of a unary call")
    redis_cpu_ms: float = cost(0.14, "CPU of Redis for a second of a stream, in ms")
    stored_kb: float = cost(32.0, "audio in the storage for a second of a durable stream, in kB")
    usd_a_core_hour: float = cost(0.04, "price of a core for an hour, in USD")
    usd_a_gpu_hour: float = cost(0.8, "price of a GPU for an hour, in USD")
    gpu_streams: float = cost(0.0, "live streams that one GPU decodes, as you measured; 0 decodes on cores")
    gpu_calls: float = cost(0.0, "unary calls a second that one GPU decodes; 0 decodes them on cores")


@dataclass(frozen=True)
class Need:
    """What a number of live streams and a rate of calls need. cores: those of engines, fronts and stores together."""

    streams: float
    calls: float
    engine_cores: float
    gpus: int
    front_cores: float
    fronts: int
    store_cores: float

    @property
    def cores(self) -> float:
        """All cores."""
        return self.engine_cores + self.front_cores + self.store_cores


def need(costs: Costs, streams: float, calls: float) -> Need:
    """Return what this load needs."""
    engine_s = gpus = 0.0
    for n, cpu_ms, of_a_gpu in (
        (streams, costs.engine_cpu_ms, costs.gpu_streams),
        (calls, costs.call_cpu_ms, costs.gpu_calls),
    ):
        if of_a_gpu:
            gpus += n / of_a_gpu
        else:
            engine_s += n * cpu_ms / 1000
    front_s = (streams * costs.front_cpu_ms + calls * costs.front_call_ms) / 1000
    loop_s = (streams * costs.front_loop_ms + calls * costs.front_call_loop_ms) / 1000
    # Threads of a front share the interpreter with its event loop, so one front never has more than one core.
    busiest_s = max(loop_s / costs.front_load, front_s / min(1.0, costs.front_load * 1.5))
    return Need(
        streams=streams,
        calls=calls,
        engine_cores=engine_s / costs.engine_load,
        gpus=math.ceil(gpus),
        front_cores=busiest_s,
        fronts=max(1, math.ceil(round(busiest_s, 6))),
        store_cores=streams * (costs.postgres_cpu_ms + costs.redis_cpu_ms) / 1000,
    )


def most(costs: Costs, cores: float, *, streams: bool) -> Need:
    """Return the largest load of live streams, or of unary calls, that this many cores carry."""
    one = need(costs, 1.0, 0.0) if streams else need(costs, 0.0, 1.0)
    n = math.floor(cores / one.cores)
    return need(costs, n, 0) if streams else need(costs, 0, n)


def rows(costs: Costs, found: Need) -> Iterator[tuple[str, str]]:
    """The table of one load."""
    streams, calls = found.streams, found.calls
    yield "live streams", f"{streams:.0f}"
    yield "unary calls a second", f"{calls:.0f}"
    yield "cores of engines", f"{found.engine_cores:.1f}"
    yield "GPUs", f"{found.gpus}"
    yield "front processes", f"{found.fronts}"
    yield "cores of fronts", f"{found.front_cores:.1f}"
    yield "cores of PostgreSQL and Redis", f"{found.store_cores:.1f}"
    yield "cores in all", f"{found.cores:.1f}"
    n_engines = found.gpus + math.ceil(found.engine_cores / 8)
    memory_mb = n_engines * costs.engine_process_mb + found.fronts * costs.front_mb + streams * costs.stream_mb
    yield "memory of engines (one for 8 cores, one for a GPU), fronts, streams", f"{memory_mb / 1000:.1f} GB"
    yield "messages from callers a second", f"{streams * costs.stream_messages + calls:.0f}"
    yield "events to callers a second", f"{streams * costs.stream_events + calls:.0f}"
    yield "bytes from callers", f"{(streams * 32 + calls * costs.call_audio_s * 32) / 1000:.1f} MB/s"
    yield "PostgreSQL transactions a second", f"{streams * costs.transactions:.0f}"
    yield "PostgreSQL write-ahead log", f"{streams * costs.wal_kb / 1000:.1f} MB/s"
    yield "audio to the storage", f"{streams * costs.stored_kb / 1000:.1f} MB/s"
    yield "Redis commands a second", f"{streams * costs.redis_commands + calls * costs.call_redis_commands:.0f}"
    usd = found.cores * costs.usd_a_core_hour + found.gpus * costs.usd_a_gpu_hour
    yield "cost", f"{usd:.2f} USD an hour"
    audio_h = streams + calls * costs.call_audio_s
    yield "cost of an hour of audio", f"{usd / audio_h:.4f} USD"


def table(costs: Costs, loads: Sequence[tuple[str, Need]]) -> str:
    """A table in Markdown, with a column for each load. loads: with their titles."""
    lines = ["| | " + " | ".join(title for title, _ in loads) + " |", "| --- |" + " --- |" * len(loads)]
    columns = [dict(rows(costs, found)) for _, found in loads]
    lines += [f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=float, help="print the most streams, and the most calls, of so many cores")
    parser.add_argument("--streams", type=float, help="print what so many live streams need")
    parser.add_argument("--calls", type=float, default=0.0, help="unary calls a second beside them (default: 0)")
    for one in fields(Costs):
        name = "--" + one.name.replace("_", "-")
        parser.add_argument(name, type=float, default=one.default, help=f"{one.metadata['help']} (%(default)g)")
    given = vars(parser.parse_args(argv))
    cores, streams, calls = (given.pop(name) for name in ("cores", "streams", "calls"))
    if cores is None and streams is None:
        parser.error("give --cores or --streams")
    costs = Costs(**given)
    loads = []
    if cores is not None:
        loads.append((f"{cores:g} cores of live streams", most(costs, cores, streams=True)))
        loads.append((f"{cores:g} cores of unary calls", most(costs, cores, streams=False)))
    if streams is not None:
        loads.append((f"{streams:g} live streams", need(costs, streams, calls)))
    print(table(costs, loads))


if __name__ == "__main__":
    main()
