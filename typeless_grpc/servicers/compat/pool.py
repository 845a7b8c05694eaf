"""Descriptor pools for other contracts, so that they do not collide with those of the original packages."""

from __future__ import annotations

from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import Message


def loaded(file: str) -> descriptor_pool.DescriptorPool:
    """Return a pool with the files of a descriptor set in `typeless_grpc/pb`."""
    pool = descriptor_pool.DescriptorPool()
    data = resources.files("typeless_grpc.pb").joinpath(file).read_bytes()
    for proto in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(proto.SerializeToString())
    return pool


def class_of(descriptor: Descriptor) -> Any:
    """Return the class of a message."""
    return message_factory.GetMessageClass(descriptor)


def copy(source: Message, target: Message) -> None:
    """Copy a message to one of the same type in another pool, such as a Duration."""
    target.MergeFromString(source.SerializeToString())


def register(server: grpc.aio.Server, service: ServiceDescriptor, servicer: Any) -> None:
    """Register a servicer that has a method for each of a service's: unary ones, or bidirectional streams."""
    found: dict[str, Any] = {}
    for method in service.methods:
        make = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        found[method.name] = make(
            getattr(servicer, method.name),
            request_deserializer=class_of(method.input_type).FromString,
            response_serializer=class_of(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, found),))
