"""Uploads that survive their connection: each call continues at the offset that the server reports."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import BinaryIO

import grpc
import grpc.aio

from typeless_grpc.client.attempts import repeat, repeat_async, wait_s
from typeless_grpc.client.recording import MAX_PIPED_BYTES, Progress, Recording, is_piped
from typeless_grpc.client.requests import AudioLike
from typeless_grpc.client.retry import RetryPolicy, RetryState
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc, uploads_pb2, uploads_pb2_grpc


class UploadState:
    """The state of one upload between its calls; no I/O."""

    def __init__(self, recording: Recording, policy: RetryPolicy) -> None:
        self.retry = RetryState(policy)
        self._recording = recording
        self._max_offset = -1

    def offset(self, upload: uploads_pb2.Upload) -> int:
        """Return where the next call begins, as the server reports it."""
        if upload.size_bytes > self._max_offset:
            self._max_offset = upload.size_bytes
            self.retry.progressed()
        return upload.size_bytes

    def wait_s(self, error: grpc.RpcError) -> float:
        """As `wait_s`. Raises the exception of a recording that cannot be read."""
        if self._recording.failure is not None:
            raise self._recording.failure
        return wait_s(self.retry, error)


def opening(filename: str) -> uploads_pb2.UploadAudioRequest:
    """Return a request that opens an upload without audio: the id is known before anything can break."""
    return uploads_pb2.UploadAudioRequest(header=uploads_pb2.UploadHeader(filename=filename))


class Uploads:
    """Uploads in threads."""

    def __init__(
        self,
        stub: uploads_pb2_grpc.UploadServiceStub,
        server: server_pb2_grpc.ServerServiceStub,
        policy: RetryPolicy,
    ) -> None:
        self._stub, self._server, self._policy = stub, server, policy

    def upload(self, audio: AudioLike | BinaryIO, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        """See `Jobs.upload`."""
        recording = Recording(audio, self._max_bytes() if is_piped(audio) else MAX_PIPED_BYTES)
        with contextlib.closing(recording):
            if not upload_id:
                request = opening(recording.filename)
                opened = repeat(lambda: self._stub.UploadAudio(iter([request])), self._policy)
                upload_id = opened.upload.upload_id
            return self.send(recording, upload_id, progress)

    def send(self, recording: Recording, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        """Send what the server lacks of a recording. Raises CallFailed, and what reading the recording raises."""
        state = UploadState(recording, self._policy)
        request = uploads_pb2.GetUploadRequest(upload_id=upload_id)
        while True:
            upload = repeat(lambda: self._stub.GetUpload(request), self._policy).upload
            if upload.complete:
                return upload
            try:
                requests = recording.requests(upload_id, state.offset(upload), progress)
                return self._stub.UploadAudio(requests).upload
            except grpc.RpcError as error:
                time.sleep(state.wait_s(error))

    def _max_bytes(self) -> int:
        info = repeat(lambda: self._server.GetServerInfo(server_pb2.GetServerInfoRequest()), self._policy)
        return info.max_upload_bytes or MAX_PIPED_BYTES


class AsyncUploads:
    """Uploads on an event loop. Threads read the files."""

    def __init__(
        self,
        stub: uploads_pb2_grpc.UploadServiceAsyncStub,
        server: server_pb2_grpc.ServerServiceAsyncStub,
        policy: RetryPolicy,
    ) -> None:
        self._stub, self._server, self._policy = stub, server, policy

    async def upload(self, audio: AudioLike | BinaryIO, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        """See `Jobs.upload`."""
        is_unsized = await asyncio.to_thread(is_piped, audio)
        max_bytes = await self._max_bytes() if is_unsized else MAX_PIPED_BYTES
        recording = await asyncio.to_thread(Recording, audio, max_bytes)
        try:
            if not upload_id:
                request = opening(recording.filename)
                opened = await repeat_async(lambda: self._stub.UploadAudio(iter([request])), self._policy)
                upload_id = opened.upload.upload_id
            return await self.send(recording, upload_id, progress)
        finally:
            await asyncio.to_thread(recording.close)

    async def send(self, recording: Recording, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        """As `Uploads.send`."""
        state = UploadState(recording, self._policy)
        request = uploads_pb2.GetUploadRequest(upload_id=upload_id)
        while True:
            upload = (await repeat_async(lambda: self._stub.GetUpload(request), self._policy)).upload
            if upload.complete:
                return upload
            try:
                return await self._one_call(recording, upload_id, state.offset(upload), progress)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(state.wait_s(error))

    async def _one_call(
        self, recording: Recording, upload_id: str, offset: int, progress: Progress
    ) -> uploads_pb2.Upload:
        call = self._stub.UploadAudio()
        requests = recording.requests(upload_id, offset, lambda n_sent, n_bytes: None)
        try:
            # InvalidStateError: the call ended early, and its status explains why.
            with contextlib.suppress(asyncio.InvalidStateError):
                while (request := await asyncio.to_thread(next, requests, None)) is not None:
                    await call.write(request)
                    if request.chunk:
                        offset += len(request.chunk)
                        progress(offset, recording.n_bytes)
                await call.done_writing()
            return (await call).upload
        finally:
            call.cancel()

    async def _max_bytes(self) -> int:
        info = await repeat_async(lambda: self._server.GetServerInfo(server_pb2.GetServerInfoRequest()), self._policy)
        return info.max_upload_bytes or MAX_PIPED_BYTES
