"""Writes the contract of Google Cloud Speech that this server serves, as a descriptor set: `make proto` runs this.

The messages are those of the package google-cloud-speech, which has no descriptors of services: they are added here.
"""

from __future__ import annotations

import sys

from google.cloud import speech_v1, speech_v1p1beta1, speech_v2
from google.longrunning import operations_proto_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Service, method, request, response; streaming if the name begins with "Streaming".
METHODS = {
    "v1": ("Recognize", "LongRunningRecognize", "StreamingRecognize"),
    "v1p1beta1": ("Recognize", "LongRunningRecognize", "StreamingRecognize"),
    "v2": ("Recognize", "StreamingRecognize", "BatchRecognize"),
}
MODULES = {"v1": speech_v1, "v1p1beta1": speech_v1p1beta1, "v2": speech_v2}
RETURNS_OPERATION = ("LongRunningRecognize", "BatchRecognize")
OPERATIONS = "google/longrunning/operations.proto"


def renamed(name: str) -> str:
    """The canonical name of a file: those of the package are named after its modules."""
    name = name.replace("cloud/speech_", "cloud/speech/").replace("/types/", "/")
    return name.replace("operations_proto.", "operations.")


def in_order(proto: FileDescriptorProto) -> None:
    """Sort what the package puts in another order in each process."""
    proto.dependency.sort()
    proto.enum_type.sort(key=lambda enum: enum.name)
    pending = [proto.message_type]
    while pending:
        messages = pending.pop()
        messages.sort(key=lambda message: message.name)
        for message in messages:
            message.enum_type.sort(key=lambda enum: enum.name)
            pending.append(message.nested_type)


def main() -> None:
    found: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        if renamed(file.name) in found or file.name.startswith("google/api/"):
            return
        for dependency in sorted(file.dependencies, key=lambda one: one.name):
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        proto.name = renamed(proto.name)
        needed = [renamed(name) for name in proto.dependency if not name.startswith("google/api/")]
        del proto.dependency[:], proto.public_dependency[:], proto.weak_dependency[:]
        proto.dependency.extend(needed)
        proto.ClearField("options")
        for message in proto.message_type:
            message.options.Clear()
        for service in proto.service:
            service.options.Clear()
            for method in service.method:
                method.options.Clear()
        found[proto.name] = proto

    add(operations_proto_pb2.DESCRIPTOR)
    for version, module in MODULES.items():
        file = module.types.RecognizeRequest.pb().DESCRIPTOR.file
        add(file)
        proto = found[renamed(file.name)]
        proto.dependency.append(OPERATIONS)
        service = proto.service.add(name="Speech")
        for name in METHODS[version]:
            streams = name.startswith("Streaming")
            service.method.add(
                name=name,
                input_type=f".{proto.package}.{name}Request",
                output_type=".google.longrunning.Operation"
                if name in RETURNS_OPERATION
                else f".{proto.package}.{name}Response",
                client_streaming=streams,
                server_streaming=streams,
            )
    for proto in found.values():
        in_order(proto)
    sys.stdout.buffer.write(FileDescriptorSet(file=found.values()).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
