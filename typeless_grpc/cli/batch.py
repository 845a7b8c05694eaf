"""`typeless batch`: recordings to text, many in a call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from typeless_grpc.cli import flags
from typeless_grpc.cli.failures import calls_as_lines, told
from typeless_grpc.cli.files import recordings
from typeless_grpc.cli.output import EXIT_FAILED, Counting
from typeless_grpc.cli.results import Outcome, Results
from typeless_grpc.cli.target import Place, client_of, patiently
from typeless_grpc.cli.transcribe import directory_of, formats_of, need_place_for
from typeless_grpc.client import AsyncClient, CallFailed, Options
from typeless_grpc.pb.v1.transcription_pb2 import BatchResult

# Room in a message for what is not audio: names, options.
ROOM_BYTES = 64 * 1024


def batch(
    files: flags.Files,
    place: Place,
    decoding: flags.WholeDecoding,
    words: flags.Words = False,
    format: flags.Formats = None,
    output: flags.OutputDirectory = "",
    size: int = typer.Option(10, min=1, max=1000, help="Recordings in one call, as many as the server takes."),
    timeout: flags.Timeout = None,
    as_json: flags.AsJson = False,
) -> None:
    """Print or save what is said in recordings, sent many in a call; exit code 1 if one of them failed.

    Example: typeless batch --local --format srt --output subtitles tests/audio/en_short.flac tests/audio/en_short.mp3
    """
    formats = formats_of(format, output)
    need_place_for(words, formats, as_json=as_json)
    options = decoding.asked(place.asked_model, words=words, formats=formats)
    found = recordings(files)
    results = Results(found, formats, directory_of(output), words, as_json)
    with calls_as_lines(place.server):
        asyncio.run(_all(options, results, place, size, timeout))
    results.summary()
    if results.n_failed:
        raise typer.Exit(EXIT_FAILED)


async def _all(options: Options, results: Results, place: Place, size: int, timeout_s: float | None) -> None:
    async with client_of(place) as client:
        with Counting(results.files) as counting:
            for group in groups(results.files, size, await _max_bytes(client, place)):
                with counting.files(group):
                    outcomes = await _outcomes(client, group, options, timeout_s, place)
                for outcome in outcomes:
                    results.add(outcome)


async def _max_bytes(client: AsyncClient, place: Place) -> int:
    """What the audio of one call may have; 0 where the server does not say: it will, if a call is too large."""
    try:
        return (await patiently(client.server_info, place, "the server's limits")).max_message_bytes - ROOM_BYTES
    except CallFailed:
        return 0


def groups(files: Sequence[Path], size: int, max_bytes: int) -> Iterator[list[Path]]:
    """The files in order, as many in a group as `size` and max_bytes allow; one that is too large is alone."""
    group: list[Path] = []
    n_bytes = 0
    for file in files:
        file_bytes = file.stat().st_size
        if group and (len(group) == size or (max_bytes > 0 and n_bytes + file_bytes > max_bytes)):
            yield group
            group, n_bytes = [], 0
        group.append(file)
        n_bytes += file_bytes
    if group:
        yield group


async def _outcomes(
    client: AsyncClient, files: Sequence[Path], options: Options, timeout_s: float | None, place: Place
) -> list[Outcome]:
    what = f"{len(files)} files"
    try:
        answer = await patiently(lambda: client.batch(files, options, timeout_s=timeout_s), place, what)
    except CallFailed as error:
        return [Outcome(file, error=told(error), reason=error.reason or error.code.name) for file in files]
    except OSError as error:
        return [Outcome(file, error=f"{error.filename} cannot be read: {error.strerror}") for file in files]
    return [_outcome(file, result) for file, result in zip(files, answer.results, strict=True)]


def _outcome(file: Path, result: BatchResult) -> Outcome:
    if result.WhichOneof("outcome") == "failure":
        return Outcome(file, error=f"{result.failure.message} ({result.failure.reason})", reason=result.failure.reason)
    return Outcome(file, result.transcript, result.stats, result)
