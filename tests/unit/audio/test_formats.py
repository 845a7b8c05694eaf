from __future__ import annotations

import pytest

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.errors import InvalidInput

RAW = [encoding for encoding in Encoding if encoding is not Encoding.CONTAINER]


@pytest.mark.parametrize("encoding", RAW, ids=lambda encoding: encoding.value)
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 192_000])
@pytest.mark.parametrize("n_channels", [1, 8])
def test_raw_audio_within_the_bounds_is_taken_as_it_is(encoding: Encoding, rate_hz: int, n_channels: int) -> None:
    format = AudioFormat(encoding, rate_hz, n_channels)
    assert format.validated() == format


@pytest.mark.parametrize("n_channels", [None, 0])
def test_raw_audio_has_one_channel_unless_more_are_declared(n_channels: int | None) -> None:
    assert AudioFormat(Encoding.MULAW, 8_000, n_channels).validated().n_channels == 1


def test_zeros_of_a_container_mean_that_nothing_is_declared() -> None:
    assert AudioFormat(Encoding.CONTAINER, 0, 0).validated() == AudioFormat()


@pytest.mark.parametrize(
    ("encoding", "rate_hz", "n_channels", "fields"),
    [
        pytest.param(Encoding.PCM_S16LE, None, 1, ["sample_rate_hertz"], id="no rate"),
        pytest.param(Encoding.PCM_S16LE, 0, 1, ["sample_rate_hertz"], id="rate of zero"),
        pytest.param(Encoding.PCM_F32LE, 7_999, 1, ["sample_rate_hertz"], id="rate too low"),
        pytest.param(Encoding.ALAW, 192_001, 1, ["sample_rate_hertz"], id="rate too high"),
        pytest.param(Encoding.MULAW, 8_000, 9, ["channel_count"], id="too many channels"),
        pytest.param(Encoding.MULAW, 8_000, -1, ["channel_count"], id="negative channels"),
        pytest.param(Encoding.CONTAINER, -1, -1, ["sample_rate_hertz", "channel_count"], id="container, negative"),
        pytest.param(Encoding.PCM_S16LE, 1, 99, ["sample_rate_hertz", "channel_count"], id="both at once"),
    ],
)
def test_every_wrong_field_is_named_with_its_path(
    encoding: Encoding, rate_hz: int | None, n_channels: int, fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        AudioFormat(encoding, rate_hz, n_channels).validated("items[3].audio")
    assert [violation.field for violation in caught.value.violations] == [f"items[3].audio.format.{f}" for f in fields]


@pytest.mark.parametrize(("encoding", "frame_bytes"), list(zip(RAW, [6, 12, 3, 3], strict=True)))
def test_a_frame_is_a_sample_of_every_channel(encoding: Encoding, frame_bytes: int) -> None:
    format = AudioFormat(encoding, 10_000, 3)
    assert (format.frame_bytes, format.bytes_per_second) == (frame_bytes, frame_bytes * 10_000)
