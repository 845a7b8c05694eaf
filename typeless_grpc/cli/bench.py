"""`typeless bench`: measures how fast a server answers its callers."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from typeless_grpc.cli import flags
from typeless_grpc.cli.audio_sources import MAX_PIPED_BYTES, BrokenInput, content_of
from typeless_grpc.cli.failures import calls_as_lines
from typeless_grpc.cli.files import name_of, recordings
from typeless_grpc.cli.output import EXIT_FAILED, fail
from typeless_grpc.cli.target import Target, open_client
from typeless_grpc.client import AsyncClient, CallFailed, Options


@dataclass(frozen=True)
class Answer:
    """One call: how long it took, how long the audio is, and the reason if it failed."""

    took_s: float
    audio_s: float
    failure: str = ""


def bench(
    files: flags.Files,
    target: Target,
    language: Annotated[str, typer.Option("--language", "-l", help="Spoken language; detected by default.")] = "",
    callers: Annotated[int, typer.Option(min=1, max=1000, help="Concurrent callers.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="How many times to send each file.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Send recordings from several callers at once, and time them.

    Exit code 1 if a call failed.

    Example: typeless bench --local --callers 4 tests/audio/en_short.flac
    """
    options = Options(model=target.requested_model, language=language)
    found = recordings(files)
    with calls_as_lines(target.server):
        answers, took_s = asyncio.run(_run(found, rounds, options, target, callers))
    report = summary(answers, took_s)
    typer.echo(json.dumps(report) if as_json else "\n".join(f"{name:22} {value}" for name, value in report.items()))
    if report["failed"]:
        raise typer.Exit(EXIT_FAILED)


def summary(answers: list[Answer], took_s: float) -> dict[str, float | int | str]:
    """Count the calls; compute percentiles of the wait in seconds, and audio seconds per second."""
    good = sorted(answer.took_s for answer in answers if not answer.failure)
    cuts = statistics.quantiles(good, n=20, method="inclusive") if len(good) > 1 else good * 19
    failures = sorted({answer.failure for answer in answers if answer.failure})
    return {
        "calls": len(answers),
        "failed": len(answers) - len(good),
        "wait p50 (s)": round(cuts[9], 3) if cuts else 0.0,
        "wait p95 (s)": round(cuts[18], 3) if cuts else 0.0,
        "audio (s)": round(sum(answer.audio_s for answer in answers), 1),
        "audio seconds a second": round(sum(answer.audio_s for answer in answers) / took_s, 2),
        **({"failures": ", ".join(failures)} if failures else {}),
    }


async def _run(
    files: list[Path], n_rounds: int, options: Options, target: Target, n_callers: int
) -> tuple[list[Answer], float]:
    async with open_client(target) as client:
        waiting = iter([await _content(file) for file in files] * n_rounds)
        answers: list[Answer] = []
        started_s = time.monotonic()
        await asyncio.gather(*(_caller(client, waiting, options, answers) for _ in range(n_callers)))
        return answers, time.monotonic() - started_s


async def _content(file: Path) -> bytes:
    try:
        return await content_of(file, MAX_PIPED_BYTES)
    except BrokenInput as error:
        fail(f"{name_of(file)} {error}")


async def _caller(client: AsyncClient, waiting: Iterator[bytes], options: Options, answers: list[Answer]) -> None:
    for recording in waiting:
        started_s = time.monotonic()
        try:
            answer = await client.transcribe(recording, options)
        except CallFailed as error:
            answers.append(Answer(time.monotonic() - started_s, 0.0, error.reason or error.code.name))
            continue
        audio = answer.transcript.audio_duration
        answers.append(Answer(time.monotonic() - started_s, audio.seconds + audio.nanos / 1e9))
