from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from typeless_grpc.client import Control, Options, RawFormat, StreamOptions
from typeless_grpc.client.ledger import Ledger
from typeless_grpc.pb.v1.transcript_pb2 import Segment, Transcript
from typeless_grpc.pb.v1.transcription_pb2 import (
    STREAM_END_REASON_CALLER,
    STREAM_END_REASON_DRAINING,
    StreamStarted,
    StreamTranscribeResponse,
)


def sent(ledger: Ledger) -> list[bytes]:
    position, audio = ledger.first(), []
    while (found := ledger.at(position)) is not None:
        request, position = found
        audio.append(request.audio)
    return audio


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_copied(kind: Any):
    ledger = Ledger(StreamOptions())
    buffer = bytearray(b"abcd")
    ledger.add(kind(buffer))
    buffer[0] = 0  # as a caller does that reads into one buffer
    assert sent(ledger) == [b"abcd"]


@pytest.mark.parametrize("item", ["call.wav", 7, None])
def test_an_item_of_another_type_is_an_error_that_lists_the_types(item: Any):
    ledger = Ledger(StreamOptions())
    with pytest.raises(TypeError, match=f"bytearray, memoryview, Control and Options, not of {type(item).__name__}"):
        ledger.add(item)
    assert sent(ledger) == []


RAW = RawFormat("pcm_s16le", 16_000, n_channels=2)


def opened(ledger: Ledger, session: str = "first") -> None:
    started = StreamStarted(session_id=session)
    ledger.take(StreamTranscribeResponse(sequence=1, started=started))


def drained(n_bytes: int, **transcript: Any) -> StreamTranscribeResponse:
    """The last event of a server that is about to stop."""
    last = StreamTranscribeResponse(sequence=3, acknowledged_bytes=n_bytes)
    last.completed.transcript.CopyFrom(Transcript(**transcript))
    last.completed.end_reason = STREAM_END_REASON_DRAINING
    return last


def test_all_calls_of_a_session_have_one_affinity_until_its_server_stops():
    ledger = Ledger(StreamOptions(raw_format=RAW))
    refused = {ledger.metadata for _ in range(2)}  # a session that is not open may go anywhere
    opening = ledger.metadata
    opened(ledger)
    ledger.failed("")  # the connection broke
    assert ledger.metadata == opening
    ledger.failed("DRAINING")
    moved = ledger.metadata
    assert ledger.metadata == moved
    assert len({*refused, opening, moved}) == 4


@pytest.mark.parametrize("n_bytes", range(16))
def test_the_next_session_begins_with_the_first_sample_that_is_not_acknowledged(n_bytes: int):
    ledger = Ledger(StreamOptions(raw_format=RAW))
    data = bytes(range(16))
    for block in (data[:3], data[3:5], data[5:]):
        ledger.add(block)
    opened(ledger)
    assert not ledger.take(drained(n_bytes))
    assert not ledger.opening().config.resume_session_id
    assert b"".join(sent(ledger)) == data[n_bytes - n_bytes % 4 :]
    opened(ledger, "second")
    last = StreamTranscribeResponse(sequence=2, acknowledged_bytes=16 - n_bytes + n_bytes % 4)
    last.completed.SetInParent()
    assert ledger.take(last)
    assert (last.sequence, last.acknowledged_bytes, ledger.is_complete) == (3, 16, True)
    assert sent(ledger) == []


def test_the_next_session_has_the_options_in_force():
    ledger = Ledger(StreamOptions(Options(language="en"), RAW))
    for item in (b"abcd", Options(language="fr"), b"efgh", Options(language="de"), b"ijkl"):
        ledger.add(item)
    opened(ledger)
    ledger.take(drained(6))
    assert ledger.opening().config.options.language == "fr"
    assert ledger.opening().config.format.channel_count == 2


@pytest.mark.parametrize(("has_ended", "end_reason"), [(True, STREAM_END_REASON_CALLER), (False, None)])
def test_a_session_with_all_the_audio_is_the_last_one(has_ended: bool, end_reason: int | None):
    ledger = Ledger(StreamOptions(raw_format=RAW))
    ledger.add(b"abcd")
    if has_ended:
        ledger.add(Control.END)
    opened(ledger)
    last = drained(4)
    assert ledger.take(last) is ledger.is_complete is has_ended
    assert end_reason is None or last.completed.end_reason == end_reason


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (("Good morning.", "And you?"), "Good morning. And you?"),
        (("早上好。", "你呢?"), "早上好。你呢?"),
        (("", "Yes."), "Yes."),
    ],
    ids=["words", "no spaces between them", "no speech before"],
)
def test_the_transcripts_of_both_servers_are_joined(texts: tuple[str, str], joined: str):
    ledger = Ledger(StreamOptions(raw_format=RAW))
    ledger.add(bytes(64_000 + 4))
    opened(ledger)
    ledger.take(drained(64_000, text=texts[0], segments=[Segment(text=texts[0], end_offset=Duration(seconds=1))]))
    opened(ledger, "second")
    last = StreamTranscribeResponse(sequence=2)
    last.completed.transcript.text = texts[1]
    last.completed.transcript.segments.add(text=texts[1], start_offset=Duration(nanos=500))
    ledger.take(last)
    whole = last.completed.transcript
    assert whole.text == joined
    assert [segment.index for segment in whole.segments] == [0, 1]
    assert whole.segments[1].start_offset == Duration(seconds=1, nanos=500)
