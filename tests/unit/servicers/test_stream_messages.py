from __future__ import annotations

import pytest

from typeless_grpc.engine.interface import VoiceActivityOptions
from typeless_grpc.servicers.stream_messages import StreamDefaults
from typeless_grpc.streaming.endpoint import EndpointOptions


@pytest.mark.parametrize(
    ("requested_s", "expected_s"),
    [
        (None, (EndpointOptions.end_silence_s, EndpointOptions.low_confidence_silence_s)),
        (0.3, (0.3, 0.3)),
        (2.0, (2.0, 2.0)),
    ],
)
def test_a_requested_end_silence_replaces_both_defaults(requested_s: float | None, expected_s: tuple[float, float]):
    segmentation = StreamDefaults("base").segmentation(VoiceActivityOptions(end_silence_s=requested_s), is_file=False)
    assert isinstance(segmentation, EndpointOptions)
    assert (segmentation.end_silence_s, segmentation.low_confidence_silence_s) == expected_s
