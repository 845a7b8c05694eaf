"""Decoders of containers: in this process, or each in a process of its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from typeless_grpc.audio.decode import AudioReader, OpenReader
from typeless_grpc.audio.live_container import ContainerLiveReader, OpenLiveContainer
from typeless_grpc.audio.sandbox.processes import DecoderProcesses
from typeless_grpc.audio.sandbox.recordings import SandboxedReader
from typeless_grpc.audio.sandbox.streams import SandboxedLiveReader


@dataclass(frozen=True)
class Decoders:
    """Where containers are decoded.

    recording: makes the reader of a recording's container. stream: makes the reader of a stream's container.
    """

    recording: OpenReader = AudioReader
    stream: OpenLiveContainer = ContainerLiveReader


IN_PROCESS = Decoders()


def sandboxed(processes: DecoderProcesses) -> Decoders:
    """Return decoders that use these processes."""
    return Decoders(functools.partial(SandboxedReader, processes), functools.partial(SandboxedLiveReader, processes))
