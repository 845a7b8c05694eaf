from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from typeless_grpc.client import Client, StreamOptions
from typeless_grpc.client.microphone import MICROPHONE, NoMicrophone, async_microphone, microphone
from typeless_grpc.client.threads import from_thread


class PortAudioError(Exception):
    pass


class Unplugged:
    """A recorder that is unplugged after two blocks."""

    def __init__(self, **_options: Any) -> None:
        self.n_left = 2
        self.closed = threading.Event()

    def start(self) -> None:
        pass

    def read(self, n_frames: int) -> tuple[bytes, bool]:
        if not self.n_left:
            raise PortAudioError("Device unavailable")
        self.n_left -= 1
        return bytes(2 * n_frames), False

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Unplugged:
    only = Unplugged()
    fake = SimpleNamespace(PortAudioError=PortAudioError, RawInputStream=lambda **_options: only)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return only


def test_a_microphone_that_stops_raises(recorder: Unplugged):
    blocks = microphone()
    assert [len(next(blocks)) for _ in range(2)] == [3200, 3200]
    with pytest.raises(NoMicrophone, match="the microphone stopped: Device unavailable"):
        next(blocks)
    assert recorder.closed.is_set()


async def test_an_async_microphone_that_stops_raises(recorder: Unplugged):
    recorded = async_microphone()
    assert [len(await anext(recorded)) for _ in range(2)] == [3200, 3200]
    with pytest.raises(NoMicrophone, match="the microphone stopped: Device unavailable"):
        await asyncio.wait_for(anext(recorded), 30)
    assert recorder.closed.is_set()


@pytest.mark.parametrize("listen", [microphone, async_microphone], ids=["sync", "async"])
def test_a_microphone_that_nobody_reads_is_released(
    listen: Callable[[], Generator[bytes, None, None] | AsyncGenerator[bytes, None]], recorder: Unplugged
):
    blocks = listen()
    assert not recorder.closed.is_set()
    del blocks
    assert recorder.closed.is_set()


def test_a_microphone_that_is_dropped_between_two_blocks_is_released(recorder: Unplugged):
    blocks = microphone()
    assert len(next(blocks)) == 3200
    del blocks
    assert recorder.closed.is_set()


async def test_a_dropped_async_microphone_is_released(recorder: Unplugged):
    recorder.n_left = 1_000_000
    blocks = async_microphone()
    assert len(await anext(blocks)) == 3200
    del blocks
    assert await asyncio.to_thread(recorder.closed.wait, 5)


async def test_a_closed_async_microphone_is_released_by_then(recorder: Unplugged):
    recorder.n_left = 1_000_000
    blocks = async_microphone()
    assert len(await anext(blocks)) == 3200
    await blocks.aclose()
    assert recorder.closed.is_set()


def test_a_dropped_stream_releases_its_microphone(recorder: Unplugged):
    with Client("localhost:9", api_key="") as client:
        events = client.stream(microphone(), StreamOptions(raw_format=MICROPHONE))
        del events
    assert recorder.closed.is_set()


def test_a_microphone_that_does_not_start_is_let_go_of(recorder: Unplugged, monkeypatch: pytest.MonkeyPatch):
    def busy() -> None:
        raise PortAudioError("Device busy")

    monkeypatch.setattr(recorder, "start", busy)
    with pytest.raises(NoMicrophone, match="the microphone cannot be used: Device busy"):
        microphone()
    assert recorder.closed.is_set()


class Source:
    """An endless generator of blocks, which checks that the thread that reads it closes it."""

    def __init__(self) -> None:
        self.n_read = 0
        self.closed = threading.Event()
        self.was_full = threading.Event()

    def blocks(self, n_full: int = -1) -> Generator[bytes, None, None]:
        reader = threading.current_thread()
        try:
            while True:
                self.n_read += 1
                if self.n_read == n_full:
                    self.was_full.set()
                yield b"block"
        finally:
            assert threading.current_thread() is reader
            self.closed.set()

    async def is_closed(self) -> bool:
        return await asyncio.to_thread(self.closed.wait, 5)


async def test_the_end_of_the_source_ends_the_iterator():
    source = Source()
    assert [block async for block in from_thread(block for block, _ in zip(source.blocks(), range(3), strict=False))]
    assert await source.is_closed()


async def test_closing_the_iterator_closes_the_source():
    source = Source()
    recorded = from_thread(source.blocks())
    assert await anext(recorded) == b"block"
    await recorded.aclose()
    assert await source.is_closed()


async def test_a_source_that_waits_for_room_is_closed_too():
    source = Source()
    recorded = from_thread(
        source.blocks(n_full=4), max_waiting=2
    )  # two wait, one is taken, and for the next there is no room
    assert await anext(recorded) == b"block"
    assert await asyncio.to_thread(source.was_full.wait, 5)
    await recorded.aclose()
    assert await source.is_closed()
    assert source.n_read == 4


@pytest.mark.parametrize("max_waiting", [1, 1_000_000], ids=["waits for room", "has room"])
def test_a_source_is_closed_after_its_loop(max_waiting: int):
    source = Source()
    recorded = from_thread(source.blocks(), max_waiting=max_waiting)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(anext(recorded)) == b"block"
    loop.close()
    assert source.closed.wait(30)
