"""google.longrunning.Operations: jobs that were submitted as LongRunningRecognize or BatchRecognize."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import grpc
from google.rpc import error_details_pb2

from typeless_grpc.access import principal
from typeless_grpc.errors import InvalidInput, NotImplementedHere
from typeless_grpc.pb.v1 import audio_pb2, jobs_pb2, transcription_pb2
from typeless_grpc.servicers import convert_jobs
from typeless_grpc.servicers.compat.pool import copy, register
from typeless_grpc.servicers.google.messages import POOL, V1, VERSIONS, Version, message_class
from typeless_grpc.servicers.google.options import Wanted
from typeless_grpc.servicers.google.results import Results, set_billed
from typeless_grpc.servicers.jobs import JobsServicer

_PACKAGE = "google.longrunning"
_MAX_WAIT_S = 3600.0
# The labels of a job that is an operation.
_VERSION, _WORDS, _URI, _NAME, _LANGUAGES = (
    f"google-{name}" for name in ("version", "words", "uri", "operation", "languages")
)
_TIMES, _CONFIDENCES = "times", "confidences"
_MAX_LABEL = 1024
_ENDED = (jobs_pb2.JOB_STATE_COMPLETED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
_CANCELLED = 1  # of google.rpc.Code


def _message(kind: str, **fields: Any) -> Any:
    return message_class(f"{_PACKAGE}.{kind}")(**fields)


class OperationsServicer:
    """Serves operations, which are jobs: they are durable, and are deleted with their jobs."""

    NAME = f"{_PACKAGE}.Operations"

    def __init__(self, jobs: JobsServicer | None) -> None:
        """jobs: None on a server without jobs, where every call is UNIMPLEMENTED."""
        self._jobs_or_none = jobs

    @property
    def _jobs(self) -> JobsServicer:
        if self._jobs_or_none is None:
            raise NotImplementedHere("This server runs no jobs.", reason="NOT_IMPLEMENTED")
        return self._jobs_or_none

    def register(self, server: grpc.aio.Server) -> None:
        """Register this service with a server."""
        register(server, POOL.FindServiceByName(self.NAME), self)

    async def submit(
        self,
        version: Version,
        wanted: Wanted,
        audio: audio_pb2.AudioSource,
        options: transcription_pb2.TranscriptionOptions,
        *,
        parent: str,
    ) -> Any:
        """Submit a recording as a job. parent: what its name begins with. Raises what SubmitJob raises."""
        words = " ".join((_TIMES,) * wanted.has_word_times + (_CONFIDENCES,) * wanted.has_word_confidences)
        labels = {_VERSION: version.name, _NAME: parent[-_MAX_LABEL:], _URI: audio.uri, _WORDS: words}
        labels[_LANGUAGES] = " ".join(wanted.languages)[:_MAX_LABEL]
        request = jobs_pb2.SubmitJobRequest(audio=audio, options=options)
        new = convert_jobs.new_job(request, principal.current())
        new = replace(new, labels=labels, format=replace(new.format, may_be_container=True))
        return self._operation(await self._jobs.submit(request, new))

    async def GetOperation(self, request: Any, context: Any) -> Any:
        """Return an operation."""
        return self._operation(await self._job(request.name, context))

    async def ListOperations(self, request: Any, context: Any) -> Any:
        """Return a page of the caller's operations, without their results. A filter is ignored."""
        page = await self._jobs.ListJobs(
            jobs_pb2.ListJobsRequest(page_size=min(request.page_size, 1000), page_token=request.page_token), context
        )
        found = [self._operation(job, with_result=False) for job in page.jobs]
        return _message("ListOperationsResponse", operations=found, next_page_token=page.next_page_token)

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        """Cancel an operation; one that has ended stays as it is."""
        job = await self._job(request.name, context)
        await self._jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job.job_id), context)
        return message_class("google.protobuf.Empty")()

    async def DeleteOperation(self, request: Any, context: Any) -> Any:
        """Delete an operation that has ended, with its audio and its result."""
        job = await self._job(request.name, context)
        await self._jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job.job_id), context)
        return message_class("google.protobuf.Empty")()

    async def WaitOperation(self, request: Any, context: Any) -> Any:
        """Return an operation once it has ended, or after the timeout."""
        job = await self._job(request.name, context)
        timeout = request.timeout.seconds + request.timeout.nanos / 1e9 if request.HasField("timeout") else _MAX_WAIT_S
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(timeout, 0.0), _MAX_WAIT_S)):
                watching = self._jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job.job_id), context)
                async with aclosing(watching) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        job = change.job
        return self._operation(job)

    async def _job(self, name: str, context: Any) -> jobs_pb2.Job:
        """Return the job of an operation. Raises NotFound."""
        if not name:
            raise InvalidInput("name", "is empty")
        job_id = name.rpartition("/")[2]
        return (await self._jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id), context)).job

    def _operation(self, job: jobs_pb2.Job, *, with_result: bool = True) -> Any:
        # A job that was submitted otherwise is an operation of v1.
        version = next((one for one in VERSIONS if one.name == _label(job, _VERSION)), V1)
        operation = _message("Operation", name=f"{_label(job, _NAME)}{job.job_id}", done=job.state in _ENDED)
        operation.metadata.Pack(self._metadata(version, job))
        if job.state == jobs_pb2.JOB_STATE_COMPLETED and with_result:
            operation.response.Pack(self._result(version, job))
        elif job.state == jobs_pb2.JOB_STATE_FAILED:
            operation.error.code, operation.error.message = job.failure.code, job.failure.message
            info = error_details_pb2.ErrorInfo(reason=job.failure.reason, domain="typeless")
            operation.error.details.add().Pack(info)
        elif job.state == jobs_pb2.JOB_STATE_CANCELLED:
            operation.error.code, operation.error.message = _CANCELLED, "The operation was cancelled."
        return operation

    def _metadata(self, version: Version, job: jobs_pb2.Job) -> Any:
        percent = 100 if job.state == jobs_pb2.JOB_STATE_COMPLETED else min(99, round(job.progress * 100))
        began_at = job.start_time if job.HasField("start_time") else job.create_time
        changed = job.end_time if job.state in _ENDED else began_at
        if version.is_v2:
            metadata = version.message("OperationMetadata", progress_percent=percent, method="BatchRecognize")
            file = metadata.batch_recognize_metadata.transcription_metadata[_label(job, _URI)]
            file.progress_percent = percent
            began, updated = metadata.create_time, metadata.update_time
        else:
            metadata = version.message("LongRunningRecognizeMetadata", progress_percent=percent)
            metadata.uri = _label(job, _URI)
            began, updated = metadata.start_time, metadata.last_update_time
        copy(job.create_time, began)
        copy(changed, updated)
        return metadata

    def _result(self, version: Version, job: jobs_pb2.Job) -> Any:
        results = Results(
            version,
            _label(job, _LANGUAGES).split(),
            separates_channels=job.options.channel_mode == transcription_pb2.CHANNEL_MODE_SEPARATE,
            has_word_times=_TIMES in _label(job, _WORDS),
            has_word_confidences=_CONFIDENCES in _label(job, _WORDS),
        ).recognized(job.transcript.segments)
        audio = job.transcript.audio_duration
        if not version.is_v2:
            response = version.message("LongRunningRecognizeResponse", results=results)
            set_billed(version, response, audio, job.job_id)
            return response
        transcript = version.message("BatchRecognizeResults", results=results)
        set_billed(version, transcript, audio, job.job_id)
        billed = transcript.metadata.total_billed_duration
        response = version.message("BatchRecognizeResponse", total_billed_duration=billed)
        file = response.results[_label(job, _URI)]
        file.uri = _label(job, _URI)
        file.inline_result.transcript.CopyFrom(transcript)
        file.transcript.CopyFrom(transcript)
        file.metadata.CopyFrom(transcript.metadata)
        return response


def _label(job: jobs_pb2.Job, name: str) -> str:
    return dict(job.labels).get(name, "")
