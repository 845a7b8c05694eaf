"""What the tests of keys and limits need: every call of the contract, and a server that serves all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.harness import Served, serving
from typeless_grpc import reflection
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.interface import Engine
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import (
    admin_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    server_pb2,
    transcription_pb2,
    uploads_pb2,
    uploads_pb2_grpc,
)
from typeless_grpc.servicers.google import messages as google
from typeless_grpc.servicers.riva import messages as riva

USER = "a-user-key-of-the-settings"
ADMIN = "an-admin-key-of-the-settings"
KEYS = {"auth_enabled": True, "api_keys": USER, "admin_keys": ADMIN, "key_refresh_s": 0.05}

FILES: Sequence[FileDescriptor] = [
    reflection.DESCRIPTOR,
    riva.POOL.FindFileByName("riva/proto/riva_asr.proto"),
    google.POOL.FindFileByName("google/longrunning/operations.proto"),
    *(version.service.file for version in google.VERSIONS),
    *(
        module.DESCRIPTOR
        for module in (
            admin_pb2,
            jobs_pb2,
            models_pb2,
            server_pb2,
            transcription_pb2,
            uploads_pb2,
            health_pb2,
            reflection_pb2,
        )
    ),
]


def methods() -> dict[str, MethodDescriptor]:
    """Every call of the contract, and of the services that come with gRPC, by its full name."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }


class Unwritten:
    """A service of the contract whose calls nobody has written: UNIMPLEMENTED, once they get there."""

    def __init__(self, name: str, servicer: Any, add: Any) -> None:
        self.NAME = name
        self._servicer = servicer
        self._add = add

    def register(self, server: grpc.aio.Server) -> None:
        self._add(self._servicer, server)


def unwritten() -> Iterator[Unwritten]:
    """Those that a server around a scripted engine lacks, so that all of the contract can be called."""
    for module in (jobs_pb2_grpc, models_pb2_grpc, uploads_pb2_grpc):
        name = next(name for name in vars(module) if name.endswith("Servicer"))
        service = name.removesuffix("Servicer")
        add = getattr(module, f"add_{name}_to_server")
        yield Unwritten(f"typeless.v1.{service}", getattr(module, name)(), add)


def guarded(engine: Engine | None = None, **settings: Any) -> AbstractAsyncContextManager[Served]:
    """A server with every service of the contract, and with keys."""
    return serving(engine or ScriptedEngine(), more=list(unwritten()), **KEYS | settings)


async def outcome(served: Served, method: str, *metadata: tuple[str, str], request: bytes = b"") -> CallFailed | None:
    """How a call with this request ends; None is OK. A stream's requests end at once, of its responses one is read.

    grpc.aio's client now and then reports a stream that is refused while its first request is being sent as an error of
    its own: then the call is made again.
    """
    while (
        failed := await _outcome(served, method, metadata, request)
    ) and failed.message == "Internal error from Core":
        pass
    return failed


async def _outcome(
    served: Served, method: str, metadata: Sequence[tuple[str, str]], request: bytes
) -> CallFailed | None:
    described = methods()[method]
    shape = ("stream" if described.client_streaming else "unary", "stream" if described.server_streaming else "unary")
    call = getattr(served.channel, "_".join(shape))(method)

    async def requests() -> Any:
        yield request

    sent = call(requests() if described.client_streaming else request, metadata=tuple(metadata), timeout=10)
    try:
        if described.server_streaming:
            # What it answers first is enough to know that the call was let in.
            async for _ in sent:
                sent.cancel()
                return None
        else:
            await sent
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error)
    return None
