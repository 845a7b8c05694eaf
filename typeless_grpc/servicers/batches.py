"""BatchTranscribe: transcribes several recordings in parallel, each with its own outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from typeless_grpc.engine.interface import Recognition, Ticket
from typeless_grpc.errors import DeadlineExceeded, EngineFailed, InvalidInput, TypelessError
from typeless_grpc.pb.v1 import failure_pb2, transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.recordings import Recording, RecordingTranscriber
from typeless_grpc.telemetry.context import request_id
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class _Done:
    """The result of one item. processing_s: from the request's arrival to the result."""

    outcome: Recognition | TypelessError
    processing_s: float


class BatchTranscriber:
    """Transcribes the items of a batch; one that fails does not fail the others."""

    def __init__(
        self, recordings: RecordingTranscriber, code_of: Callable[[TypelessError], int], *, max_items: int
    ) -> None:
        """code_of: the google.rpc.Code of an error. max_items: of one batch."""
        self._recordings = recordings
        self._code_of = code_of
        self._max_items = max_items

    def use(self, max_items: int) -> None:
        """Accept so many items from the next batch on."""
        self._max_items = max_items

    async def transcribe(
        self, request: transcription_pb2.BatchTranscribeRequest, ticket: Ticket
    ) -> transcription_pb2.BatchTranscribeResponse:
        """Return every item's transcript or failure, in order. Cancelling it stops all unfinished items.

        Raises InvalidInput (no items, or too many), and DeadlineExceeded, because it applies to all items.
        """
        arrived_s = time.monotonic()
        if not request.items:
            raise InvalidInput("items", "there are no recordings", reason="NO_ITEMS")
        if len(request.items) > self._max_items:
            why = f"{len(request.items)} recordings; at most {self._max_items} are accepted"
            raise InvalidInput("items", why, reason="TOO_MANY_ITEMS")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._item(request, index, ticket, arrived_s))
                    for index in range(len(request.items))
                ]
        except* DeadlineExceeded as errors:
            raise errors.exceptions[0] from None
        done = [task.result() for task in tasks]
        return transcription_pb2.BatchTranscribeResponse(
            results=[self._result(item.name, one) for item, one in zip(request.items, done, strict=True)],
            summary=_summary(done, time.monotonic() - arrived_s),
        )

    async def _item(
        self, request: transcription_pb2.BatchTranscribeRequest, index: int, ticket: Ticket, arrived_s: float
    ) -> _Done:
        """Transcribe one item. A failure is its outcome, unless the whole call's time is over."""
        item, field = request.items[index], f"items[{index}]"
        options, at = (item.options, f"{field}.options") if item.HasField("options") else (request.options, "options")
        outcome: Recognition | TypelessError
        try:
            recording = Recording.of(item.audio, options, f"{field}.audio", at)
            outcome = await self._recordings.transcribe(recording, ticket)
        except DeadlineExceeded:
            raise
        except TypelessError as error:
            outcome = error
        except Exception:
            log.exception("unforeseen error in a batch item", index=index)
            text = f"Internal error. The server's log has the details under request id {request_id.get()}."
            outcome = EngineFailed(text, reason="INTERNAL")
        return _Done(outcome, time.monotonic() - arrived_s)

    def _result(self, name: str, done: _Done) -> transcription_pb2.BatchResult:
        if isinstance(done.outcome, TypelessError):
            return transcription_pb2.BatchResult(name=name, failure=self._failure(done.outcome))
        return transcription_pb2.BatchResult(
            name=name,
            transcript=convert.transcript(done.outcome.transcript),
            stats=convert.stats(done.outcome, processing_s=done.processing_s),
        )

    def _failure(self, error: TypelessError) -> failure_pb2.Failure:
        failure = failure_pb2.Failure(code=self._code_of(error), reason=error.reason, message=error.message)
        if error.retry_after_s is not None:
            failure.retry_delay.CopyFrom(convert.duration(error.retry_after_s))
        return failure


def _summary(done: Sequence[_Done], processing_s: float) -> transcription_pb2.BatchSummary:
    succeeded = [one.outcome for one in done if isinstance(one.outcome, Recognition)]
    return transcription_pb2.BatchSummary(
        total=len(done),
        succeeded=len(succeeded),
        failed=len(done) - len(succeeded),
        audio_duration=convert.duration(sum(one.transcript.audio_s for one in succeeded)),
        processing_time=convert.duration(processing_s),
    )
