"""`typeless transcribe`: recordings to text."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.protobuf.json_format import MessageToJson
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from typeless_grpc.cli.connection import ApiKey, ClientCert, ClientKey, Server, TlsCa, UseTls, tls_of
from typeless_grpc.cli.output import EXIT_FAILED, errors, fail, failures_as_lines
from typeless_grpc.client import DEFAULT_TARGET, AsyncClient, CallFailed, Options, Tls
from typeless_grpc.pb.v1.transcription_pb2 import TranscribeResponse


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings of any format.", exists=True, dir_okay=False)],
    server: Server = DEFAULT_TARGET,
    api_key: ApiKey = "",
    tls: UseTls = False,
    tls_ca: TlsCa = None,
    client_cert: ClientCert = None,
    client_key: ClientKey = None,
    local: Annotated[bool, typer.Option("--local", help="Start a server for this command alone.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="Model; the server's default unless set.")] = "",
    language: Annotated[
        str, typer.Option("--language", "-l", help="Spoken language, en or de; detected unless set.")
    ] = "",
    task: Annotated[str, typer.Option(help="transcribe, or translate into English.")] = "transcribe",
    prompt: Annotated[str, typer.Option(help="Text to condition on: names, spelling, style.")] = "",
    hotword: Annotated[list[str] | None, typer.Option(help="A name or phrase to expect; may be repeated.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Print each word with its times and confidence.")] = False,
    beam_size: Annotated[int, typer.Option(min=0, max=10, help="1 to 10; the server's choice unless set.")] = 0,
    temperature: Annotated[list[float] | None, typer.Option(help="0 to 1, tried in turn; may be repeated.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for each file; no limit unless set.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The whole answer as JSON, one object for each file.")
    ] = False,
) -> None:
    """Print what is said in recordings; exit code 1 if one of them failed.

    Example: typeless transcribe --local --language en tests/audio/en_two_sentences.flac
    """
    if task not in ("transcribe", "translate"):
        raise typer.BadParameter("must be transcribe or translate", param_hint="--task")
    options = Options(
        # A server of our own is started with the model, which may then be a directory.
        model="" if local else model,
        language=language,
        task=task,
        prompt=prompt,
        hotwords=hotword or (),
        word_timestamps=words,
        beam_size=beam_size,
        temperatures=temperature or (),
    )
    with failures_as_lines():
        place = Place(server, local, model if local else None, api_key, tls_of(tls, tls_ca, client_cert, client_key))
        n_failed = asyncio.run(_all(files, options, place, timeout, words, as_json))
    if n_failed:
        raise typer.Exit(EXIT_FAILED)


async def _all(
    files: list[Path],
    options: Options,
    place: Place,
    timeout_s: float | None,
    words: bool,
    as_json: bool,
) -> int:
    n_failed = 0
    async with client_of(place) as client:
        for file in files:
            try:
                answer = await _patiently(client, file, options, timeout_s)
            except CallFailed as error:
                if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
                    fail(f"no server answers at {place.server}. Start one with `typeless serve`, or add --local.")
                n_failed += 1
                errors.print(f"{file}: {error}", soft_wrap=True, markup=False)
                continue
            if len(files) > 1 and not as_json:
                typer.echo(f"# {file}")
            typer.echo(MessageToJson(answer, indent=None) if as_json else _plain(answer, words))
    return n_failed


@dataclass(frozen=True)
class Place:
    """Where to call, and how: the server named, or one of our own with this model that ends with the command."""

    server: str
    local: bool
    model: str | None
    api_key: str
    tls: Tls | None


@asynccontextmanager
async def client_of(place: Place) -> AsyncIterator[AsyncClient]:
    """A client of the server that is meant."""
    if not place.local:
        async with AsyncClient(place.server, api_key=place.api_key, tls=place.tls) as client:
            yield client
        return
    from typeless_grpc.app import build, catalog
    from typeless_grpc.cli.models import fetch
    from typeless_grpc.config import load, private
    from typeless_grpc.telemetry import logs

    settings = private(load({"host": "127.0.0.1", "port": 0, "model": place.model or None}).settings)
    logs.configure("warning", settings.log_format)
    fetch(catalog(settings), settings.model)
    async with build(settings) as app:
        with _working(f"Loading model {app.model}"):
            await app.warm()
        async with AsyncClient(f"127.0.0.1:{app.port}", api_key="") as client:
            yield client


async def _patiently(client: AsyncClient, file: Path, options: Options, timeout_s: float | None) -> TranscribeResponse:
    """What the server answers once our quota lets it: many files are more than most quotas hold at once."""
    while True:
        try:
            with _waiting(file):
                return await client.transcribe(file, options, timeout_s=timeout_s)
        except CallFailed as error:
            if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or error.retry_after_s is None:
                raise
            with _working(f"{file}: waiting {error.retry_after_s:.0f} s for our quota"):
                await asyncio.sleep(error.retry_after_s)


def _waiting(file: Path) -> Progress:
    size_kib = os.path.getsize(file) // 1024
    return _working(f"{file} ({size_kib:,} KiB)")


def _working(title: str) -> Progress:
    """A line that lives on a terminal while something runs; nothing in a pipe."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    bar = Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
    bar.add_task(title, total=None)
    return bar


def _plain(answer: TranscribeResponse, words: bool) -> str:
    if not words:
        return "\n".join(segment.text for segment in answer.transcript.segments)
    return "\n".join(
        f"{_clock(word.start_offset)}  {_clock(word.end_offset)}  {word.confidence:4.2f}  {word.text}"
        for segment in answer.transcript.segments
        for word in segment.words
    )


def _clock(offset: object) -> str:
    seconds = offset.seconds + offset.nanos / 1e9  # type: ignore[attr-defined]
    return f"{int(seconds // 60):02d}:{seconds % 60:06.3f}"
