from __future__ import annotations

from typing import Any

import pytest

from typeless_grpc.client_ledger import Ledger, StreamOptions


def sent(ledger: Ledger) -> list[bytes]:
    place, audio = ledger.first(), []
    while (found := ledger.at(place)) is not None:
        request, place = found
        audio.append(request.audio)
    return audio


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_sent_as_they_are_now(kind: Any):
    ledger = Ledger(StreamOptions())
    buffer = bytearray(b"abcd")
    ledger.add(kind(buffer))
    buffer[0] = 0  # as a caller does who reads into one buffer
    assert sent(ledger) == [b"abcd"]


@pytest.mark.parametrize("item", ["call.wav", 7, None])
def test_what_is_no_audio_is_an_error_that_says_what_is(item: Any):
    ledger = Ledger(StreamOptions())
    with pytest.raises(TypeError, match=f"bytearray, memoryview, Control and Options, not of {type(item).__name__}"):
        ledger.add(item)
    assert sent(ledger) == []
