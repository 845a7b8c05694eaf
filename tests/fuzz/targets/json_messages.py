"""What the console's bridge gets: JSON for every message, which it makes again from the message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from google.protobuf.message import Message

from tests.fuzz.inputs import Source
from tests.service.access import methods
from typeless_grpc.console.messages import Json, as_dict, failure, http_status
from typeless_grpc.errors import InvalidInput
from typeless_grpc.interceptors.wire_format import has_more_fields

MAX_BYTES = 4000


@cache
def kinds() -> list[type[Message]]:
    from google.protobuf.message_factory import GetMessageClass

    ours = [one.input_type for name, one in methods().items() if name.startswith("/typeless.")]
    return [GetMessageClass(kind) for kind in {one.full_name: one for one in ours}.values()]


@cache
def converter() -> Json:
    return Json(ThreadPoolExecutor(1))


def seeds() -> Iterator[bytes]:
    for index, kind in enumerate(kinds()):
        message = Source(bytes((index * 31 + i * 7) % 256 for i in range(500))).fill(kind())
        text = asyncio.run(converter().text(message))
        yield bytes([index]) + text.encode()[: MAX_BYTES - 1]
    for text in (b"{" * 500, b'{"audio":{"content":"####"}}', b'{"a":NaN}', b"[]", b'"\\ud800"', b'{"jobId":1e999}'):
        yield b"\0" + text


def one(data: bytes) -> None:
    source = Source(data)
    kind = source.chosen(kinds())
    text: bytes | str = source.rest
    try:
        message = asyncio.run(converter().parse(text, kind))
    except InvalidInput as error:
        status = failure(error)
        assert http_status(status) == 400
        as_dict(status)
        return
    encoded = message.SerializeToString()
    again = kind.FromString(encoded)
    assert again == message or encoded == again.SerializeToString()  # NaN is not equal to itself
    shown = [json.loads(asyncio.run(converter().text(one))) for one in (message, again)]  # maps have no order
    assert shown[0] == shown[1]
    assert not has_more_fields(encoded, kind.DESCRIPTOR, 2 * len(encoded) + 1)
