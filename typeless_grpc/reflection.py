"""Server reflection in both versions: most tools try v1 first, and older ones know only v1alpha.

grpcio-reflection implements v1alpha. The messages of v1 are the same under another package name
(https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto), so its servicer serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

PACKAGE = "grpc.reflection.v1"
NAMES = (f"{PACKAGE}.ServerReflection", reflection.SERVICE_NAME)


def enable(services: Iterable[str], server: grpc.aio.Server, pools: Sequence[DescriptorPool] = ()) -> None:
    """Let a server describe services, given by their full names, and reflection itself.

    pools: with the descriptors of services that are not in the default pool.
    """
    found_in = _Pools([descriptor_pool.Default(), *pools])
    servicer = reflection.aio.ReflectionServicer((*services, *NAMES), pool=found_in)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAMES[0], handlers),))


class _Pools:
    """Several descriptor pools, of which the first that has a name describes it. Raises KeyError as one pool does."""

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> Any:
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> Any:
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> Any:
        return message.file.pool.FindAllExtensions(message)

    def _first(self, find: Callable[[DescriptorPool], Any]) -> Any:
        for pool in self._pools:
            with suppress(KeyError):
                return find(pool)
        raise KeyError


def _described() -> FileDescriptor:
    """Add the file of v1 to the pool in which reflection looks descriptors up."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    alpha = file.package
    file.name, file.package = f"{PACKAGE.replace('.', '/')}/reflection.proto", PACKAGE
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{alpha}.", f".{PACKAGE}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{alpha}.", f".{PACKAGE}.")
        method.output_type = method.output_type.replace(f".{alpha}.", f".{PACKAGE}.")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


DESCRIPTOR = _described()
