"""Connections made from a seed: legal calls of any method, and what a broken or hostile client makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hpack

from tests.speech import tone
from tests.wire import attack
from tests.wire.http2 import PREFACE, Peer, headers_of, message, raw, settings
from tests.wire.node import HOSTILE
from typeless_grpc.servicers.google import messages as google
from typeless_grpc.servicers.riva import messages as riva

READ_S = 0.3  # for what comes back; most answers come within milliseconds
GOOGLE = google.V1.message(
    "StreamingRecognizeRequest", streaming_config={"config": {"encoding": 1, "sample_rate_hertz": 16_000}}
)
RIVA = riva.StreamingRecognizeRequest(
    streaming_config={
        "config": {"encoding": riva.AudioEncoding["LINEAR_PCM"], "sample_rate_hertz": 16_000, "language_code": "en-US"}
    }
)
# Methods with the messages of a good call.
CALLS: Sequence[tuple[str, Sequence[bytes]]] = [
    (attack.CHECK, [message()]),
    (attack.TRANSCRIBE, [attack.recording()]),
    (attack.STREAM, [attack.configuration(), message(b"\x12\x40" + tone(0.002)), message(b"\x18\x03")]),
    ("/typeless.v1.TranscriptionService/BatchTranscribe", [message(b"\x0a\x00")]),
    ("/typeless.v1.ServerService/GetServerInfo", [message()]),
    ("/typeless.v1.AdminService/GetConfig", [message()]),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [message(b"\x3a\x00")]),
    (f"/{riva.SERVICE}/StreamingRecognize", [message(RIVA.SerializeToString()), message(b"\x12\x40" + tone(0.002))]),
    (
        f"/{google.V1.service.full_name}/StreamingRecognize",
        [message(GOOGLE.SerializeToString()), message(b"\x12\x40" + tone(0.002))],
    ),
    ("/no.Service/Method", [message()]),
]
HEADERS: Sequence[tuple[str, str]] = [
    ("grpc-timeout", "0n"),
    ("grpc-timeout", "99999999H"),
    ("grpc-timeout", "-1S"),
    ("grpc-encoding", "gzip"),
    ("grpc-encoding", "nothing"),
    ("grpc-accept-encoding", "nothing"),
    ("x-request-id", "\x01"),
    ("grpc-status", "0"),
    ("x-data-bin", "!"),
    ("content-length", "-1"),
    ("transfer-encoding", "chunked"),
    ("X-Upper", "x"),
    (":status", "200"),
    ("", ""),
]
INSTEAD: Sequence[dict[str, str]] = [
    {":method": "GET"},
    {":path": "x"},
    {":path": ""},
    {":scheme": ""},
    {"te": ""},
    {"content-type": "application/json"},
    {"content-type": ""},
    {":authority": ""},
]


@dataclass(frozen=True)
class Script:
    """What a client sends, part by part, and how it ends. closes: whether abruptly, at the end."""

    seed: int
    parts: tuple[bytes, ...]
    closes: bool

    def describe(self) -> str:
        """How to send it again."""
        sent = b"".join(self.parts).hex()
        return f"python -m tests.wire replay {self.seed} sends it again:\n{sent[:20_000]}"


def script(seed: int) -> Script:
    """The connection of a seed."""
    chance = random.Random(seed)
    parts = [PREFACE, settings(), *_calls(chance)]
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        parts = chance.choice(MUTATIONS)(chance, parts)
    return Script(seed, tuple(parts), chance.random() < 0.3)


def _calls(chance: random.Random) -> list[bytes]:
    parts, encoder = [], hpack.Encoder()
    for index in range(chance.choice([1, 1, 2, 5])):
        stream = 2 * index + 1
        method, sent = chance.choice(CALLS)
        messages = [_mutated(chance, one) if chance.random() < 0.4 else one for one in sent]
        if chance.random() < 0.2:
            messages = [chance.choice(messages) for _ in range(chance.randrange(5))]
        more = chance.sample(HEADERS, 1) if chance.random() < 0.2 else []
        instead = chance.choice(INSTEAD) if chance.random() < 0.1 else {}
        key = HOSTILE if chance.random() < 0.9 else "another"
        block = encoder.encode(headers_of(method, *more, key=key, instead=instead))
        parts.append(raw(attack.HEADERS, attack.END_HEADERS, stream, block))
        parts += [raw(attack.DATA, 0, stream, one[:16_384]) for one in messages]
        if chance.random() < 0.8:
            parts.append(raw(attack.DATA, attack.END_STREAM, stream))
    return parts


def _mutated(chance: random.Random, sent: bytes) -> bytes:
    """A message with other bytes, flags or lengths."""
    kind = chance.randrange(5)
    body = bytearray(sent[5:] or b"\0")
    if kind == 0:
        for _ in range(chance.randrange(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        return message(bytes(body))
    if kind == 1:
        return message(bytes(body[: chance.randrange(len(body) + 1)]))
    if kind == 2:
        return message(chance.randbytes(chance.randrange(200)))
    if kind == 3:
        return message(bytes(body), flag=chance.choice([1, 2, 255]))
    return message(bytes(body), length=chance.choice([0, 1, len(body) - 1, len(body) + 1, 2**24, 2**32 - 1]))


Parts = list[bytes]


def _flip(chance: random.Random, parts: Parts) -> Parts:
    """Other bits anywhere."""
    data = bytearray(b"".join(parts) or PREFACE)
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return [bytes(data)]


def _cut(chance: random.Random, parts: Parts) -> Parts:
    """Only the beginning."""
    data = b"".join(parts)
    return [data[: chance.randrange(len(data) + 1)]]


def _twice(chance: random.Random, parts: Parts) -> Parts:
    """A part again, somewhere."""
    parts = list(parts)
    parts.insert(chance.randrange(len(parts) + 1), chance.choice(parts))
    return parts


def _shuffled(chance: random.Random, parts: Parts) -> Parts:
    """Frames in another order, after the preface."""
    rest = parts[1:]
    chance.shuffle(rest)
    return [*parts[:1], *rest]


def _dropped(chance: random.Random, parts: Parts) -> Parts:
    """One part less."""
    at = chance.randrange(len(parts))
    return [*parts[:at], *parts[at + 1 :]] or [b""]


def _inserted(chance: random.Random, parts: Parts) -> Parts:
    """A frame of any type, with any flags, stream and length."""
    payload = chance.randbytes(chance.choice([0, 1, 4, 5, 6, 8, 9, 100]))
    length = chance.choice([None, None, None, 0, len(payload) + 3, 16_385, 2**24 - 1])
    stream = chance.choice([0, 1, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1])
    made = raw(chance.choice([*range(10), *range(10), 10, 200]), chance.randrange(256), stream, payload, length=length)
    parts = list(parts)
    parts.insert(chance.randrange(len(parts) + 1), made)
    return parts


def _noise(chance: random.Random, parts: Parts) -> Parts:
    """Random bytes at the end, or nothing else."""
    return [*(parts if chance.random() < 0.5 else []), chance.randbytes(chance.randrange(1, 300))]


MUTATIONS: Sequence[Callable[[random.Random, Parts], Parts]] = [
    _flip,
    _flip,
    _cut,
    _twice,
    _shuffled,
    _dropped,
    _inserted,
    _inserted,
    _noise,
]


def played(port: int, script: Script) -> list[str]:
    """Send a script; return what was wrong with the answers: a status that only an exception of Python gives."""
    with Peer(port, begin=b"") as peer:
        peer.send(*script.parts)
        if not script.closes:
            wanted = [index for index in (1, 3, 5, 7, 9) if any(raw(1, 4, index)[3:9] in part for part in script.parts)]
            peer.read(lambda: all(index in peer.answers and peer.answers[index].has_ended for index in wanted), READ_S)
        else:
            peer.close(abruptly=True)
        return [
            f"stream {stream}: {answer.status} {answer.text}"
            for stream, answer in peer.answers.items()
            if is_exception(answer.status, answer.text)
        ]


def is_exception(status: int | None, text: str) -> bool:
    """Whether a status comes from an exception that nobody expected. gRPC's own, of a path not in UTF-8, is known."""
    if "UnicodeDecodeError" in text:
        return False
    return "Unexpected <class" in text or "Internal error" in text or (status == 2 and bool(text))
