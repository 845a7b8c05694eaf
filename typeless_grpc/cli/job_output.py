"""What `typeless jobs` prints: how a job stands, its text as it comes, the file that it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from google.protobuf.json_format import MessageToDict
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from typeless_grpc.cli import flags
from typeless_grpc.cli.output import errors, fail
from typeless_grpc.client import Client
from typeless_grpc.pb.v1 import jobs_pb2, transcript_pb2


def follow(
    client: Client, job_id: str, *, as_json: bool, is_live: bool = False, format: flags.Format | None = None
) -> None:
    """Watch a job to its end behind a bar of its progress; is_live: print text as it comes."""
    job = jobs_pb2.Job()
    with _progress_bar() as bar:
        task = bar.add_task("pending", total=1.0)
        for answer in client.jobs.watch(job_id):
            job = answer.job
            message = job.progress_message or state_of(job)
            bar.update(task, completed=job.progress, description=message)
            if is_live and not as_json:
                for segment in answer.new_segments:
                    typer.echo(segment.text)
    if as_json or not is_live or job.state != jobs_pb2.JOB_STATE_COMPLETED:
        show(job, as_json=as_json, is_brief=True, format=format)


def show(job: jobs_pb2.Job, *, as_json: bool, is_brief: bool = False, format: flags.Format | None = None) -> None:
    """Print a job; exit code 1 where it failed. is_brief: of a COMPLETED one its text alone."""
    is_done = job.state == jobs_pb2.JOB_STATE_COMPLETED
    if as_json:
        print_json(job)
    elif format is not None and is_done:
        typer.echo(_rendition(job, format), nl=False)
    else:
        if not is_brief and format is None:
            typer.echo(f"{job.job_id}  {state_of(job)}  {job.progress:.0%}  {job.progress_message}".rstrip())
        if is_done:
            typer.echo("\n".join(segment.text for segment in job.transcript.segments))
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        fail(f"{job.failure.message} ({job.failure.reason})")
    if is_brief and job.state == jobs_pb2.JOB_STATE_CANCELLED:
        fail("the job was cancelled")
    if format is not None and not is_done:
        fail(f"the job is {state_of(job)}: there is no file yet. `typeless jobs watch {job.job_id}` waits for its text")


def _rendition(job: jobs_pb2.Job, format: flags.Format) -> str:
    wanted = transcript_pb2.OutputFormat.Value(f"OUTPUT_FORMAT_{format.name_in_contract.upper()}")
    made = {rendition.format: rendition.content for rendition in job.transcript.renditions}
    if wanted in made:
        return made[wanted]
    return fail(f"the job was not asked to make {format.value}: `typeless jobs submit --format {format.value}` does")


@contextmanager
def goes_on(job_id: str) -> Iterator[None]:
    """A job outlives who waits for it: say so where the wait is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"typeless: the job goes on; `typeless jobs cancel {job_id}` ends it", soft_wrap=True)
        raise typer.Exit(130) from None


def state_of(job: jobs_pb2.Job) -> str:
    """A job's state in lower case."""
    return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def print_json(message: object) -> None:
    """A message as one line of JSON."""
    typer.echo(json.dumps(MessageToDict(message), ensure_ascii=False))  # type: ignore[arg-type]


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
