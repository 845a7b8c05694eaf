"""The output of `typeless jobs`: the state of a job, its text, and a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from typeless_grpc.cli.flags import Format
from typeless_grpc.cli.output import EXIT_FAILED, complain, errors, fail
from typeless_grpc.cli.results import text_of
from typeless_grpc.client import Client
from typeless_grpc.pb.v1 import jobs_pb2, transcript_pb2


def follow(client: Client, job_id: str, *, as_json: bool, is_live: bool) -> None:
    """Watch a job until it ends, with a progress bar. is_live: print text as it arrives rather than at the end."""
    job = jobs_pb2.Job()
    with _progress_bar() as bar:
        task = bar.add_task("pending", total=1.0)
        for answer in client.jobs.watch(job_id):
            job = answer.job
            bar.update(task, completed=job.progress, description=job.progress_message or state_of(job))
            if is_live and not as_json:
                for segment in answer.new_segments:
                    typer.echo(segment.text)
    if as_json:
        print_json(job)
    elif job.state == jobs_pb2.JOB_STATE_COMPLETED and not is_live:
        print_text(job)
    stop_unless_completed(job)


def stop_unless_completed(job: jobs_pb2.Job) -> None:
    """Exit with code 1, with the reason, if a job ended without a transcript."""
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        fail(f"{job.failure.message} ({job.failure.reason})")
    if job.state == jobs_pb2.JOB_STATE_CANCELLED:
        complain("typeless: the job was cancelled")
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def interruptible(job_id: str) -> Iterator[None]:
    """On Ctrl-C, print that the job continues."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"typeless: the job continues; `typeless jobs cancel {job_id}` ends it")
        raise typer.Exit(130) from None


def print_text(job: jobs_pb2.Job) -> None:
    """Print a transcript in the first format of its job, word by word, or as plain text."""
    typer.echo(text_of(job.transcript, words=job.options.word_timestamps), nl=False)


def print_rendition(job: jobs_pb2.Job, format: Format) -> None:
    """Print a transcript in a file format. Ends the command if the job has no transcript in this format."""
    stop_unless_completed(job)
    if job.state != jobs_pb2.JOB_STATE_COMPLETED:
        fail(f"the job is {state_of(job)}: `typeless jobs watch {job.job_id}` waits for its text")
    wanted = transcript_pb2.OutputFormat.Value(f"OUTPUT_FORMAT_{format.proto_name.upper()}")
    for rendition in job.transcript.renditions:
        if rendition.format == wanted:
            typer.echo(rendition.content, nl=False)
            return
    fail(f"the job has no {format.value}: request it with `typeless jobs submit --format {format.value}`")


def print_json(message: Message) -> None:
    """Print a message as one line of JSON."""
    typer.echo(MessageToJson(message, indent=None))


def state_of(job: jobs_pb2.Job) -> str:
    """Return the state of a job in lower case: pending, processing, …"""
    return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
