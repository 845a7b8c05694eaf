"""`typeless batch`: transcribes recordings, many in each call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from typeless_grpc.cli import flags
from typeless_grpc.cli.audio_sources import MAX_PIPED_BYTES, BrokenInput, content_of
from typeless_grpc.cli.failures import calls_as_lines, error_text
from typeless_grpc.cli.files import is_pipe, name_of, recordings, size_of
from typeless_grpc.cli.output import EXIT_FAILED, Counting
from typeless_grpc.cli.results import Outcome, Results
from typeless_grpc.cli.target import Target, max_audio_bytes, open_client, retry_until_available
from typeless_grpc.cli.transcribe import check_words, formats_of, output_directory
from typeless_grpc.client import AsyncClient, CallFailed, Options
from typeless_grpc.pb.v1.transcription_pb2 import BatchResult


def batch(
    files: flags.Files,
    target: Target,
    decoding: flags.WholeDecoding,
    words: flags.Words = False,
    format: flags.Formats = None,
    output: flags.OutputDirectory = "",
    size: int = typer.Option(10, min=1, max=1000, help="The most recordings in one call."),
    timeout: flags.Timeout = None,
    as_json: flags.AsJson = False,
) -> None:
    """Transcribe recordings, many in each call. Exit code 1 if one of them failed.

    Example: typeless batch --local --format srt --output subtitles tests/audio/en_short.flac tests/audio/en_short.mp3
    """
    formats = formats_of(format, output)
    check_words(words, formats, as_json=as_json)
    options = decoding.to_options(target.requested_model, words=words, formats=formats)
    found = recordings(files)
    results = Results(found, formats, output_directory(output), words, as_json)
    with calls_as_lines(target.server):
        asyncio.run(_all(options, results, target, size, timeout))
    results.summary()
    if results.n_failed or results.is_stdout_lost:
        raise typer.Exit(EXIT_FAILED)


async def _all(options: Options, results: Results, target: Target, size: int, timeout_s: float | None) -> None:
    async with open_client(target) as client:
        with Counting(results.files) as counting:
            max_bytes = await max_audio_bytes(client, target)
            for group in groups(results.files, size, max_bytes):
                with counting.files(group):
                    outcomes = await _outcomes(client, group, options, timeout_s, target, max_bytes or MAX_PIPED_BYTES)
                for outcome in outcomes:
                    results.add(outcome)


def groups(files: Sequence[Path], size: int, max_bytes: int) -> Iterator[list[Path]]:
    """Group the files, in order, into calls of at most `size` files and max_bytes; a larger file is alone.

    A pipe is alone, too: its size is unknown.
    """
    group: list[Path] = []
    n_bytes = 0
    for file in files:
        file_bytes = size_of(file)
        has_pipe = is_pipe(file) or any(map(is_pipe, group[-1:]))
        if group and (has_pipe or len(group) == size or (max_bytes > 0 and n_bytes + file_bytes > max_bytes)):
            yield group
            group, n_bytes = [], 0
        group.append(file)
        n_bytes += file_bytes
    if group:
        yield group


async def _outcomes(
    client: AsyncClient,
    files: Sequence[Path],
    options: Options,
    timeout_s: float | None,
    target: Target,
    max_piped_bytes: int,
) -> list[Outcome]:
    """Transcribe the files in one call. A file that cannot be read gets an error of its own."""
    outcomes, contents = dict[Path, Outcome](), dict[Path, bytes]()
    for file in files:
        try:
            contents[file] = await content_of(file, max_piped_bytes)
        except BrokenInput as error:
            outcomes[file] = Outcome(file, error=str(error), reason="unreadable")
    if contents:
        names, what = [name_of(file) for file in contents], f"{len(contents)} files"
        audio = list(contents.values())
        try:
            answer = await retry_until_available(
                lambda: client.batch(audio, options, names=names, timeout_s=timeout_s), target, what
            )
        except CallFailed as error:
            reason = error.reason or error.code.name
            outcomes |= {file: Outcome(file, error=error_text(error), reason=reason) for file in contents}
        else:
            outcomes |= {file: _outcome(file, one) for file, one in zip(contents, answer.results, strict=True)}
    return [outcomes[file] for file in files]


def _outcome(file: Path, result: BatchResult) -> Outcome:
    if result.WhichOneof("outcome") == "failure":
        return Outcome(file, error=f"{result.failure.message} ({result.failure.reason})", reason=result.failure.reason)
    return Outcome(file, result.transcript, result.stats, result)
