"""What the attacks have in common: names, a register of all, and how to go on after the server has closed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.speech import tone
from tests.wire.http2 import Peer, message
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
REGISTER: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Add a function to those that are tried."""
    REGISTER[function.__name__] = function
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


@contextmanager
def many(port: int, n: int, **options: int) -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(port, **options)) for _ in range(n)]
