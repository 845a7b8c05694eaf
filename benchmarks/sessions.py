"""What durable sessions cost: the latency of a write to each store, and the bytes of a second of a live stream.

    python -m benchmarks.sessions [--redis redis://…] [--postgresql postgresql://…]

A write is that of one final: a batch of records and the state. Two writers work at a time, as two servers do; for
SQLite they are processes. Redis holds the same in a hash and a list, guarded by a script, and syncs each write to disk.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.vad import SileroDetector
from typeless_grpc.clock import SystemClock
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.servicers.stream_messages import StreamDefaults, UpdateMessages
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.stream_sessions import SqlSessionStore
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.durable_log import DurableDependencies
from typeless_grpc.streaming.durable_store import Batch, StoredSession
from typeless_grpc.streaming.durable_stream import DurableStream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.memory_sessions import MemorySessionStore

N_WRITES = 300
RECORDS, STATE = b"r" * 700, b"s" * 3000
SPOKEN = Path(__file__).resolve().parents[1] / "tests" / "audio" / "en_minute.ogg"
GUARDED = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], 70000)
redis.call('PEXPIRE', KEYS[2], 70000)
return 1
"""


def sql_writes(url: str, directory: str, name: str) -> list[float]:
    """Write to a database; return the seconds of each write."""
    database = Database(url)
    database.create_tables()
    store = SqlSessionStore(database, Files(directory), 60.0)
    lease = store.create(f"{name}-{time.time_ns()}", "", b"config")
    took = timed(lambda number: store.append(lease, Batch(number, RECORDS, STATE)))
    store.delete(lease)
    database.close()
    return took


def redis_writes(url: str, name: str) -> list[float]:
    """The same to Redis."""
    import redis

    client = redis.Redis.from_url(url)
    script = client.register_script(GUARDED)
    client.hset(name, "token", "1")
    took = timed(lambda _: script(keys=[name, f"{name}:log"], args=["1", STATE, RECORDS]))
    client.delete(name, f"{name}:log")
    return took


def timed(write: Callable[[int], Any]) -> list[float]:
    """Write, and return the seconds of each write."""
    took = []
    for number in range(N_WRITES):
        began_s = time.perf_counter()
        write(number)
        took.append(time.perf_counter() - began_s)
        time.sleep(0.005)
    return took


def two(write: Callable[[str], list[float]]) -> list[float]:
    """Write in two threads."""
    with ThreadPoolExecutor(2) as threads:
        return [took for part in threads.map(write, ("a", "b")) for took in part]


def report(name: str, took: list[float]) -> None:
    """Print percentiles in milliseconds."""
    p50, p95, p99 = (1000 * float(np.percentile(took, p)) for p in (50, 95, 99))
    print(f"{name:12} p50 {p50:6.2f}  p95 {p95:6.2f}  p99 {p99:6.2f} ms")


class CountingStore(MemorySessionStore):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.n_writes = self.record_bytes = self.state_bytes = self.audio_bytes = 0
        self._counting = threading.Lock()

    def append(self, lease: Any, batch: Batch) -> None:
        """See `DurableStore`."""
        super().append(lease, batch)
        with self._counting:
            self.n_writes += 1
            self.record_bytes += len(batch.records)
            self.state_bytes += len(batch.state)
            self.audio_bytes += len(batch.audio)


def samples() -> bytes:
    """The recording, as raw samples."""
    with av.open(str(SPOKEN)) as file:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
        frames = [one for frame in file.decode(audio=0) for one in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype("<i2").tobytes()


async def streamed() -> None:
    """Print what a second of a live stream writes, and how long an hour takes to be resumed."""
    data, store = samples(), CountingStore()
    with ThreadPoolExecutor(2) as threads:
        dependencies = Dependencies(ScriptedEngine(), SileroDetector(), threads, SystemClock())
        durable = DurableDependencies(store, threads, UpdateMessages(StreamDefaults("base")))
        options = StreamOptions(DecodeOptions(language="en"), EndpointOptions(), max_unread_events=10**9)

        def stream(lease: Any) -> DurableStream:
            reader = live_reader(AudioFormat(Encoding.PCM_S16LE, 16_000), field="config")
            return DurableStream(dependencies, reader, options, durable, lease)

        first = stream(store.create("s", "", b""))
        first.start()
        n_repeats = 46  # an hour
        for _ in range(n_repeats):
            for start in range(0, len(data), 3200):
                await first.put(data[start : start + 3200])
        seconds = n_repeats * len(data) / 32_000
        await until(lambda: first.cursors.processed_s > seconds - 30)
        await first.close()
        print(
            f"{seconds:.0f} s of speech: {store.record_bytes / seconds:.0f} bytes/s of records, "
            f"{store.audio_bytes / seconds:.0f} bytes/s of audio, "
            f"states of {store.state_bytes / store.n_writes:.0f} bytes"
        )
        stored = store.take("s", "")
        assert isinstance(stored, StoredSession)
        began_s = time.perf_counter()
        second = stream(stored.lease)
        await second.restore(stored, 1)
        replayed_s, second_s = time.perf_counter() - began_s, second.cursors.received_s
        for start in range(0, 640_000, 3200):
            await second.put(data[start : start + 3200])
        await until(lambda: second.cursors.received_s > max(second_s, stored.audio_bytes / 32_000))
        print(f"inputs replayed in {replayed_s:.2f} s, all audio decoded in {time.perf_counter() - began_s:.2f} s")
        await second.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until this holds; nothing notifies a benchmark."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgresql")
    parser.add_argument("--redis")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/sessions.db"
        Database(url).create_tables()
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = pool.starmap(sql_writes, [(url, directory, "a"), (url, directory, "b")])
        report("SQLite", [took for part in results for took in part])
        if given.postgresql:
            report("PostgreSQL", two(lambda name: sql_writes(given.postgresql, directory, name)))
        if given.redis:
            report("Redis", two(lambda name: redis_writes(given.redis, name)))
    asyncio.run(streamed())


if __name__ == "__main__":
    main()
