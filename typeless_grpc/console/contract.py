"""The calls of the contract by the names of service and method, from the descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from typeless_grpc.pb.v1 import admin_pb2, jobs_pb2, models_pb2, server_pb2, transcription_pb2, uploads_pb2

_FILES = (admin_pb2, jobs_pb2, models_pb2, server_pb2, transcription_pb2, uploads_pb2)


@dataclass(frozen=True)
class Method:
    """One call of the contract.

    path: "/typeless.v1.JobsService/GetJob". data_field: the field of the request that holds raw bytes, "" if none does.
    """

    path: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool
    streams_responses: bool
    data_field: str

    def on(self, channel: grpc.aio.Channel) -> Callable[..., Any]:
        """Return the call as a function of a channel, as the generated stubs do."""
        kind = "_".join("stream" if streams else "unary" for streams in (self.streams_requests, self.streams_responses))
        function: Callable[..., Any] = getattr(channel, kind)(
            self.path, request_serializer=self.request.SerializeToString, response_deserializer=self.response.FromString
        )
        return function


def _methods() -> Iterator[tuple[tuple[str, str], Method]]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield (service.name, method.name), _method(f"/{service.full_name}/{method.name}", method)


def _method(path: str, described: MethodDescriptor) -> Method:
    return Method(
        path=path,
        request=GetMessageClass(described.input_type),
        response=GetMessageClass(described.output_type),
        streams_requests=described.client_streaming,
        streams_responses=described.server_streaming,
        data_field=_data_field(described.input_type),
    )


def _data_field(message: Descriptor) -> str:
    return next((field.name for field in message.fields if field.type == FieldDescriptor.TYPE_BYTES), "")


METHODS: Mapping[tuple[str, str], Method] = dict(_methods())
