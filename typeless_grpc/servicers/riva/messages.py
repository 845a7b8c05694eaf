"""The messages of NVIDIA Riva's contract, made from protos/riva in a descriptor pool of their own.

In the default pool they would collide with those of the package nvidia-riva-client in one program.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor

_PACKAGE = "nvidia.riva.asr"
SERVICE = f"{_PACKAGE}.RivaSpeechRecognition"


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    data = resources.files("typeless_grpc.pb").joinpath("riva.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def class_of(descriptor: Descriptor) -> Any:
    """Return the class of a message of this contract."""
    return message_factory.GetMessageClass(descriptor)


def _message(name: str) -> Any:
    return class_of(POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


POOL = _pool()

RecognizeRequest = _message("RecognizeRequest")
RecognizeResponse = _message("RecognizeResponse")
StreamingRecognizeRequest = _message("StreamingRecognizeRequest")
StreamingRecognizeResponse = _message("StreamingRecognizeResponse")
ConfigRequest = _message("RivaSpeechRecognitionConfigRequest")
ConfigResponse = _message("RivaSpeechRecognitionConfigResponse")
Alternative = _message("SpeechRecognitionAlternative")
WordInfo = _message("WordInfo")
AudioEncoding: dict[str, int] = {
    value.name: value.number for value in POOL.FindEnumTypeByName("nvidia.riva.AudioEncoding").values
}
