"""UploadService: receives recordings, and stores them in parts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc

from typeless_grpc import account
from typeless_grpc.access import principal
from typeless_grpc.errors import InvalidInput, WrongState
from typeless_grpc.jobs.store import Upload, UploadStore
from typeless_grpc.pb.v1 import uploads_pb2, uploads_pb2_grpc
from typeless_grpc.servicers import convert_jobs
from typeless_grpc.servicers.stored import in_store

T = TypeVar("T")

# The most that an upload holds in memory, and the size of a stored part.
PART_BYTES = 4 * 1024 * 1024
HASH_LIMIT_S = 600.0  # for reading a whole upload
SHA256_BYTES = 32


class UploadServicer(uploads_pb2_grpc.UploadServiceServicer):
    """Recordings too large for one message."""

    NAME = "typeless.v1.UploadService"

    def __init__(self, store: UploadStore, executor: Executor, hashing: Executor) -> None:
        """executor: threads for the store. hashing: threads that read whole uploads, which takes seconds."""
        self._store, self._executor, self._hashing = store, executor, hashing

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        uploads_pb2_grpc.add_UploadServiceServicer_to_server(self, server)

    async def UploadAudio(
        self,
        request_iterator: AsyncIterator[uploads_pb2.UploadAudioRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> uploads_pb2.UploadAudioResponse:
        """Store the data; complete the upload once `finish` has come and its SHA-256 is right."""
        receiving = Receiving(self._store, self._executor, self._hashing)
        try:
            async for request in request_iterator:
                match request.WhichOneof("request"):
                    case "header":
                        await receiving.begin(request.header)
                    case "chunk":
                        await receiving.take(request.chunk)
                    case "finish":
                        receiving.finish(request.finish)
                    case _:
                        raise InvalidInput("request", "nothing is set")
            return uploads_pb2.UploadAudioResponse(upload=convert_jobs.upload(await receiving.end()))
        finally:
            await receiving.keep()  # data that arrived before the call broke

    async def GetUpload(
        self, request: uploads_pb2.GetUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> uploads_pb2.GetUploadResponse:
        """Return an upload, with the size of its data."""
        upload_id = convert_jobs.required_id(request.upload_id, "upload_id")
        owner = convert_jobs.reach(principal.current())
        found = await in_store(self._executor, self._store.get, upload_id, owner)
        return uploads_pb2.GetUploadResponse(upload=convert_jobs.upload(found))


class Receiving:
    """One UploadAudio call: header, data, finish, in this order."""

    def __init__(self, store: UploadStore, executor: Executor, hashing: Executor) -> None:
        self._store, self._executor, self._hashing = store, executor, hashing
        self._upload: Upload | None = None
        # Not joined: they would be in memory twice.
        self._pending: list[bytes] = []
        self._n_pending_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        # Of the whole recording, if all of it comes in this call; else the stored data are read at the end.
        self._sha256: Any | None = None
        self._finish: uploads_pb2.UploadFinish | None = None

    async def begin(self, header: uploads_pb2.UploadHeader) -> None:
        """Create an upload, or resume one."""
        if self._upload is not None:
            raise InvalidInput("header", "comes first, and only once")
        caller = principal.current()
        filename = convert_jobs.text(header.filename, convert_jobs.MAX_FILENAME_CHARACTERS, "header.filename")
        if not header.upload_id:
            if header.offset:
                raise InvalidInput("header.offset", "is 0 for a new upload")
            self._upload = await self._run(lambda: self._store.create(caller.owner, filename))
        else:
            upload_id = convert_jobs.required_id(header.upload_id, "header.upload_id")
            upload = await self._run(lambda: self._store.get(upload_id, convert_jobs.reach(caller)))
            if upload.is_complete:
                raise WrongState("The upload is complete.", reason="UPLOAD_COMPLETE")
            if header.offset != upload.size_bytes:
                message = f"header.offset: {upload.size_bytes} bytes are kept, so that is where to go on from."
                raise WrongState(message, reason="UPLOAD_OFFSET_MISMATCH")
            self._upload = upload
        if not self._upload.size_bytes:
            self._sha256 = hashlib.sha256()

    async def take(self, chunk: bytes) -> None:
        """Take the next data, which may be empty."""
        if self._upload is None:
            raise InvalidInput("header", "comes first")
        if self._finish is not None:
            raise InvalidInput("chunk", "nothing comes after finish")
        if not chunk:
            return
        self._pending.append(chunk)
        self._n_pending_bytes += len(chunk)
        if self._n_pending_bytes >= PART_BYTES:
            await self.keep()

    def finish(self, finish: uploads_pb2.UploadFinish) -> None:
        """Note that all data has been sent."""
        if self._upload is None:
            raise InvalidInput("header", "comes first")
        if self._finish is not None:
            raise InvalidInput("finish", "comes only once")
        if len(finish.sha256) not in (0, SHA256_BYTES):
            raise InvalidInput("finish.sha256", f"{len(finish.sha256)} bytes are no SHA-256, which has {SHA256_BYTES}")
        self._finish = finish

    async def end(self) -> Upload:
        """Store the rest, and complete the upload after `finish`. The caller has half-closed."""
        if self._upload is None:
            raise InvalidInput("header", "comes first")
        await self.keep()
        upload = self._upload
        if self._finish is None:
            return upload
        digest = await self._digest(upload, self._finish.sha256)
        completed = await self._run(lambda: self._store.complete(upload, digest))
        account.current().n_uploads += 1
        return completed

    async def keep(self) -> None:
        """Write the data in memory, also if the call is cancelled meanwhile."""
        if self._writing is None and self._upload is not None and self._pending:
            data, self._pending, self._n_pending_bytes = self._pending, [], 0
            self._writing = asyncio.create_task(self._write(self._upload, data))
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    async def _write(self, upload: Upload, data: Sequence[bytes]) -> None:
        def write() -> Upload:
            if self._sha256 is not None:
                for block in data:
                    self._sha256.update(block)
            return self._store.append(upload, data)

        self._upload = await self._run(write)
        account.current().uploaded_bytes += sum(map(len, data))

    async def _digest(self, upload: Upload, expected: bytes) -> bytes:
        """Return the SHA-256 of all data; b"" if it is not requested and not known. Raises InvalidInput."""
        if self._sha256 is None and not expected:
            return b""
        digest = bytes(self._sha256.digest()) if self._sha256 is not None else await self._digest_again(upload)
        if expected and digest != expected:
            why = "the bytes that arrived have another SHA-256; the upload stays unfinished"
            raise InvalidInput("finish.sha256", why, reason="SHA256_MISMATCH")
        return digest

    async def _digest_again(self, upload: Upload) -> bytes:
        return await in_store(self._hashing, self._store.digest, upload, limit_s=HASH_LIMIT_S)

    async def _run(self, call: Callable[[], T]) -> T:
        return await in_store(self._executor, call)
