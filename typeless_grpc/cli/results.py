"""The results of commands: text on stdout, files in a directory, and a table of all recordings."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from typeless_grpc.cli.files import name_of, stems, write_whole
from typeless_grpc.cli.flags import Format
from typeless_grpc.cli.output import complain, drop_stdout, print_table
from typeless_grpc.pb.v1.transcript_pb2 import Transcript
from typeless_grpc.pb.v1.transcription_pb2 import ProcessingStats


@dataclass(frozen=True)
class Outcome:
    """The result of one recording. answer: the whole response, None if the call failed.

    error: a line for the user, also if a transcript could not be saved. reason: a short name of the error.
    """

    file: Path
    transcript: Transcript | None = None
    stats: ProcessingStats | None = None
    answer: Message | None = None
    error: str = ""
    reason: str = ""


@dataclass
class Results:
    """Prints or saves outcomes in the order of the files.

    formats: those requested. directory: None prints. words: print words if there is no format. as_json: print whole
    responses instead of text.
    """

    files: Sequence[Path]
    formats: Sequence[Format]
    directory: Path | None
    words: bool = False
    as_json: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    is_stdout_lost: bool = False  # writing to standard output failed

    def add(self, outcome: Outcome) -> None:
        """Print or save the outcome of the next recording."""
        if outcome.transcript is not None and self.directory is not None:
            try:
                self._save(stems(self.files)[len(self.outcomes)], outcome.transcript)
            except OSError as error:
                why = f"{name_of(error.filename or self.directory)} cannot be written: {error.strerror}"
                outcome = replace(outcome, error=why, reason="not written")
        self.outcomes.append(outcome)
        if outcome.error:
            complain(f"{name_of(outcome.file)}: {outcome.error}")
        if outcome.transcript is not None and not self.is_stdout_lost:
            self._print(outcome)

    def _save(self, stem: str, transcript: Transcript) -> None:
        """Write the files of a transcript, each atomically. Raises OSError, also rather than overwrite a recording."""
        for format, rendition in zip(self.formats, transcript.renditions, strict=True):
            file = Path(self.directory or "") / f"{stem}.{format.suffix}"
            if any(_is_same(file, recording) for recording in self.files):
                raise OSError(errno.EEXIST, "it is one of the recordings", str(file))
            write_whole(file, rendition.content)

    def _print(self, outcome: Outcome) -> None:
        """Print one result. A lost standard output is an error only if no files are written."""
        try:
            if self.as_json and outcome.answer is not None:
                typer.echo(MessageToJson(outcome.answer, indent=None))
            elif self.directory is None and outcome.transcript is not None:
                if len(self.files) > 1:
                    typer.echo(f"# {name_of(outcome.file)}")
                typer.echo(text_of(outcome.transcript, words=self.words), nl=False)
        except OSError as error:
            if self.directory is None:
                raise  # the other results could not be printed either
            self.is_stdout_lost = True
            drop_stdout()
            complain(f"typeless: standard output cannot be written: {error.strerror}; the files are written")

    @property
    def n_failed(self) -> int:
        """The number of recordings without a transcript, or with one that could not be saved."""
        return sum(bool(outcome.error) for outcome in self.outcomes)

    def summary(self) -> None:
        """Print a table to stderr if there are several recordings."""
        if len(self.outcomes) < 2:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("file", overflow="fold")
        for title in ("language", "audio", "took", "speed", "outcome"):
            justify: Literal["left", "right"] = "right" if title in ("audio", "took", "speed") else "left"
            table.add_column(title, justify=justify, no_wrap=True)
        for outcome in self.outcomes:
            table.add_row(*map(Text, _row(outcome)))  # Text: a name is not markup
        n_done = len(self.outcomes) - self.n_failed
        print_table(table, to_stderr=True)
        complain(f"{n_done} transcribed, {self.n_failed} failed")


def text_of(transcript: Transcript, *, words: bool) -> str:
    """Return the text to print, with its last line break: the first format, the words, or the plain text."""
    if transcript.renditions:
        return transcript.renditions[0].content
    return (_words(transcript) if words else "\n".join(segment.text for segment in transcript.segments)) + "\n"


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        return False


def _row(outcome: Outcome) -> tuple[str, ...]:
    name = name_of(outcome.file)
    if outcome.transcript is None or outcome.stats is None:
        return name, "", "", "", "", outcome.reason or "failed"
    audio_s, took_s = seconds(outcome.transcript.audio_duration), seconds(outcome.stats.processing_time)
    speed = f"{audio_s / took_s:.1f}x" if took_s else ""
    what = outcome.reason or "done"
    return name, outcome.transcript.language, f"{audio_s:.1f} s", f"{took_s:.1f} s", speed, what


def _words(transcript: Transcript) -> str:
    return "\n".join(
        f"{_clock(word.start_offset)}  {_clock(word.end_offset)}  {word.confidence:4.2f}  {word.text}"
        for segment in transcript.segments
        for word in segment.words
    )


def seconds(duration: Duration) -> float:
    """Convert a Duration to seconds."""
    return duration.seconds + duration.nanos / 1e9


def _clock(offset: Duration) -> str:
    return f"{int(seconds(offset) // 60):02d}:{seconds(offset) % 60:06.3f}"
