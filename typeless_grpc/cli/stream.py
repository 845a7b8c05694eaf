"""`typeless stream`: transcribes audio while it arrives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from typeless_grpc.cli import flags
from typeless_grpc.cli.audio_sources import (
    BrokenInput,
    Encoding,
    file_blocks,
    microphone,
    not_empty,
    paced_file,
    piped,
)
from typeless_grpc.cli.failures import calls_as_lines
from typeless_grpc.cli.files import is_pipe, name_of, recording
from typeless_grpc.cli.output import complain, errors, fail, need
from typeless_grpc.cli.target import Target, open_client
from typeless_grpc.client import RawFormat, StreamOptions
from typeless_grpc.client.microphone import MICROPHONE, NoMicrophone
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse

Show = Callable[[StreamTranscribeResponse], None]


class Pace(StrEnum):
    """The mode of the stream."""

    LIVE = "live"
    FILE = "file"


def stream(
    audio: Annotated[
        str, typer.Argument(metavar="FILE|-|mic", help="A recording or pipe, - for standard input, or the microphone.")
    ],
    target: Target,
    decoding: flags.Decoding,
    words: Annotated[bool, typer.Option("--words", help="With --json: add word times.")] = False,
    realtime: Annotated[bool, typer.Option("--realtime", help="Send a file at the pace of speech.")] = False,
    interim: Annotated[
        bool | None,
        typer.Option("--interim/--no-interim", help="Show text before it is final; default on a terminal."),
    ] = None,
    mode: Annotated[Pace, typer.Option(help="file sends a recording as fast as possible.")] = Pace.LIVE,
    encoding: Annotated[
        Encoding | None, typer.Option(help="Encoding of raw samples, which have no header.", show_default=False)
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=8000, max=192_000, help="Sample rate of raw samples in Hz; 16000 by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="Microphone: its number or a part of its name.", show_default=False)] = "",
    channels: Annotated[int | None, typer.Option(min=1, max=8, help="Channels of raw samples; 1 by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as one line of JSON.")] = False,
) -> None:
    """Transcribe audio while it arrives. A stream resumes after its connection breaks.

    A terminal shows text in grey until it is final, and a progress bar with --mode file. A pipe gets only final lines.
    Ctrl-C ends live audio and prints its last words; a second Ctrl-C stops at once.

    Example: typeless stream --local --realtime --language en tests/audio/en_two_sentences.flac
    """
    file = None if audio == "mic" else recording(audio, "FILE")
    is_spoken = file is None or is_pipe(file)
    need(
        "--encoding",
        audio != "mic" or encoding is None,
        "a file or standard input: the microphone's is fixed",
    )
    need("--rate", encoding is not None or rate is None, "--encoding: a file has a header")
    need("--channels", encoding is not None or channels is None, "--encoding: a file has a header")
    need("--device", audio == "mic" or not device, "mic")
    need("--realtime", not is_spoken or not realtime, "a file: live audio has its own pace")
    need("--interim", mode is Pace.LIVE or not interim, "--mode live: --mode file has no interims")
    need("--words", as_json or not words, "--json: lines of text have no times")
    raw = RawFormat(encoding.value, rate or 16_000, channels or 1) if encoding else None
    wants_interims = interim if interim is not None else sys.stdout.isatty()
    options = StreamOptions(
        decoding.to_options(target.requested_model, words=words),
        MICROPHONE if audio == "mic" else raw,
        mode=mode.value,
        interim_results=wants_interims and mode is Pace.LIVE,
    )
    with calls_as_lines(target.server):
        blocks = _blocks(file, options.raw_format, realtime, device)
        try:
            asyncio.run(_stream(blocks, options, target, is_spoken=is_spoken, as_json=as_json))
        except BrokenInput as error:
            fail(f"{'standard input' if audio == '-' else name_of(audio)} {error}")
        except NoMicrophone as error:
            fail(str(error))


def _blocks(file: Path | None, raw: RawFormat | None, realtime: bool, device: str) -> AsyncIterator[bytes]:
    if file is None:
        return microphone(device)
    if is_pipe(file):
        return not_empty(piped(file))
    return not_empty(paced_file(file, raw) if realtime else file_blocks(file))


async def _stream(
    blocks: AsyncIterator[bytes], options: StreamOptions, target: Target, *, is_spoken: bool, as_json: bool
) -> None:
    async with open_client(target) as client:
        # Ctrl-C abandons a file, but ends live audio and keeps its last words.
        events = client.stream(_until_interrupted(blocks) if is_spoken else blocks, options)
        if options.interim_results and not as_json:
            await _on_terminal(events)
        elif options.mode == "file" and not as_json:
            await _with_bar(events)
        else:
            await _each(events, _as_json if as_json else _as_line)


async def _until_interrupted(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass blocks on until the first Ctrl-C. The second one interrupts the command."""
    loop = asyncio.get_running_loop()
    interrupted = loop.create_future()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set_result(None)

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # another system, or not the main thread
        loop.add_signal_handler(signal.SIGINT, interrupt)
    while True:
        block = asyncio.ensure_future(anext(blocks, b""))
        await asyncio.wait({block, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not block.done():
            block.cancel()
            return
        if not block.result():
            return
        yield block.result()


async def _each(events: AsyncGenerator[StreamTranscribeResponse, None], show: Show) -> None:
    async with aclosing(events):
        async for event in events:
            show(event)


async def _on_terminal(events: AsyncGenerator[StreamTranscribeResponse, None]) -> None:
    """Print final lines, and below them an interim in grey."""
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as line:

        def show(event: StreamTranscribeResponse) -> None:
            if event.HasField("interim"):
                text = Text(event.interim.stable_text) + Text(event.interim.unstable_text, style="bright_black")
                line.update(text, refresh=True)
            elif event.HasField("segment"):
                line.update("", refresh=True)
                console.print(event.segment.text, markup=False, soft_wrap=True)
            else:
                _warn(event)

        await _each(events, show)


async def _with_bar(events: AsyncGenerator[StreamTranscribeResponse, None]) -> None:
    """Print final lines, and below them a progress bar on a terminal."""
    console = Console(highlight=False) if sys.stdout.isatty() else errors
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True, redirect_stdout=False
    ) as bar:
        done = bar.add_task("", total=1.0)

        def show(event: StreamTranscribeResponse) -> None:
            if event.HasField("progress"):
                bar.update(done, completed=event.progress.fraction, description=event.progress.message)
            elif event.HasField("segment") and console is not errors:
                console.print(event.segment.text, markup=False, soft_wrap=True)
            else:
                _as_line(event)

        await _each(events, show)


def _as_line(event: StreamTranscribeResponse) -> None:
    if event.HasField("segment"):
        typer.echo(event.segment.text)  # echo flushes, for the reader of a pipe
    else:
        _warn(event)


def _as_json(event: StreamTranscribeResponse) -> None:
    typer.echo(MessageToJson(event, indent=None))


def _warn(event: StreamTranscribeResponse) -> None:
    if event.HasField("warning"):
        complain(f"{event.warning.message} ({event.warning.reason})")
