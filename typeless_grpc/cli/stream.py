"""`typeless stream`: text while it is spoken."""

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
    file_pieces,
    microphone,
    not_empty,
    paced_file,
    piped,
)
from typeless_grpc.cli.failures import calls_as_lines
from typeless_grpc.cli.files import is_pipe, name_of, recording
from typeless_grpc.cli.output import errors, fail, need
from typeless_grpc.cli.target import Place, client_of
from typeless_grpc.client import RawFormat, StreamOptions
from typeless_grpc.client.microphone import MICROPHONE, NoMicrophone
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse

Show = Callable[[StreamTranscribeResponse], None]


class Pace(StrEnum):
    """What kind of audio it is."""

    LIVE = "live"
    FILE = "file"


def stream(
    audio: Annotated[
        str, typer.Argument(metavar="FILE|-|mic", help="A recording or a pipe, standard input, or the microphone.")
    ],
    place: Place,
    decoding: flags.Decoding,
    words: Annotated[bool, typer.Option("--words", help="With --json: each word with its times.")] = False,
    realtime: Annotated[bool, typer.Option("--realtime", help="Send a file at the pace of speech.")] = False,
    interim: Annotated[
        bool | None, typer.Option("--interim/--no-interim", help="Text before it is final; on a terminal unless set.")
    ] = None,
    mode: Annotated[Pace, typer.Option(help="file: a recording sent as fast as it can be.")] = Pace.LIVE,
    encoding: Annotated[
        Encoding | None, typer.Option(help="Of bare samples; a file says its own unless set.", show_default=False)
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=8000, max=192_000, help="Of bare samples, in Hz; 16000 unless set.")
    ] = None,
    device: Annotated[str, typer.Option(help="Microphone: a number or a part of its name.", show_default=False)] = "",
    channels: Annotated[int | None, typer.Option(min=1, max=8, help="Of bare samples; 1 unless set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every event as JSON, one in each line.")] = False,
) -> None:
    """Print what is said while it is said; a connection that breaks is taken up again.

    On a terminal text is grey until it is final, and a file has a bar. Into a pipe go final lines only. Ctrl-C ends
    what is spoken, and its last words are printed; a second one stops at once.

    Example: typeless stream --local --realtime --language en tests/audio/en_two_sentences.flac
    """
    file = None if audio == "mic" else recording(audio, "FILE")
    is_spoken = file is None or is_pipe(file)
    need("--encoding", audio != "mic" or encoding is None, "a file or standard input: the microphone has its own")
    need("--rate", encoding is not None or rate is None, "--encoding: a file says its own")
    need("--channels", encoding is not None or channels is None, "--encoding: a file says its own")
    need("--device", audio == "mic" or not device, "mic")
    need("--realtime", not is_spoken or not realtime, "a file: what is spoken has its own pace")
    need("--interim", mode is Pace.LIVE or not interim, "--mode live: a recording has none")
    need("--words", as_json or not words, "--json: lines of text have no times")
    raw = RawFormat(encoding.value, rate or 16_000, channels or 1) if encoding else None
    wants_interims = interim if interim is not None else sys.stdout.isatty()
    options = StreamOptions(
        decoding.asked(place.asked_model, words=words),
        MICROPHONE if audio == "mic" else raw,
        mode=mode.value,
        interim_results=wants_interims and mode is Pace.LIVE,
    )
    with calls_as_lines(place.server):
        pieces = _pieces(file, options.raw_format, realtime, device)
        try:
            asyncio.run(_stream(pieces, options, place, is_spoken=is_spoken, as_json=as_json))
        except BrokenInput as error:
            fail(f"{'standard input' if audio == '-' else name_of(audio)} {error}")
        except NoMicrophone as error:
            fail(str(error))


def _pieces(file: Path | None, raw: RawFormat | None, realtime: bool, device: str) -> AsyncIterator[bytes]:
    if file is None:
        return microphone(device)
    if is_pipe(file):
        return not_empty(piped(file))
    return not_empty(paced_file(file, raw) if realtime else file_pieces(file))


async def _stream(
    pieces: AsyncIterator[bytes], options: StreamOptions, place: Place, *, is_spoken: bool, as_json: bool
) -> None:
    async with client_of(place) as client:
        # A file is given up on Ctrl-C. What is spoken is ended by it: its last words are still worth having.
        events = client.stream(_until_interrupted(pieces) if is_spoken else pieces, options)
        if options.interim_results and not as_json:
            await _on_terminal(events)
        elif options.mode == "file" and not as_json:
            await _with_bar(events)
        else:
            await _each(events, _as_json if as_json else _as_line)


async def _until_interrupted(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What comes until the first Ctrl-C; the second one is like any other command's."""
    loop = asyncio.get_running_loop()
    interrupted = loop.create_future()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set_result(None)

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # another system, or not the main thread
        loop.add_signal_handler(signal.SIGINT, interrupt)
    while True:
        piece = asyncio.ensure_future(anext(pieces, b""))
        await asyncio.wait({piece, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not piece.done():
            piece.cancel()
            return
        if not piece.result():
            return
        yield piece.result()


async def _each(events: AsyncGenerator[StreamTranscribeResponse, None], show: Show) -> None:
    async with aclosing(events):
        async for event in events:
            show(event)


async def _on_terminal(events: AsyncGenerator[StreamTranscribeResponse, None]) -> None:
    """What may still change is one grey line below what will not."""
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
    """Final lines, and below them on a terminal how far the work is."""
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
        typer.echo(event.segment.text)  # echo flushes: whoever reads the pipe reads it now
    else:
        _warn(event)


def _as_json(event: StreamTranscribeResponse) -> None:
    typer.echo(MessageToJson(event, indent=None))


def _warn(event: StreamTranscribeResponse) -> None:
    if event.HasField("warning"):
        errors.print(f"{event.warning.message} ({event.warning.reason})", soft_wrap=True, markup=False)
