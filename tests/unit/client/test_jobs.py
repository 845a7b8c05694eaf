from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from typeless_grpc.client.recording import CHUNK_BYTES, Recording
from typeless_grpc.client.retry import RetryPolicy
from typeless_grpc.client.uploads import AsyncUploads, Uploads
from typeless_grpc.pb.v1 import uploads_pb2


def ignore(n_sent: int, n_bytes: int) -> None:
    """Progress that nobody shows."""


def test_a_broken_call_does_not_disturb_the_next_one(tmp_path: Path):
    data = bytes(n % 251 for n in range(3 * CHUNK_BYTES + 5))
    path = tmp_path / "recording.raw"
    path.write_bytes(data)
    recording = Recording(path)
    broken = recording.requests("id", 0, ignore)
    header, first = next(broken), next(broken)
    assert (header.header.offset, first.chunk) == (0, data[:CHUNK_BYTES])
    sent = []
    for request in recording.requests("id", CHUNK_BYTES, ignore):
        next(broken, None)
        sent.append(request)
    recording.close()
    assert sent[0].header.offset == CHUNK_BYTES
    assert b"".join(request.chunk for request in sent) == data[CHUNK_BYTES:]
    assert sent[-1].finish.sha256 == hashlib.sha256(data).digest()


class Broken(grpc.RpcError):
    """gRPC's error for requests that raised."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return "Exception iterating requests!"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Service:
    """A server that has nothing of an upload yet."""

    n_calls = 0

    def GetUpload(self, request: uploads_pb2.GetUploadRequest) -> uploads_pb2.GetUploadResponse:
        return uploads_pb2.GetUploadResponse()

    def UploadAudio(self, requests: Iterator[uploads_pb2.UploadAudioRequest]) -> uploads_pb2.UploadAudioResponse:
        self.n_calls += 1
        with contextlib.suppress(ValueError):
            list(requests)
        raise Broken


class AsyncService:
    """The same for asyncio."""

    n_calls = 0

    async def GetUpload(self, request: uploads_pb2.GetUploadRequest) -> uploads_pb2.GetUploadResponse:
        return uploads_pb2.GetUploadResponse()

    def UploadAudio(self) -> AsyncService:
        self.n_calls += 1
        return self

    async def write(self, request: uploads_pb2.UploadAudioRequest) -> None:
        """Take the header."""

    def cancel(self) -> None:
        """Nothing to do."""


async def sent(uploads: Uploads | AsyncUploads, recording: Recording) -> uploads_pb2.Upload:
    if isinstance(uploads, AsyncUploads):
        return await uploads.send(recording, "id", ignore)
    return uploads.send(recording, "id", ignore)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_upload_whose_recording_cannot_be_read_is_not_tried_again(kind: str):
    recording = Recording(b"abc")
    recording.close()
    service: Any = Service() if kind == "sync" else AsyncService()
    uploads = (Uploads if kind == "sync" else AsyncUploads)(service, cast("Any", None), RetryPolicy())
    with pytest.raises(ValueError, match="closed"):
        asyncio.run(sent(uploads, recording))
    assert service.n_calls == 1
