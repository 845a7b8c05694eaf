from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from typeless_grpc import client_mic
from typeless_grpc.client import Client
from typeless_grpc.client_mic import MICROPHONE, NoMicrophone, async_microphone, from_thread, microphone
from typeless_grpc.client_stream import StreamOptions


class PortAudioError(Exception):
    pass


class Unplugged:
    """A recorder that is unplugged after two pieces."""

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


def test_a_microphone_that_stops_says_so(recorder: Unplugged):
    pieces = microphone()
    assert [len(next(pieces)) for _ in range(2)] == [3200, 3200]
    with pytest.raises(NoMicrophone, match="the microphone stopped: Device unavailable"):
        next(pieces)
    assert recorder.closed.is_set()


async def test_one_that_stops_in_its_thread_says_so_too(recorder: Unplugged):
    heard = async_microphone()
    assert [len(await anext(heard)) for _ in range(2)] == [3200, 3200]
    with pytest.raises(NoMicrophone, match="the microphone stopped: Device unavailable"):
        await asyncio.wait_for(anext(heard), 5)
    assert recorder.closed.is_set()


@pytest.mark.parametrize("listen", [microphone, async_microphone], ids=["sync", "async"])
def test_a_microphone_that_nobody_reads_is_let_go_of(
    listen: Callable[[], Generator[bytes, None, None] | AsyncGenerator[bytes, None]], recorder: Unplugged
):
    pieces = listen()
    assert not recorder.closed.is_set()
    del pieces
    assert recorder.closed.is_set()


def test_a_microphone_that_is_dropped_between_two_pieces_is_let_go_of(recorder: Unplugged):
    pieces = microphone()
    assert len(next(pieces)) == 3200
    del pieces
    assert recorder.closed.is_set()


async def test_one_that_is_dropped_in_its_thread_is_let_go_of_too(recorder: Unplugged):
    recorder.n_left = 1_000_000
    pieces = async_microphone()
    assert len(await anext(pieces)) == 3200
    del pieces
    assert await asyncio.to_thread(recorder.closed.wait, 5)


async def test_one_that_is_closed_in_its_thread_is_free_by_then(recorder: Unplugged):
    recorder.n_left = 1_000_000
    pieces = async_microphone()
    assert len(await anext(pieces)) == 3200
    await pieces.aclose()
    assert recorder.closed.is_set()


def test_a_stream_that_is_dropped_lets_go_of_its_microphone(recorder: Unplugged):
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
    """Pieces without end, and whether their generator was closed, by the thread that read it."""

    def __init__(self) -> None:
        self.n_read = 0
        self.closed = threading.Event()
        self.was_full = threading.Event()

    def pieces(self, n_full: int = -1) -> Generator[bytes, None, None]:
        reader = threading.current_thread()
        try:
            while True:
                self.n_read += 1
                if self.n_read == n_full:
                    self.was_full.set()
                yield b"piece"
        finally:
            assert threading.current_thread() is reader
            self.closed.set()

    async def is_closed(self) -> bool:
        return await asyncio.to_thread(self.closed.wait, 5)


async def test_the_end_of_the_source_is_the_end():
    source = Source()
    assert [piece async for piece in from_thread(piece for piece, _ in zip(source.pieces(), range(3), strict=False))]
    assert await source.is_closed()


async def test_whoever_stops_listening_closes_the_source():
    source = Source()
    heard = from_thread(source.pieces())
    assert await anext(heard) == b"piece"
    await heard.aclose()
    assert await source.is_closed()


async def test_a_source_that_waits_for_room_is_closed_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_mic, "_MAX_WAITING", 2)
    source = Source()
    heard = from_thread(source.pieces(n_full=4))  # two wait, one is taken, and for the next there is no room
    assert await anext(heard) == b"piece"
    assert await asyncio.to_thread(source.was_full.wait, 5)
    await heard.aclose()
    assert await source.is_closed()
    assert source.n_read == 4


def test_a_source_ends_with_the_loop_that_heard_it():
    source = Source()
    heard = from_thread(source.pieces())
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(anext(heard)) == b"piece"
    loop.close()
    assert source.closed.wait(5)
