"""`typeless jobs`: transcription in the background, from submission to deletion."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import grpc
import typer
from rich.table import Table
from rich.text import Text

from typeless_grpc.cli import flags
from typeless_grpc.cli.connection import Connection
from typeless_grpc.cli.failures import calls_as_lines, command, is_unavailable
from typeless_grpc.cli.files import STANDARD_INPUT, name_of, recording
from typeless_grpc.cli.job_output import (
    follow,
    interruptible,
    print_json,
    print_rendition,
    print_text,
    state_of,
    stop_unless_completed,
)
from typeless_grpc.cli.output import complain, download_bar, fail, print_table
from typeless_grpc.client import CallFailed, Client
from typeless_grpc.client.requests import is_uri
from typeless_grpc.pb.v1 import jobs_pb2

FIRST_ANSWER_S = 10.0  # within it, gRPC calls up to four times

app = typer.Typer(help="Transcribe in the background.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job, as `typeless jobs submit` prints it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; repeatable.")]


class Priority(StrEnum):
    """The priority of a job among those of its caller."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class State(StrEnum):
    """The state of a job."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@command(app, "submit")
def submit(
    audio: Annotated[str, typer.Argument(help="A recording of any size, - for standard input, or a URI.")],
    connection: Connection,
    *,
    model: flags.Model = "",
    decoding: flags.WholeDecoding,
    words: Annotated[bool, typer.Option("--words", help="Add word times to the transcript.")] = False,
    format: Annotated[
        list[flags.Format] | None, typer.Option("--format", "-f", help="File format of the result; repeatable.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Priority among your own jobs.")] = Priority.NORMAL,
    label: Labels = None,
    request_id: Annotated[str, typer.Option(help="Idempotency key: resubmitting returns the existing job.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress, and print the text at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job and print its id. Large recordings are uploaded in chunks.

    Example: typeless jobs submit --wait lecture.mp3
    """
    source = audio if is_uri(audio) else recording(audio, "AUDIO")
    formats = list(dict.fromkeys(format or []))
    if wait and not as_json and len(formats) > 1:
        raise typer.BadParameter("--wait prints only one format: leave out --wait", param_hint="--format")
    options, labels = decoding.to_options(model, words=words, formats=formats), _labels(label)
    with (
        _client(connection) as client,
        download_bar(f"Uploading {name_of(audio)}") as bar,
    ):
        job = client.jobs.submit(
            sys.stdin.buffer if source == STANDARD_INPUT else source,
            options,
            priority=priority.value,
            labels=labels,
            request_id=request_id,
            progress=lambda sent, total: bar.update(bar.task_ids[0], completed=sent, total=total),
        )
        bar.stop()
        if wait:
            complain(f"job {job.job_id}")
            with interruptible(job.job_id):
                follow(client, job.job_id, as_json=as_json, is_live=False)
            return
        try:
            if as_json:
                print_json(job)
            else:
                typer.echo(job.job_id)
        except OSError:
            complain(f"job {job.job_id}")  # the job runs; the user needs its id
            raise


@command(app, "get")
def get(
    job_id: JobId,
    connection: Connection,
    format: Annotated[
        flags.Format | None, typer.Option("--format", "-f", help="Print this format, which the job must have.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the state of a job, and its text once completed. Exit code 1 if it failed or was cancelled.

    Example: typeless jobs get JOB_ID
    """
    with _client(connection) as client:
        job = client.jobs.get(job_id)
    if format is not None:
        print_rendition(job, format)
        return
    if as_json:
        print_json(job)
    else:
        typer.echo(f"{job.job_id}  {state_of(job)}  {job.progress:.0%}  {job.progress_message}".rstrip())
        if job.state == jobs_pb2.JOB_STATE_COMPLETED:
            print_text(job)
    stop_unless_completed(job)


@command(app, "list")
def list_jobs(
    connection: Connection,
    state: Annotated[list[State] | None, typer.Option(help="Only jobs in this state; repeatable.")] = None,
    label: Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="The most jobs to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each job.")] = False,
) -> None:
    """List your jobs, newest first. Without an API key, a server lists jobs only to its own machine.

    Example: typeless jobs list --state processing
    """
    wanted = _labels(label)
    table = Table(box=None)
    for column in ("job", "state", "progress", "attempt", "submitted"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    table.add_column("labels", overflow="fold")
    with _client(connection) as client:
        found = client.jobs.list(states=state or (), labels=wanted, page_size=min(limit, 1000))
        for job, _ in zip(found, range(limit), strict=False):
            if as_json:
                print_json(job)
            labels = ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
            submitted = datetime.fromtimestamp(job.create_time.seconds).astimezone().isoformat(" ", "seconds")
            progress = f"{job.progress:.0%}"
            cells = (job.job_id, state_of(job), progress, str(job.attempt), submitted, labels)
            table.add_row(*map(Text, cells))  # Text: a label is not markup
    if not as_json:
        print_table(table)
    if not table.row_count and not connection.api_key:
        complain("No jobs. Without an API key, a server on another machine shows a job only by its id.")


@command(app, "watch")
def watch(
    job_id: JobId,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Print the text of a job as it is recognized. Exit code 1 if the job failed or was cancelled.

    Example: typeless jobs watch JOB_ID
    """
    with _client(connection) as client:
        follow(client, job_id, as_json=as_json, is_live=True)


@command(app, "cancel")
def cancel(
    job_id: JobId,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Cancel a job.

    Example: typeless jobs cancel JOB_ID
    """
    with _client(connection) as client:
        job = client.jobs.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        typer.echo(state_of(job))


@command(app, "delete")
def delete(
    job_id: JobId,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Delete a job that does not run, with its audio and transcript.

    Example: typeless jobs delete JOB_ID
    """
    with _client(connection) as client:
        client.jobs.delete(job_id)
    if as_json:
        typer.echo(json.dumps({"jobId": job_id, "deleted": True}))


@command(app, "stats")
def stats(
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Print how full the queue is.

    Example: typeless jobs stats
    """
    with _client(connection) as client:
        answer = client.jobs.stats()
    if as_json:
        print_json(answer)
        return
    for name in ("pending", "processing", "completed", "failed", "cancelled", "workers", "max_concurrent_jobs"):
        typer.echo(f"{name:<20} {getattr(answer, name)}")
    if answer.HasField("oldest_pending_age"):
        typer.echo(f"{'oldest pending':<20} {answer.oldest_pending_age.ToTimedelta().total_seconds():.0f} s")


def _labels(pairs: list[str] | None) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs or ()]
    if any(not key or not equals for key, equals, _ in split):
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--label")
    return {key: value for key, _, value in split}


@contextmanager
def _client(connection: Connection) -> Iterator[Client]:
    """Open a client, once a server has answered. A failed call ends the command with a line.

    Calls of jobs are repeated for half a minute, which would pass in silence if there is no server.
    """
    with (
        calls_as_lines(connection.server, otherwise=""),
        Client(connection.server, api_key=connection.api_key, tls=connection.tls) as client,
    ):
        try:
            client.server_info(timeout_s=FIRST_ANSWER_S)
        except CallFailed as error:
            if is_unavailable(error):
                raise
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                fail(f"{connection.server} did not answer within {FIRST_ANSWER_S:.0f} s")
            # A server that refuses this call may accept the command's own, or gives the reason there.
        yield client
