from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.interceptors.wire_format import has_more_fields
from typeless_grpc.pb.v1 import jobs_pb2, transcription_pb2

BATCH = transcription_pb2.BatchTranscribeRequest


def n_fields(message: Message) -> int:
    """Count fields as the limit does, from the parsed message."""
    total = 0
    for field, value in message.ListFields():
        values: list[Any] = list(value) if field.is_repeated else [value]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            total += 3 * len(value)  # an entry, its key and its value
        elif field.message_type is not None:
            total += sum(1 + n_fields(one) for one in values)
        else:
            total += 1 + len(values) if field.is_packed else len(values)
    return total


ITEMS = st.lists(
    st.builds(
        transcription_pb2.BatchItem,
        name=st.text(max_size=300),
        options=st.builds(
            transcription_pb2.TranscriptionOptions,
            hotwords=st.lists(st.text(max_size=5), max_size=20),
            output_formats=st.lists(st.integers(1, 5), max_size=20),
        ),
    ),
    max_size=20,
)


@given(ITEMS, st.integers(0, 200))
def test_fields_are_counted_in_all_messages(items: list[transcription_pb2.BatchItem], limit: int):
    batch = BATCH(items=items)
    data = batch.SerializeToString()
    assert has_more_fields(data, BATCH.DESCRIPTOR, limit) == (n_fields(batch) > limit)


LABELS = jobs_pb2.SubmitJobRequest(labels={str(n): "" for n in range(101)})


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (BATCH, b"\x0a\x00" * 101),
        (BATCH, b"\x0a\x04\x1a\x02\x42\x00" * 101),
        (BATCH, b"\x98\x06\x01" * 101),
        (BATCH, b"\x0b" * 303),
        (
            jobs_pb2.SubmitJobRequest,
            jobs_pb2.SubmitJobRequest(labels={str(n): "" for n in range(101)}).SerializeToString(),
        ),
    ],
    ids=["empty messages", "nested messages", "unknown fields", "groups", "map entries"],
)
def test_messages_of_many_fields_are_found(kind: type[Message], data: bytes):
    assert has_more_fields(data, kind.DESCRIPTOR, 100)


def test_the_elements_of_a_short_packed_field_count():
    options = transcription_pb2.TranscriptionOptions(output_formats=[1] * 11)
    assert has_more_fields(options.SerializeToString(), options.DESCRIPTOR, 11)


def test_large_values_are_one_field():
    request = transcription_pb2.TranscribeRequest()
    request.audio.content = bytes(10_000_000)
    assert not has_more_fields(request.SerializeToString(), request.DESCRIPTOR, 2)


@given(st.binary(max_size=2000))
def test_malformed_data_is_no_error(data: bytes):
    has_more_fields(data, BATCH.DESCRIPTOR, 10)
