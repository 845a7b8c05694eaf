from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from typeless_grpc.client import CallFailed
from typeless_grpc.client_jobs import CHUNK_BYTES, Jobs, Recording, Retries
from typeless_grpc.pb.v1 import uploads_pb2

GONE = CallFailed(grpc.StatusCode.UNAVAILABLE, "connection refused")
BUSY = CallFailed(grpc.StatusCode.UNAVAILABLE, "come later", reason="STORE_UNAVAILABLE", retry_after_s=30.0)
SPENT = CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "slower", reason="RATE_LIMITED", retry_after_s=12.5)
SPENT_FOR_LONG = CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "slower", reason="RATE_LIMITED", retry_after_s=3600.0)
TOO_MANY = CallFailed(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", reason="TOO_MANY_PENDING_JOBS", retry_after_s=60.0
)
WRONG = CallFailed(grpc.StatusCode.INVALID_ARGUMENT, "it is wrong", reason="INVALID_ARGUMENT")

CUT = CallFailed(grpc.StatusCode.CANCELLED, "the server ends")
RESET = CallFailed(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")
HALF_AN_ANSWER = CallFailed(grpc.StatusCode.UNKNOWN, "Stream removed")
UNFORESEEN = CallFailed(grpc.StatusCode.INTERNAL, "something went wrong", reason="INTERNAL")


@pytest.mark.parametrize(
    ("failed", "n_failures", "delay_s"),
    [
        (CUT, 1, 0.2),
        (RESET, 2, 0.4),
        (HALF_AN_ANSWER, 9, 5.0),
        (CUT, 10, None),
        (UNFORESEEN, 1, None),
        (GONE, 1, 0.2),
        (GONE, 2, 0.4),
        (GONE, 9, 5.0),
        (GONE, 10, None),
        (BUSY, 1, 30.0),
        (SPENT, 1, 12.5),
        (SPENT, 9, 12.5),
        (SPENT, 10, None),
        (SPENT_FOR_LONG, 1, None),
        (TOO_MANY, 1, None),
        (WRONG, 1, None),
    ],
)
def test_a_call_is_tried_again_where_that_may_help(failed: CallFailed, n_failures: int, delay_s: float | None):
    assert Retries().delay_s(n_failures, failed) == delay_s


def test_a_call_that_broke_moves_nothing_of_the_one_after_it(tmp_path: Path):
    data = bytes(n % 251 for n in range(3 * CHUNK_BYTES + 5))
    path = tmp_path / "recording.raw"
    path.write_bytes(data)
    recording = Recording(path)
    broken = recording.requests("id", 0, lambda sent: None)
    header, first = next(broken), next(broken)
    assert (header.header.offset, first.chunk) == (0, data[:CHUNK_BYTES])
    sent = []
    for request in recording.requests("id", CHUNK_BYTES, lambda sent: None):
        next(broken, None)
        sent.append(request)
    recording.close()
    assert sent[0].header.offset == CHUNK_BYTES
    assert b"".join(request.chunk for request in sent) == data[CHUNK_BYTES:]
    assert sent[-1].finish.sha256 == hashlib.sha256(data).digest()


class Uploads:
    """What gRPC does with requests that cannot be made: the call ends as one that lost its connection may."""

    n_calls = 0

    def GetUpload(self, request: uploads_pb2.GetUploadRequest) -> uploads_pb2.GetUploadResponse:
        return uploads_pb2.GetUploadResponse()

    def UploadAudio(self, requests: Iterator[uploads_pb2.UploadAudioRequest]) -> uploads_pb2.UploadAudioResponse:
        self.n_calls += 1
        with pytest.raises(ValueError, match="closed"):
            list(requests)
        raise NotMade


class NotMade(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return "Exception iterating requests!"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_an_upload_whose_recording_cannot_be_read_is_not_tried_again():
    recording = Recording(b"abc")
    recording.close()
    with grpc.insecure_channel("localhost:1") as channel:
        jobs = Jobs(channel)
        uploads = jobs._uploads = Uploads()  # type: ignore[assignment]
        with pytest.raises(CallFailed) as caught:
            jobs._upload(recording, "id", lambda sent, total: None)
    assert caught.value.code is grpc.StatusCode.UNKNOWN
    assert uploads.n_calls == 1
