"""Attacks on gRPC: floods of messages, calls that nobody wants, slow and deaf clients, and connections."""

from __future__ import annotations

import random
import ssl
import time
from contextlib import suppress

from hyperframe import frame as frames

from tests.speech import tone
from tests.wire.attack import (
    BATCH,
    CHECK,
    DATA,
    END_STREAM,
    STREAM,
    TRANSCRIBE,
    WATCH,
    Over,
    attack,
    configuration,
    drained,
    many,
    reconnecting,
    recording,
)
from tests.wire.http2 import PREFACE, Peer, headers_of, message, raw, settings
from tests.wire.node import HOSTILE
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest

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
        if n_inputs % 100 == 0:  # beyond max_connections, new ones of anybody would be closed
            with Peer(port) as last:
                last.answer(last.call(headers_of(CHECK), message()))
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
