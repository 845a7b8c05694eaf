"""JobsService: converts a message, calls the store, converts the result."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from typeless_grpc import account
from typeless_grpc.access import principal
from typeless_grpc.audio.source import AudioSources
from typeless_grpc.errors import InvalidInput, NotFound, TypelessError
from typeless_grpc.jobs.job import Job, NewJob, State
from typeless_grpc.jobs.store import UPLOAD_SCHEME, JobStore, UploadStore
from typeless_grpc.pb.v1 import jobs_pb2, jobs_pb2_grpc
from typeless_grpc.servicers import convert, convert_jobs
from typeless_grpc.servicers.stored import in_store
from typeless_grpc.servicers.watch import JobWatch
from typeless_grpc.speech.transcript import Transcript

T = TypeVar("T")

# Fetched when the job is submitted, because the address may no longer have the recording when the job runs.
FETCHED_AT_ONCE = "https"


class JobsServicer(jobs_pb2_grpc.JobsServiceServicer):
    """Transcription in the background."""

    NAME = "typeless.v1.JobsService"

    def __init__(
        self,
        store: JobStore,
        uploads: UploadStore,
        sources: AudioSources,
        executor: Executor,
        fetching: Executor,
        *,
        has_model: Callable[[str], bool],
        code_of: Callable[[TypelessError], int],
    ) -> None:
        """executor: threads for the store. fetching: threads for audio on other machines.

        has_model: whether a job may name a model; blocks. code_of: the google.rpc.Code of an error.
        """
        self._store, self._uploads, self._sources = store, uploads, sources
        self._executor, self._fetching = executor, fetching
        self._has_model, self._code_of = has_model, code_of
        self._watch = JobWatch(store, executor)

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        jobs_pb2_grpc.add_JobsServiceServicer_to_server(self, server)

    async def SubmitJob(
        self, request: jobs_pb2.SubmitJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.SubmitJobResponse:
        """Store a job; its audio is on disk before the answer is sent."""
        new = convert_jobs.new_job(request, principal.current())
        return jobs_pb2.SubmitJobResponse(job=await self.submit(request, new))

    async def submit(self, request: jobs_pb2.SubmitJobRequest, new: NewJob) -> jobs_pb2.Job:
        """Store a job. new: the request, converted. Raises what SubmitJob raises."""
        is_remote = bool(new.uri) and self._sources.is_remote(new.uri)
        if is_remote:  # which has a limit of its own
            loop = asyncio.get_running_loop()
            job, is_new = await loop.run_in_executor(self._fetching, self._submit, request, new)
        else:
            job, is_new = await in_store(self._executor, self._submit, request, new)
        account.current().n_jobs += is_new
        return await self._converted(job)

    async def GetJob(
        self, request: jobs_pb2.GetJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.GetJobResponse:
        """Return a job."""
        return jobs_pb2.GetJobResponse(job=await self._converted(await self._get(request.job_id)))

    async def ListJobs(
        self, request: jobs_pb2.ListJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.ListJobsResponse:
        """Return a page of jobs, without their transcripts."""
        query = convert_jobs.query(request, principal.current())
        if principal.current().is_shared:  # with the ids of other callers' jobs it could read and delete them
            return jobs_pb2.ListJobsResponse()
        page = await self._run(lambda: self._store.page(query))
        jobs = [self._message(job) for job in page.jobs]
        return jobs_pb2.ListJobsResponse(jobs=jobs, next_page_token=page.next_page_token)

    async def CancelJob(
        self, request: jobs_pb2.CancelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.CancelJobResponse:
        """Cancel a job; its worker stops within two seconds."""
        job_id, owner = convert_jobs.required_id(request.job_id, "job_id"), convert_jobs.reach(principal.current())
        job = await self._run(lambda: self._store.cancel(job_id, owner))
        return jobs_pb2.CancelJobResponse(job=await self._converted(job))

    async def DeleteJob(
        self, request: jobs_pb2.DeleteJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.DeleteJobResponse:
        """Delete a job and all its data."""
        job_id, owner = convert_jobs.required_id(request.job_id, "job_id"), convert_jobs.reach(principal.current())
        await self._run(lambda: self._store.delete(job_id, owner))
        return jobs_pb2.DeleteJobResponse()

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        """Send the job now, and at each change until it has ended."""
        if request.next_segment_index < 0:
            raise InvalidInput("next_segment_index", f"{request.next_segment_index} is negative")
        next_index = request.next_segment_index
        while True:
            job = await self._get(request.job_id)
            new = await self._run(functools.partial(self._store.segments, job, next_index))
            segments = [convert.segment(one, next_index + i) for i, one in enumerate(new)]
            yield jobs_pb2.WatchJobResponse(job=await self._converted(job), new_segments=segments)
            if job.state.is_final:
                return
            next_index += len(segments)
            await self._watch.changed(job.job_id, job.version)

    async def GetQueueStats(
        self, request: jobs_pb2.GetQueueStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> jobs_pb2.GetQueueStatsResponse:
        """Return the state of the queue, with the jobs that the caller may see."""
        owner = convert_jobs.reach(principal.current())
        return convert_jobs.queue_stats(await self._run(lambda: self._store.stats(owner)))

    async def close(self) -> None:
        """Stop the background tasks."""
        await self._watch.close()

    def _submit(self, request: jobs_pb2.SubmitJobRequest, new: NewJob) -> tuple[Job, bool]:
        """Return the job, and whether it did not exist before."""
        new = replace(new, fingerprint=convert_jobs.fingerprint(request, self._uploaded_sha256(new)))
        # Before a fetch: the address of a stored job may no longer have the recording.
        if (made := self._store.made_by(new)) is not None:
            return made, False
        return self._submit_new(request, new), True

    def _submit_new(self, request: jobs_pb2.SubmitJobRequest, new: NewJob) -> Job:
        """Store a job with its audio: sent with the call, uploaded, fetched now, or left where its worker opens it."""
        if new.options.model and not self._has_model(new.options.model):
            raise NotFound(f"This server has no model called '{new.options.model[:128]}'.", reason="MODEL_NOT_FOUND")
        if not new.uri:
            return self._store.submit(new, request.audio.content)
        if new.uri.startswith(UPLOAD_SCHEME):
            return self._store.submit(new, None)
        if new.uri.partition(":")[0].lower() != FETCHED_AT_ONCE:
            with self._sources.open(new.uri, new.uploads_of, "audio.uri"):
                return self._store.submit(new, None)
        with self._store.reserve(new.owner) as reserved:
            reserved.grow_to(1)
            with self._sources.open(new.uri, new.uploads_of, "audio.uri", reserved.grow_to) as file:
                return self._store.submit(replace(new, uri=""), file, reserved)

    def _uploaded_sha256(self, new: NewJob) -> bytes:
        if not new.request_id or not new.uri.startswith(UPLOAD_SCHEME):
            return b""
        return self._uploads.sha256(new.uri.removeprefix(UPLOAD_SCHEME), new.uploads_of)

    async def _get(self, job_id: str) -> Job:
        job_id, owner = convert_jobs.required_id(job_id, "job_id"), convert_jobs.reach(principal.current())
        return await self._run(lambda: self._store.get(job_id, owner))

    async def _converted(self, job: Job) -> jobs_pb2.Job:
        """Convert a job, in a thread if it has a transcript: that of a day takes a second."""
        return await self._run(lambda: self._completed(job)) if job.state is State.COMPLETED else self._message(job)

    def _completed(self, job: Job) -> jobs_pb2.Job:
        return self._message(job, self._store.transcript(job))

    def _message(self, job: Job, transcript: Transcript | None = None) -> jobs_pb2.Job:
        return convert_jobs.job(job, transcript, self._code_of(job.failure.error) if job.failure else 0)

    async def _run(self, call: Callable[[], T]) -> T:
        return await in_store(self._executor, call)
