"""Deprecated: the former module of the microphone. Use `typeless_grpc.client.microphone`."""

import warnings

from typeless_grpc.client.microphone import MICROPHONE, NoMicrophone, async_microphone, microphone

__all__ = ["MICROPHONE", "NoMicrophone", "async_microphone", "microphone"]

warnings.warn("typeless_grpc.client_mic is now typeless_grpc.client.microphone", DeprecationWarning, stacklevel=2)
