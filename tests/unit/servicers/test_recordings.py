from __future__ import annotations

import asyncio
import functools
import io
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import pytest

from typeless_grpc.audio.formats import AudioFormat
from typeless_grpc.audio.source import no_bound
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.interface import DecodeOptions, Lane, Ticket
from typeless_grpc.engine.scripted import Script, ScriptedEngine
from typeless_grpc.errors import EngineFailed, InvalidInput, Overloaded, RateLimited, TypelessError
from typeless_grpc.servicers.recordings import Recording, RecordingLimits, RecordingTranscriber
from typeless_grpc.telemetry.context import CallThreads

BYTES_PER_S = 64_000
SECONDS = 60
SEPARATE = DecodeOptions(separate_channels=True)


@functools.cache
def flac(seconds: int = SECONDS) -> bytes:
    """Eight channels."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=16_000, layout="7.1")
        tone = (3000 * np.sin(np.arange(16_000) / 7)).astype(np.int16)
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.repeat(tone, 8)[None], format="s16", layout="7.1")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


class Sources:
    """One recording, behind a gate."""

    def __init__(self) -> None:
        self.opened, self.gate = threading.Event(), threading.Event()

    def is_remote(self, uri: str) -> bool:
        return True

    def open(self, uri: str, owner: str | None, field: str, reserve: Callable[[int], None] = no_bound) -> BinaryIO:
        return HeldBack(self)


class HeldBack(io.BytesIO):
    """Gives its first 100 kB, and the rest once the gate is open."""

    def __init__(self, sources: Sources) -> None:
        super().__init__(flac())
        self._sources = sources

    def read(self, n_bytes: int | None = -1, /) -> bytes:
        if self.tell() >= 100_000:
            self._sources.opened.set()
            assert self._sources.gate.wait(30)
        return super().read(n_bytes)


@dataclass
class Bench:
    admission: Admission
    engine: ScriptedEngine
    sources: Sources
    recordings: RecordingTranscriber

    async def outcome(self, caller: str, recording: Recording | None = None) -> TypelessError | None:
        try:
            await self.recordings.transcribe(recording or inline(flac()), Ticket(Lane.UNARY, caller))
        except TypelessError as error:
            return error
        return None


@asynccontextmanager
async def serving(max_audio_s: float, script: Script = lambda call: "text") -> AsyncIterator[Bench]:
    admission, engine, sources = Admission(AdmissionOptions(max_audio_s=max_audio_s)), ScriptedEngine(script), Sources()
    with CallThreads(4, "decoding") as decoding:
        limits = RecordingLimits(max_audio_s=3600.0)
        try:
            yield Bench(
                admission, engine, sources, RecordingTranscriber(engine, admission, decoding, limits, sources, decoding)
            )
        finally:
            sources.gate.set()


def inline(data: bytes, options: DecodeOptions = SEPARATE) -> Recording:
    return Recording(data, AudioFormat(), options, "audio", "options")


def from_afar() -> Recording:
    return Recording("https://example.com/a.flac", AudioFormat(), SEPARATE, "audio", "options")


async def test_recordings_of_many_channels_never_hold_more_than_the_bound_while_they_are_decoded():
    # Each has 8 channels of 60 s, and needs a ninth for a moment: 540 s. So one or two fit, and never three.
    max_audio_s = 9 * SECONDS * 2.5
    flac()
    async with serving(max_audio_s) as bench:
        bench.engine.gate.clear()
        tracemalloc.start()
        try:
            calls = [asyncio.create_task(bench.outcome(f"caller {number}")) for number in range(6)]
            while sum(call.done() for call in calls) + len(bench.engine.calls) < len(calls):
                admitted = asyncio.create_task(bench.engine.until(n_calls=len(bench.engine.calls) + 1))
                refused = [call for call in calls if not call.done()]
                await asyncio.wait([admitted, *refused], return_when=asyncio.FIRST_COMPLETED)
                admitted.cancel()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        bench.engine.gate.set()
        outcomes = await asyncio.gather(*calls)
        # Those that grow in step may all be refused: a refused one counts until its decoding has stopped.
        assert outcomes.count(None) <= 2
        assert all(isinstance(one, Overloaded | RateLimited) and one.retryable for one in outcomes if one is not None)
        # Blocks of a second or so, in each of four threads, are not counted.
        assert peak <= (max_audio_s + 4 * 8 * 8) * BYTES_PER_S
        bench.engine.calls.clear()
        assert (bench.admission.room_s, bench.admission.n_callers) == (max_audio_s, 0)
        assert await bench.outcome("another") is None


async def test_held_audio_is_that_of_all_channels_and_no_more():
    async with serving(4000.0) as bench:
        bench.engine.gate.clear()
        call = asyncio.create_task(bench.outcome("one"))
        await bench.engine.until(n_calls=1)
        assert bench.admission.room_s == pytest.approx(4000.0 - 8 * SECONDS)
        bench.engine.gate.set()
        assert await call is None
        assert bench.admission.room_s == 4000.0


async def test_the_audio_of_a_cancelled_call_is_reserved_until_its_decoding_stops():
    async with serving(4000.0) as bench:
        released = asyncio.Event()
        bench.admission.freed = released.set
        call = asyncio.create_task(bench.outcome("one", from_afar()))
        assert await asyncio.to_thread(bench.sources.opened.wait, 30)
        call.cancel()
        await asyncio.wait([call])
        assert bench.admission.room_s < 4000.0
        bench.sources.gate.set()
        await asyncio.wait_for(released.wait(), 30)
        assert (bench.admission.room_s, bench.admission.n_callers) == (4000.0, 0)


@pytest.mark.parametrize(
    ("data", "error"),
    [(flac()[: len(flac()) // 2], InvalidInput), (b"no audio" * 1000, InvalidInput), (flac(5), EngineFailed)],
    ids=["cut short", "no audio", "the engine fails"],
)
async def test_a_recording_that_fails_holds_nothing(data: bytes, error: type[TypelessError]):
    async with serving(4000.0, lambda call: EngineFailed("it failed")) as bench:
        assert isinstance(await bench.outcome("one", inline(data)), error)
        assert (bench.admission.room_s, bench.admission.n_callers) == (4000.0, 0)
