"""Page tokens, days and ids of AdminService, through its servicer over a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

from google.protobuf.message import Message

from tests.fuzz.inputs import Source
from tests.fuzz.targets.requests import check
from typeless_grpc.access.keys import KeyRing
from typeless_grpc.access.quota import Quotas
from typeless_grpc.access.registry import Registry, RegistryOptions
from typeless_grpc.access.usage import UsageReader
from typeless_grpc.errors import InvalidInput, NotFound, RateLimited, WrongState
from typeless_grpc.pb.v1 import admin_pb2
from typeless_grpc.servicers.admin import AdminServicer
from typeless_grpc.stores.memory_access import MemoryAccessStore

MAX_BYTES = 1024
CALLS: dict[str, type[Message]] = {
    "ListUsage": admin_pb2.ListUsageRequest,
    "ListApiKeys": admin_pb2.ListApiKeysRequest,
    "RevokeApiKey": admin_pb2.RevokeApiKeyRequest,
    "UpdateRateLimit": admin_pb2.UpdateRateLimitRequest,
    "CreateApiKey": admin_pb2.CreateApiKeyRequest,
}


def servicer() -> AdminServicer:
    store = MemoryAccessStore()
    registry = Registry(store=store, ring=KeyRing(), quotas=Quotas([]), options=RegistryOptions(max_keys=20))
    return AdminServicer(registry, UsageReader([store]), {})


def seeds() -> Iterator[bytes]:
    for index, token in enumerate((b"MjAyNi0wMS0wMS9rZXk6b25l", b"12", b"k1", b"2026-01-01", b"9" * 18)):
        for call in range(len(CALLS)):
            yield bytes([call, 0]) + b"".join(bytes([field << 3 | 2, len(token)]) + token for field in range(1, 6))
            yield bytes([call, 1, index]) + token * 3


def one(data: bytes) -> None:
    source = Source(data)
    name = source.chosen(list(CALLS))
    message = CALLS[name]()
    if not source.read_into(message):
        return
    try:
        asyncio.run(call(name, message))
    except InvalidInput as error:
        check(error, message)
    except (NotFound, RateLimited, WrongState) as error:
        assert error.reason


async def call(name: str, message: Message) -> None:
    answer = await getattr(servicer(), name)(message, cast(Any, None))
    answer.SerializeToString()
