"""Jobs and uploads for a Python caller: `Client.jobs` and `AsyncClient.jobs`.

    >>> with Client("localhost:50051") as client:  # doctest: +SKIP
    ...     job = client.jobs.submit("lecture.mp3")
    ...     print(client.jobs.wait(job.job_id).transcript.text)

What a broken connection interrupts goes on by itself: an upload where the server says that it stopped, a watch after
the last segment that came, and a submission under the id that keeps it from being made twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import grpc
import grpc.aio

from typeless_grpc.client import BREAKS, AudioLike, CallFailed, Options, RawFormat, name_of
from typeless_grpc.pb.v1 import (
    audio_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    uploads_pb2,
    uploads_pb2_grpc,
)

T = TypeVar("T")

# Larger recordings are uploaded in pieces, so that a broken connection costs little.
INLINE_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024

# Of what can be read only once, where the server does not say what it takes: its default.
MAX_PIPED_BYTES = 2 * 1024**3

# Bytes sent so far, and in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Retries:
    """How long a call is tried again that finds no server, or loses it, or finds the caller's quota spent.

    All calls of jobs and uploads are safe to make twice.

    max_attempts: in a row without any progress. max_quota_s: the longest wait for a quota that the server may ask for.
    """

    max_attempts: int = 10
    first_delay_s: float = 0.2
    max_delay_s: float = 5.0
    max_quota_s: float = 60.0

    def delay_s(self, n_failures: int, failed: CallFailed) -> float | None:
        """How long to wait after the nth failure in a row; None where trying again would not help."""
        if n_failures >= self.max_attempts:
            return None
        asked_s = failed.retry_after_s or 0.0
        if failed.code is grpc.StatusCode.UNAVAILABLE or (failed.code in BREAKS and not failed.reason):
            return max(min(self.first_delay_s * 2.0 ** (n_failures - 1), self.max_delay_s), asked_s)
        # Many recordings, each with an upload, are more calls than most quotas hold at once.
        is_quota = failed.reason == "RATE_LIMITED" and failed.retry_after_s is not None
        return asked_s if is_quota and asked_s <= self.max_quota_s else None


def submission(
    audio: AudioLike,
    options: Options,
    raw_format: RawFormat | None,
    *,
    priority: str,
    labels: Mapping[str, str],
    request_id: str,
) -> jobs_pb2.SubmitJobRequest:
    """The request of `submit`; audio: a URI, or what is sent along. Raises ValueError for an unknown priority."""
    source = audio_pb2.AudioSource(format=raw_format.message() if raw_format else None)
    if isinstance(audio, bytes):
        source.content = audio
    elif is_uri(audio):
        source.uri = str(audio)
    else:
        source.content = Path(audio).read_bytes()
    return jobs_pb2.SubmitJobRequest(
        audio=source,
        options=options.message(),
        priority=jobs_pb2.JobPriority.Value(f"JOB_PRIORITY_{priority.upper()}"),
        labels=labels,
        request_id=request_id or str(uuid.uuid4()),
    )


def is_uri(audio: AudioLike | BinaryIO) -> bool:
    """Whether it names audio that the server fetches: `upload://ID`, `https://…`."""
    return isinstance(audio, str) and "://" in audio


def is_large(audio: AudioLike | BinaryIO) -> bool:
    """Whether it is to be uploaded first: also what has no size. Raises OSError for a file that cannot be read."""
    if isinstance(audio, bytes):
        return len(audio) > INLINE_BYTES
    if not isinstance(audio, str | os.PathLike) or is_piped(audio):
        return True
    return not is_uri(audio) and os.path.getsize(audio) > INLINE_BYTES


def is_piped(audio: AudioLike | BinaryIO) -> bool:
    """Whether it can be read only once: an open file, a pipe, a device. Raises OSError for one that is not there."""
    if isinstance(audio, bytes) or is_uri(audio):
        return False
    if isinstance(audio, str | os.PathLike):
        mode = os.stat(audio).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return True


def query(
    *, page_size: int, page_token: str, states: Sequence[str], labels: Mapping[str, str]
) -> jobs_pb2.ListJobsRequest:
    """The request of `list`. Raises ValueError for an unknown state."""
    return jobs_pb2.ListJobsRequest(
        page_size=page_size,
        page_token=page_token,
        states=[jobs_pb2.JobState.Value(f"JOB_STATE_{state.upper()}") for state in states],
        labels=labels,
    )


class Recording:
    """What is uploaded, with its size and SHA-256; read piece by piece.

    A call that broke may still ask for its next request in a thread of gRPC's while the call after it does.
    """

    def __init__(self, audio: AudioLike | BinaryIO, max_bytes: int = MAX_PIPED_BYTES) -> None:
        """max_bytes: of what can be read only once, and is copied to a file of its own. Raises OSError, CallFailed."""
        self._file: BinaryIO
        self.filename = ""
        if isinstance(audio, bytes):
            self._file = io.BytesIO(audio)
        elif isinstance(audio, str | os.PathLike) and not is_piped(audio):
            self._file = Path(audio).open("rb")  # noqa: SIM115
            self.filename = name_of(Path(audio).name)
        else:
            self._file = _copied(audio, max_bytes)
        self.n_bytes = self._file.seek(0, io.SEEK_END)
        self._reading = threading.Lock()
        self._sha256 = b""
        # To gRPC a call whose requests cannot be made is one whose connection broke.
        self.is_broken = False

    def requests(
        self, upload_id: str, offset: int, sent: Callable[[int], None]
    ) -> Iterator[uploads_pb2.UploadAudioRequest]:
        """Everything from an offset on, to its finish; sent: called with how far it has come."""
        request = uploads_pb2.UploadAudioRequest
        yield request(header=uploads_pb2.UploadHeader(upload_id=upload_id, offset=offset))
        try:
            while chunk := self._chunk(offset):
                yield request(chunk=chunk)
                offset += len(chunk)
                sent(offset)
            yield request(finish=uploads_pb2.UploadFinish(sha256=self.sha256()))
        except Exception:
            self.is_broken = True
            raise

    def sha256(self) -> bytes:
        """Of all of it."""
        if not self._sha256:
            digest, n_read = hashlib.sha256(), 0
            while chunk := self._chunk(n_read):
                digest.update(chunk)
                n_read += len(chunk)
            self._sha256 = digest.digest()
        return self._sha256

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _chunk(self, offset: int) -> bytes:
        with self._reading:
            self._file.seek(offset)
            return self._file.read(CHUNK_BYTES)


def _copied(audio: str | os.PathLike[str] | BinaryIO, max_bytes: int) -> BinaryIO:
    """What comes out of a pipe, in a file without a name: it is gone with its reader, however that ends."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Path(audio).open("rb")) if isinstance(audio, str | os.PathLike) else audio
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        stack.push(lambda kind, *_: copy.close() if kind else None)
        n_bytes = 0
        while chunk := _read(source):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                why = f"the recording has more than {max_bytes} bytes"
                raise CallFailed(grpc.StatusCode.INVALID_ARGUMENT, why, reason="UPLOAD_TOO_LARGE")
            try:
                copy.write(chunk)
                copy.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
        return cast("BinaryIO", copy)


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:  # does not say of which file
        raise OSError(error.errno, error.strerror, getattr(source, "name", "")) from error


def opening(filename: str) -> uploads_pb2.UploadAudioRequest:
    """Opens an upload and sends nothing, so that its id is known before anything can break."""
    return uploads_pb2.UploadAudioRequest(header=uploads_pb2.UploadHeader(filename=filename))


class Jobs:
    """The calls of jobs and uploads, for threads. All raise CallFailed."""

    def __init__(self, channel: grpc.Channel, retries: Retries | None = None) -> None:
        self._jobs = jobs_pb2_grpc.JobsServiceStub(channel)
        self._uploads = uploads_pb2_grpc.UploadServiceStub(channel)
        self._server = server_pb2_grpc.ServerServiceStub(channel)
        self._retries = retries or Retries()

    def submit(
        self,
        audio: AudioLike | BinaryIO,
        options: Options | None = None,
        *,
        raw_format: RawFormat | None = None,
        priority: str = "normal",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> jobs_pb2.Job:
        """File a job: a path, the bytes of a file, an open file or pipe, or a URI. Large recordings are uploaded first.

        priority: "low", "normal" or "high". request_id: made up unless given. progress: hears of the upload.

        >>> job = client.jobs.submit("tests/audio/en_short.flac", labels={"team": "a"})
        >>> client.jobs.wait(job.job_id).transcript.text
        'please close the window'
        """
        if is_large(audio):
            audio = self.upload(audio, progress=progress).uri
        audio = cast("AudioLike", audio)
        request = submission(
            audio, options or Options(), raw_format, priority=priority, labels=labels or {}, request_id=request_id
        )
        return self._patiently(lambda: self._jobs.SubmitJob(request)).job

    def get(self, job_id: str) -> jobs_pb2.Job:
        """The job as it stands, with its transcript once COMPLETED.

        >>> client.jobs.get(job.job_id).progress
        1.0
        """
        return self._patiently(lambda: self._jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job

    def list(
        self, *, states: Sequence[str] = (), labels: Mapping[str, str] | None = None, page_size: int = 100
    ) -> Iterator[jobs_pb2.Job]:
        """All jobs, newest first, fetched page by page. states: "pending", "completed", …

        >>> job.job_id in [one.job_id for one in client.jobs.list(states=["completed"])]
        True
        """
        token = ""
        while True:
            request = query(page_size=page_size, page_token=token, states=states, labels=labels or {})
            page = self._patiently(functools.partial(self._jobs.ListJobs, request))
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def cancel(self, job_id: str) -> jobs_pb2.Job:
        """End a job that has not ended.

        >>> jobs_pb2.JobState.Name(client.jobs.cancel(job.job_id).state)  # it had ended
        'JOB_STATE_COMPLETED'
        """
        return self._patiently(lambda: self._jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))).job

    def delete(self, job_id: str) -> None:
        """Delete a job that does not run, with all it holds.

        >>> client.jobs.delete(client.jobs.wait(client.jobs.submit("tests/audio/en_short.flac").job_id).job_id)
        """
        self._patiently(lambda: self._jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job_id)))

    def stats(self) -> jobs_pb2.GetQueueStatsResponse:
        """How full the queue is.

        >>> client.jobs.stats().max_concurrent_jobs
        3
        """
        return self._patiently(lambda: self._jobs.GetQueueStats(jobs_pb2.GetQueueStatsRequest()))

    def watch(self, job_id: str, *, next_segment_index: int = 0) -> Iterator[jobs_pb2.WatchJobResponse]:
        """The job now and at each change until its end; goes on by itself after a broken connection.

        >>> [segment.text for change in client.jobs.watch(job.job_id) for segment in change.new_segments]
        ['please close the window']
        """
        n_failures = 0
        while True:
            request = jobs_pb2.WatchJobRequest(job_id=job_id, next_segment_index=next_segment_index)
            try:
                for answer in self._jobs.WatchJob(request):
                    n_failures = 0
                    next_segment_index += len(answer.new_segments)
                    yield answer
                return
            except grpc.RpcError as error:
                n_failures += 1
                self._wait_or_raise(n_failures, CallFailed.of(error), error)

    def wait(self, job_id: str) -> jobs_pb2.Job:
        """The job once it has ended, however it did.

        >>> client.jobs.wait(job.job_id).progress
        1.0
        """
        *_, last = self.watch(job_id)
        return last.job

    def upload(
        self, audio: AudioLike | BinaryIO, *, upload_id: str = "", progress: Progress | None = None
    ) -> uploads_pb2.Upload:
        """Upload a recording, or the rest of one whose upload_id is known; goes on after a broken connection.

        What can be read only once, an open file or a pipe, is read to its end first: no more than the server takes.

        >>> upload = client.jobs.upload("tests/audio/en_short.flac")
        >>> client.jobs.wait(client.jobs.submit(upload.uri).job_id).transcript.text
        'please close the window'
        """
        recording = Recording(audio, self._max_bytes() if is_piped(audio) else MAX_PIPED_BYTES)
        try:
            if not upload_id:
                opened = self._patiently(lambda: self._uploads.UploadAudio(iter([opening(recording.filename)])))
                upload_id = opened.upload.upload_id
            return self._upload(recording, upload_id, progress or (lambda sent, total: None))
        finally:
            recording.close()

    def _max_bytes(self) -> int:
        info = self._patiently(lambda: self._server.GetServerInfo(server_pb2.GetServerInfoRequest()))
        return info.max_upload_bytes or MAX_PIPED_BYTES

    def _upload(self, recording: Recording, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        n_failures, furthest = 0, -1
        while True:
            at = self._patiently(lambda: self._uploads.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload_id)))
            offset = at.upload.size_bytes
            if at.upload.complete:
                return at.upload
            n_failures, furthest = (0 if offset > furthest else n_failures), max(offset, furthest)
            requests = recording.requests(upload_id, offset, lambda sent: progress(sent, recording.n_bytes))
            try:
                return self._uploads.UploadAudio(requests).upload
            except grpc.RpcError as error:
                failed, n_failures = CallFailed.of(error), n_failures + 1
                if recording.is_broken:
                    raise failed from error
                if failed.reason == "UPLOAD_OFFSET_MISMATCH" and n_failures < self._retries.max_attempts:
                    continue  # what a broken call still had in hand was kept meanwhile
                self._wait_or_raise(n_failures, failed, error)

    def _patiently(self, call: Callable[[], T]) -> T:
        n_failures = 0
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                n_failures += 1
                self._wait_or_raise(n_failures, CallFailed.of(error), error)

    def _wait_or_raise(self, n_failures: int, failed: CallFailed, cause: BaseException) -> None:
        delay_s = self._retries.delay_s(n_failures, failed)
        if delay_s is None:
            raise failed from cause
        time.sleep(delay_s)


class AsyncJobs:
    """The same for asyncio."""

    def __init__(self, channel: grpc.aio.Channel, retries: Retries | None = None) -> None:
        self._jobs: Any = jobs_pb2_grpc.JobsServiceStub(channel)
        self._uploads: Any = uploads_pb2_grpc.UploadServiceStub(channel)
        self._server: Any = server_pb2_grpc.ServerServiceStub(channel)
        self._retries = retries or Retries()

    async def submit(
        self,
        audio: AudioLike | BinaryIO,
        options: Options | None = None,
        *,
        raw_format: RawFormat | None = None,
        priority: str = "normal",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> jobs_pb2.Job:
        """As `Jobs.submit`."""
        if is_large(audio):
            audio = (await self.upload(audio, progress=progress)).uri
        audio = cast("AudioLike", audio)
        request = submission(
            audio, options or Options(), raw_format, priority=priority, labels=labels or {}, request_id=request_id
        )
        return _job(await self._patiently(lambda: self._jobs.SubmitJob(request)))

    async def get(self, job_id: str) -> jobs_pb2.Job:
        """As `Jobs.get`."""
        return _job(await self._patiently(lambda: self._jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))))

    async def list(
        self, *, states: Sequence[str] = (), labels: Mapping[str, str] | None = None, page_size: int = 100
    ) -> AsyncIterator[jobs_pb2.Job]:
        """As `Jobs.list`."""
        token = ""
        while True:
            request = query(page_size=page_size, page_token=token, states=states, labels=labels or {})
            page = await self._patiently(functools.partial(self._jobs.ListJobs, request))
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    async def cancel(self, job_id: str) -> jobs_pb2.Job:
        """As `Jobs.cancel`."""
        return _job(await self._patiently(lambda: self._jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))))

    async def delete(self, job_id: str) -> None:
        """As `Jobs.delete`."""
        await self._patiently(lambda: self._jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job_id)))

    async def stats(self) -> jobs_pb2.GetQueueStatsResponse:
        """As `Jobs.stats`."""
        answer: jobs_pb2.GetQueueStatsResponse = await self._patiently(
            lambda: self._jobs.GetQueueStats(jobs_pb2.GetQueueStatsRequest())
        )
        return answer

    async def watch(self, job_id: str, *, next_segment_index: int = 0) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        """As `Jobs.watch`."""
        n_failures = 0
        while True:
            request = jobs_pb2.WatchJobRequest(job_id=job_id, next_segment_index=next_segment_index)
            try:
                async for answer in self._jobs.WatchJob(request):
                    n_failures = 0
                    next_segment_index += len(answer.new_segments)
                    yield answer
                return
            except grpc.aio.AioRpcError as error:
                n_failures += 1
                await self._wait_or_raise(n_failures, CallFailed.of(error), error)

    async def wait(self, job_id: str) -> jobs_pb2.Job:
        """As `Jobs.wait`."""
        last = jobs_pb2.Job()
        async for answer in self.watch(job_id):
            last = answer.job
        return last

    async def upload(
        self, audio: AudioLike | BinaryIO, *, upload_id: str = "", progress: Progress | None = None
    ) -> uploads_pb2.Upload:
        """As `Jobs.upload`."""
        max_bytes = await self._max_bytes() if is_piped(audio) else MAX_PIPED_BYTES
        recording = await asyncio.to_thread(Recording, audio, max_bytes)
        try:
            if not upload_id:
                opened = await self._patiently(lambda: self._uploads.UploadAudio(iter([opening(recording.filename)])))
                upload_id = opened.upload.upload_id
            return await self._upload(recording, upload_id, progress or (lambda sent, total: None))
        finally:
            recording.close()

    async def _max_bytes(self) -> int:
        info = await self._patiently(lambda: self._server.GetServerInfo(server_pb2.GetServerInfoRequest()))
        return info.max_upload_bytes or MAX_PIPED_BYTES

    async def _upload(self, recording: Recording, upload_id: str, progress: Progress) -> uploads_pb2.Upload:
        n_failures, furthest = 0, -1
        while True:
            at = await self._patiently(
                lambda: self._uploads.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload_id))
            )
            found: uploads_pb2.Upload = at.upload
            if found.complete:
                return found
            offset = found.size_bytes
            n_failures, furthest = (0 if offset > furthest else n_failures), max(offset, furthest)
            requests = recording.requests(upload_id, offset, lambda sent: progress(sent, recording.n_bytes))
            try:
                done: uploads_pb2.Upload = (await self._uploads.UploadAudio(requests)).upload
                return done
            except grpc.aio.AioRpcError as error:
                failed, n_failures = CallFailed.of(error), n_failures + 1
                if recording.is_broken:
                    raise failed from error
                if failed.reason == "UPLOAD_OFFSET_MISMATCH" and n_failures < self._retries.max_attempts:
                    continue
                await self._wait_or_raise(n_failures, failed, error)

    async def _patiently(self, call: Callable[[], Any]) -> Any:
        n_failures = 0
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                n_failures += 1
                await self._wait_or_raise(n_failures, CallFailed.of(error), error)

    async def _wait_or_raise(self, n_failures: int, failed: CallFailed, cause: BaseException) -> None:
        delay_s = self._retries.delay_s(n_failures, failed)
        if delay_s is None:
            raise failed from cause
        await asyncio.sleep(delay_s)


def _job(answer: Any) -> jobs_pb2.Job:
    job: jobs_pb2.Job = answer.job
    return job
