"""`typeless jobs`: transcription in the background, from submission to deletion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from typeless_grpc.cli.output import EXIT_FAILED, download_bar, errors, fail
from typeless_grpc.client import DEFAULT_TARGET, CallFailed, Client, Options
from typeless_grpc.client_jobs import is_uri
from typeless_grpc.pb.v1 import jobs_pb2

app = typer.Typer(help="Transcribe in the background.", no_args_is_help=True)

Server = Annotated[
    str, typer.Option("--server", "-s", envvar="TYPELESS_SERVER", help="Where the server listens, host:port.")
]
JobId = Annotated[str, typer.Argument(help="As `typeless jobs submit` printed it.")]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; may be repeated.")]


@app.command("submit")
def submit(
    audio: Annotated[str, typer.Argument(help="A recording of any format and size, or a URI the server can fetch.")],
    server: Server = DEFAULT_TARGET,
    model: Annotated[str, typer.Option("--model", "-m", help="Model; the server's default unless set.")] = "",
    language: Annotated[str, typer.Option("--language", "-l", help="Spoken language; detected unless set.")] = "",
    task: Annotated[str, typer.Option(help="transcribe, or translate into English.")] = "transcribe",
    prompt: Annotated[str, typer.Option(help="Text to condition on: names, spelling, style.")] = "",
    hotword: Annotated[list[str] | None, typer.Option(help="A name or phrase to expect; may be repeated.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Keep each word with its times.")] = False,
    priority: Annotated[str, typer.Option(help="low, normal or high.")] = "normal",
    label: Labels = None,
    request_id: Annotated[str, typer.Option(help="Sent twice, the job is made once.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show its progress, and print the text at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """File a job and print its id; large recordings are uploaded in pieces.

    Example: typeless jobs submit --wait lecture.mp3
    """
    if task not in ("transcribe", "translate"):
        raise typer.BadParameter("must be transcribe or translate", param_hint="--task")
    if priority not in ("low", "normal", "high"):
        raise typer.BadParameter("must be low, normal or high", param_hint="--priority")
    if not is_uri(audio) and not Path(audio).is_file():
        raise typer.BadParameter(f"there is no file {audio}", param_hint="AUDIO")
    options = Options(
        model=model, language=language, task=task, prompt=prompt, hotwords=hotword or (), word_timestamps=words
    )
    with _client(server) as client, download_bar(f"Uploading {audio}") as bar:
        job = client.jobs.submit(
            audio,
            options,
            priority=priority,
            labels=_labels(label),
            request_id=request_id,
            progress=lambda sent, total: bar.update(bar.task_ids[0], completed=sent, total=total),
        )
        bar.stop()
        if wait:
            errors.print(f"job {job.job_id}", highlight=False)
            _follow(client, job.job_id, as_json=as_json, is_live=False)
        elif as_json:
            _print_json(job)
        else:
            typer.echo(job.job_id)


@app.command("get")
def get(job_id: JobId, server: Server = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Print how a job stands, and its text once it has one.

    Example: typeless jobs get JOB_ID
    """
    with _client(server) as client:
        _show(client.jobs.get(job_id), as_json=as_json)


@app.command("list")
def list_jobs(
    server: Server = DEFAULT_TARGET,
    state: Annotated[list[str] | None, typer.Option(help="pending, processing, completed, …; may be repeated.")] = None,
    label: Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, one object for each job.")] = False,
) -> None:
    """List jobs, newest first.

    Example: typeless jobs list --state processing
    """
    known = [name.removeprefix("JOB_STATE_").lower() for name in jobs_pb2.JobState.keys()][1:]  # noqa: SIM118
    if unknown := [one for one in state or () if one not in known]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(known)}", param_hint="--state")
    table = Table(box=None)
    for column in ("job", "state", "progress", "attempt", "submitted"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    table.add_column("labels", overflow="fold")
    with _client(server) as client:
        found = client.jobs.list(states=state or (), labels=_labels(label), page_size=min(limit, 1000))
        for job, _ in zip(found, range(limit), strict=False):
            if as_json:
                _print_json(job)
            labels = ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
            submitted = datetime.fromtimestamp(job.create_time.seconds).astimezone().isoformat(" ", "seconds")
            progress = f"{job.progress:.0%}"
            table.add_row(job.job_id, _state(job), progress, str(job.attempt), submitted, labels)
    if not as_json:
        # A pipe has no width: lines there are as long as they are.
        (Console() if Console().is_terminal else Console(width=1000)).print(table)


@app.command("watch")
def watch(job_id: JobId, server: Server = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Print a job's text as it is recognized, until the job has ended.

    Example: typeless jobs watch JOB_ID
    """
    with _client(server) as client:
        _follow(client, job_id, as_json=as_json, is_live=True)


@app.command("cancel")
def cancel(job_id: JobId, server: Server = DEFAULT_TARGET) -> None:
    """End a job.

    Example: typeless jobs cancel JOB_ID
    """
    with _client(server) as client:
        typer.echo(_state(client.jobs.cancel(job_id)))


@app.command("delete")
def delete(job_id: JobId, server: Server = DEFAULT_TARGET) -> None:
    """Delete a job that does not run, its audio and its transcript.

    Example: typeless jobs delete JOB_ID
    """
    with _client(server) as client:
        client.jobs.delete(job_id)


@app.command("stats")
def stats(server: Server = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Print how full the queue is.

    Example: typeless jobs stats
    """
    with _client(server) as client:
        answer = client.jobs.stats()
    if as_json:
        _print_json(answer)
        return
    for name in ("pending", "processing", "completed", "failed", "cancelled", "workers", "max_concurrent_jobs"):
        typer.echo(f"{name:<20} {getattr(answer, name)}")
    if answer.HasField("oldest_pending_age"):
        typer.echo(f"{'oldest pending':<20} {answer.oldest_pending_age.ToTimedelta().total_seconds():.0f} s")


def _follow(client: Client, job_id: str, *, as_json: bool, is_live: bool) -> None:
    """Watch a job to its end behind a bar of its progress; is_live: print text as it comes."""
    job = jobs_pb2.Job()
    with _progress_bar() as bar:
        task = bar.add_task("pending", total=1.0)
        for answer in client.jobs.watch(job_id):
            job = answer.job
            message = job.progress_message or _state(job)
            bar.update(task, completed=job.progress, description=message)
            if is_live and not as_json:
                for segment in answer.new_segments:
                    typer.echo(segment.text)
    if as_json or not is_live or job.state != jobs_pb2.JOB_STATE_COMPLETED:
        _show(job, as_json=as_json, is_brief=True)


def _show(job: jobs_pb2.Job, *, as_json: bool, is_brief: bool = False) -> None:
    """Print a job; exit code 1 where it failed. is_brief: of a COMPLETED one its text alone."""
    if as_json:
        _print_json(job)
    else:
        if not is_brief:
            typer.echo(f"{job.job_id}  {_state(job)}  {job.progress:.0%}  {job.progress_message}".rstrip())
        if job.state == jobs_pb2.JOB_STATE_COMPLETED:
            typer.echo("\n".join(segment.text for segment in job.transcript.segments))
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        fail(f"{job.failure.message} ({job.failure.reason})")
    if is_brief and job.state == jobs_pb2.JOB_STATE_CANCELLED:
        errors.print("typeless: the job was cancelled")
        raise typer.Exit(EXIT_FAILED)


def _labels(pairs: list[str] | None) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs or ()]
    if any(not key or not equals for key, equals, _ in split):
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--label")
    return {key: value for key, _, value in split}


def _state(job: jobs_pb2.Job) -> str:
    return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def _print_json(message: object) -> None:
    typer.echo(json.dumps(MessageToDict(message), ensure_ascii=False))  # type: ignore[arg-type]


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)


@contextmanager
def _client(server: str) -> Iterator[Client]:
    """A connection; what the server refuses becomes a line."""
    try:
        with Client(server) as client:
            yield client
    except CallFailed as error:
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            fail(f"no server answers at {server}. Start one with `typeless serve`.")
        fail(str(error))
