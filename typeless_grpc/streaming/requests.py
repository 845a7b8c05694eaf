"""What a caller sends in a stream, after its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.planner import PlanOptions

# How a stream is segmented: in LIVE mode by endpoints, in FILE mode by a plan.
SegmentationOptions = EndpointOptions | PlanOptions


class Control(Enum):
    """A request without content."""

    FINALIZE = "finalize"
    KEEP_ALIVE = "keep_alive"
    END = "end"


@dataclass(frozen=True)
class Update:
    """New options from the next utterance on.

    segmentation: that of the stream's mode, with the server's defaults filled in. requested: the options as the caller
    sent them, which `Configured` returns.
    """

    options: DecodeOptions
    segmentation: SegmentationOptions
    requested: object = None


Request = bytes | Control | Update
