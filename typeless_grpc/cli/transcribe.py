"""`typeless transcribe`: recordings to text, a call for each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import typer

from typeless_grpc.cli import flags
from typeless_grpc.cli.audio_sources import MAX_PIPED_BYTES, BrokenInput, content_of
from typeless_grpc.cli.failures import calls_as_lines, told
from typeless_grpc.cli.files import is_pipe, name_of, recordings
from typeless_grpc.cli.output import EXIT_FAILED, Counting, need
from typeless_grpc.cli.results import Outcome, Results
from typeless_grpc.cli.target import Place, client_of, max_audio_bytes, patiently
from typeless_grpc.client import AsyncClient, CallFailed, Options


def transcribe(
    files: flags.Files,
    place: Place,
    decoding: flags.WholeDecoding,
    words: flags.Words = False,
    format: flags.Formats = None,
    output: flags.OutputDirectory = "",
    parallel: int = typer.Option(4, min=1, max=64, help="Files at the same time."),
    timeout: flags.Timeout = None,
    as_json: flags.AsJson = False,
) -> None:
    """Print or save what is said in recordings; exit code 1 if one of them failed.

    Example: typeless transcribe --local --language en tests/audio/en_two_sentences.flac
    """
    formats = formats_of(format, output)
    need_place_for(words, formats, as_json=as_json)
    options = decoding.asked(place.asked_model, words=words, formats=formats)
    found = recordings(files)
    results = Results(found, formats, directory_of(output), words, as_json)
    with calls_as_lines(place.server):
        asyncio.run(_all(options, results, place, parallel, timeout))
    results.summary()
    if results.n_failed or results.is_unread:
        raise typer.Exit(EXIT_FAILED)


def formats_of(asked: list[flags.Format] | None, output: str) -> list[flags.Format]:
    """The formats to ask for; on stdout one at most."""
    if output:
        return list(dict.fromkeys(asked or [flags.Format.TEXT]))
    if asked and len(set(asked)) > 1:
        raise typer.BadParameter("more than one goes to files: name a directory with --output", param_hint="--format")
    return list(dict.fromkeys(asked or []))


def need_place_for(words: bool, formats: list[flags.Format], *, as_json: bool) -> None:
    """Words are printed where no format is asked for; files of text and TSV have none of them."""
    has_place = as_json or not formats or not set(formats) <= {flags.Format.TEXT, flags.Format.TSV}
    need("--words", has_place or not words, "--json, or --format json, srt or vtt: other files have no words' times")


def directory_of(output: str) -> Path | None:
    """The directory to write to, made where it is not there yet."""
    if not output:
        return None
    directory = Path(output).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot be made: {error.strerror}", param_hint="--output") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise typer.BadParameter("cannot be written to", param_hint="--output")
    return directory


async def _all(options: Options, results: Results, place: Place, parallel: int, timeout_s: float | None) -> None:
    at_once = asyncio.Semaphore(parallel)
    async with client_of(place) as client:
        has_pipe = any(is_pipe(file) for file in results.files)
        max_bytes = (await max_audio_bytes(client, place) if has_pipe else 0) or MAX_PIPED_BYTES
        with Counting(results.files) as counting:

            async def one(file: Path) -> Outcome:
                async with at_once:
                    with counting.files([file]):
                        return await _outcome(client, file, options, timeout_s, place, max_bytes)

            calls = [asyncio.create_task(one(file)) for file in results.files]
            try:
                for call in calls:
                    results.add(await call)
            finally:
                for call in calls:
                    call.cancel()


async def _outcome(
    client: AsyncClient, file: Path, options: Options, timeout_s: float | None, place: Place, max_piped_bytes: int
) -> Outcome:
    try:
        audio = await content_of(file, max_piped_bytes)
        answer = await patiently(lambda: client.transcribe(audio, options, timeout_s=timeout_s), place, name_of(file))
    except CallFailed as error:
        return Outcome(file, error=told(error), reason=error.reason or error.code.name)
    except BrokenInput as error:
        return Outcome(file, error=str(error), reason="unreadable")
    return Outcome(file, answer.transcript, answer.stats, answer)
