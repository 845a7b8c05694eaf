"""`typeless transcribe`: transcribes recordings, one in each call."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import typer

from typeless_grpc.cli import flags
from typeless_grpc.cli.audio_sources import MAX_PIPED_BYTES, BrokenInput, content_of
from typeless_grpc.cli.failures import calls_as_lines, error_text
from typeless_grpc.cli.files import is_pipe, name_of, recordings
from typeless_grpc.cli.output import EXIT_FAILED, Counting, need
from typeless_grpc.cli.results import Outcome, Results
from typeless_grpc.cli.target import Target, max_audio_bytes, open_client, retry_until_available
from typeless_grpc.client import AsyncClient, CallFailed, Options


def transcribe(
    files: flags.Files,
    target: Target,
    decoding: flags.WholeDecoding,
    words: flags.Words = False,
    format: flags.Formats = None,
    output: flags.OutputDirectory = "",
    parallel: int = typer.Option(4, min=1, max=64, help="Concurrent calls."),
    timeout: flags.Timeout = None,
    as_json: flags.AsJson = False,
) -> None:
    """Transcribe recordings. Exit code 1 if one of them failed.

    Example: typeless transcribe --local --language en tests/audio/en_two_sentences.flac
    """
    formats = formats_of(format, output)
    check_words(words, formats, as_json=as_json)
    options = decoding.to_options(target.requested_model, words=words, formats=formats)
    found = recordings(files)
    results = Results(found, formats, output_directory(output), words, as_json)
    with calls_as_lines(target.server):
        asyncio.run(_all(options, results, target, parallel, timeout))
    results.summary()
    if results.n_failed or results.is_stdout_lost:
        raise typer.Exit(EXIT_FAILED)


def formats_of(requested: list[flags.Format] | None, output: str) -> list[flags.Format]:
    """Return the formats to request; without --output at most one."""
    if output:
        return list(dict.fromkeys(requested or [flags.Format.TEXT]))
    if requested and len(set(requested)) > 1:
        raise typer.BadParameter("several formats need a directory: add --output", param_hint="--format")
    return list(dict.fromkeys(requested or []))


def check_words(words: bool, formats: list[flags.Format], *, as_json: bool) -> None:
    """Refuse --words if nothing would show them: text and TSV have no words."""
    has_times = as_json or not formats or not set(formats) <= {flags.Format.TEXT, flags.Format.TSV}
    need("--words", has_times or not words, "--json, or --format json, srt or vtt: other formats have no word times")


def output_directory(output: str) -> Path | None:
    """Create the output directory if needed."""
    if not output:
        return None
    directory = Path(output).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot be created: {error.strerror}", param_hint="--output") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise typer.BadParameter("is not writable", param_hint="--output")
    return directory


async def _all(options: Options, results: Results, target: Target, parallel: int, timeout_s: float | None) -> None:
    """Transcribe the files, `parallel` at once, and report the results in the order of the files."""
    at_once = asyncio.Semaphore(parallel)
    async with open_client(target) as client:
        has_pipe = any(is_pipe(file) for file in results.files)
        max_bytes = (await max_audio_bytes(client, target) if has_pipe else 0) or MAX_PIPED_BYTES
        with Counting(results.files) as counting:

            async def one(file: Path) -> Outcome:
                async with at_once:
                    with counting.files([file]):
                        return await _outcome(client, file, options, timeout_s, target, max_bytes)

            calls = [asyncio.create_task(one(file)) for file in results.files]
            try:
                for call in calls:
                    results.add(await call)
            finally:
                for call in calls:
                    call.cancel()


async def _outcome(
    client: AsyncClient, file: Path, options: Options, timeout_s: float | None, target: Target, max_piped_bytes: int
) -> Outcome:
    """Transcribe one file, with retries. A failure is part of the outcome."""
    try:
        audio = await content_of(file, max_piped_bytes)
        answer = await retry_until_available(
            lambda: client.transcribe(audio, options, timeout_s=timeout_s), target, name_of(file)
        )
    except CallFailed as error:
        return Outcome(file, error=error_text(error), reason=error.reason or error.code.name)
    except BrokenInput as error:
        return Outcome(file, error=str(error), reason="unreadable")
    return Outcome(file, answer.transcript, answer.stats, answer)
