"""The count of fields before a message is parsed: never fewer than parsing makes, whatever the bytes are."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError, Message

from tests.fuzz.inputs import Source
from tests.fuzz.targets.json_messages import kinds
from typeless_grpc.interceptors.wire_format import has_more_fields

MAX_BYTES = 4000


def seeds() -> Iterator[bytes]:
    for index, kind in enumerate(kinds()):
        message = Source(bytes((index * 31 + i * 7) % 256 for i in range(500))).fill(kind())
        yield bytes([index]) + message.SerializeToString()[: MAX_BYTES - 1]
    yield b"\0" + b"\x12\x00" * 500
    yield b"\0" + b"\xff" * 100
    yield b"\0" + b"\x0b" * 300


def one(data: bytes) -> None:
    source = Source(data)
    kind = source.chosen(kinds())
    content = source.rest
    limits = [limit for limit in (0, 1, 10, 100, 1000) if has_more_fields(content, kind.DESCRIPTOR, limit)]
    try:
        message = kind.FromString(content)
    except DecodeError:
        return
    n_fields = counted(message)
    for limit in (1, 10, 100, 1000):
        if n_fields > limit:
            assert limit in limits, f"{n_fields} fields pass for at most {limit}"


def counted(message: Message) -> int:
    """How many values a message and those in it have, each element of a repeated field for itself."""
    n_fields = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            n_fields += len(value)
            continue
        for one in value if field.is_repeated else [value]:
            n_fields += 1 + (counted(one) if field.message_type is not None else 0)
    return n_fields
