"""What the tests of streams need: one stream around a scripted engine and a clock that the tests set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tests.speech import cut, words_as_they_come
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import LiveReader, live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import DecodeOptions, Lane
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.engine.stream_audio import StreamAudio
from typeless_grpc.streaming import events
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Entry, Final
from typeless_grpc.streaming.requests import Control

RAW = AudioFormat(Encoding.PCM_S16LE, 16_000)
# Of silence: long enough for a speculative decode, too short to end the utterance.
HESITATION_S = (EndpointOptions().padding_s + EndpointOptions().end_silence_s) / 2


class Bench:
    """A stream, and everything around it."""

    def __init__(self, engine: ScriptedEngine, clock: FakeClock, stream: Stream, slept: list[float]) -> None:
        self.engine, self.clock, self.stream, self.slept = engine, clock, stream, slept
        self._entries = stream.events_after(0)
        self.got: list[Entry] = []

    async def say(self, data: bytes, n_bytes: int = 3200) -> None:
        for payload in cut(data, [n_bytes]):
            await self.stream.put(payload)
            self.clock.advance(len(payload) / 32_000)

    async def until(self, kind: type, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """Read up to an event of this kind."""
        async for entry in self._entries:
            self.got.append(entry)
            if isinstance(entry.event, kind) and wanted(entry.event):
                return entry.event
        raise AssertionError(f"no {kind.__name__} came")

    async def rest(self) -> list[events.Event]:
        """End the audio, and all events there were."""
        await self.stream.put(Control.END)
        async for entry in self._entries:
            self.got.append(entry)
        return [entry.event for entry in self.got]

    def finals(self) -> list[str]:
        return [entry.event.segment.text for entry in self.got if isinstance(entry.event, Final)]

    def calls_in(self, lane: Lane) -> list[EngineCall]:
        return [call for call in self.engine.calls if call.ticket.lane is lane]


@asynccontextmanager
async def bench(
    script: Any = words_as_they_come,
    audio: StreamAudio | None = None,
    reader: LiveReader | None = None,
    sleep: Callable[[float], Awaitable[Any]] | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    engine, clock, slept = ScriptedEngine(script), FakeClock(100.0), []

    async def advance(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    with ThreadPoolExecutor(1) as threads:
        dependencies = Dependencies(engine, LoudnessDetector(), threads, clock, sleep=sleep or advance)
        if audio is not None:
            dependencies = replace(dependencies, audio=audio)
        wanted = StreamOptions(**{"options": DecodeOptions(language="en"), "segmentation": EndpointOptions()} | options)
        stream = Stream(dependencies, reader or live_reader(RAW, field="config"), wanted)
        stream.attach()
        try:
            yield Bench(engine, clock, stream, slept)
        finally:
            await stream.close()
