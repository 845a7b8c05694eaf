"""What commands make of transcripts: text on stdout, files in a directory, a table of what became of each recording."""

from __future__ import annotations

import errno
import sys
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
from typeless_grpc.cli.output import drop_stdout, errors, print_table
from typeless_grpc.pb.v1.transcript_pb2 import Transcript
from typeless_grpc.pb.v1.transcription_pb2 import ProcessingStats


@dataclass(frozen=True)
class Outcome:
    """What became of one recording. answer: the server's whole answer, None where it failed.

    error: a line for people, also where a transcript could not be saved; reason: the word that names it.
    """

    file: Path
    transcript: Transcript | None = None
    stats: ProcessingStats | None = None
    answer: Message | None = None
    error: str = ""
    reason: str = ""


@dataclass
class Results:
    """Takes outcomes in order, and prints or saves them.

    formats: as asked of the server. directory: None prints. words: print each where no format is asked for.
    as_json: print the whole answers in place of their text.
    """

    files: Sequence[Path]
    formats: Sequence[Format]
    directory: Path | None
    words: bool = False
    as_json: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    is_unread: bool = False  # standard output cannot be written any more

    def add(self, outcome: Outcome) -> None:
        """Print or save the next recording's outcome."""
        if outcome.transcript is not None and self.directory is not None:
            try:
                self._save(stems(self.files)[len(self.outcomes)], outcome.transcript)
            except OSError as error:
                why = f"{name_of(error.filename or self.directory)} cannot be written: {error.strerror}"
                outcome = replace(outcome, error=why, reason="not written")
        self.outcomes.append(outcome)
        if outcome.error:
            errors.print(f"{name_of(outcome.file)}: {outcome.error}", soft_wrap=True, markup=False)
        if outcome.transcript is not None and not self.is_unread:
            self._print(outcome)

    def _save(self, stem: str, transcript: Transcript) -> None:
        """Write its files, each as a whole or not at all. Raises OSError."""
        for format, rendition in zip(self.formats, transcript.renditions, strict=True):
            write_whole(Path(self.directory or "") / f"{stem}.{format.suffix}", rendition.content)

    def _print(self, outcome: Outcome) -> None:
        try:
            if sys.stdout is None:  # typer would pass it over
                raise OSError(errno.EBADF, "it is closed")
            if self.as_json and outcome.answer is not None:
                typer.echo(MessageToJson(outcome.answer, indent=None))
            elif self.directory is None and outcome.transcript is not None:
                if len(self.files) > 1:
                    typer.echo(f"# {name_of(outcome.file)}")
                typer.echo(text_of(outcome.transcript, words=self.words), nl=False)
        except OSError as error:
            if self.directory is None:
                raise  # nobody gets what is not done yet
            self.is_unread = True
            drop_stdout()
            errors.print(f"typeless: standard output cannot be written: {error.strerror}; files are", markup=False)

    @property
    def n_failed(self) -> int:
        """Recordings without a transcript, or whose transcript could not be saved."""
        return sum(bool(outcome.error) for outcome in self.outcomes)

    def summary(self) -> None:
        """A table on stderr, where there is more than one recording."""
        if len(self.outcomes) < 2:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("file", overflow="fold")
        for title in ("language", "audio", "took", "speed", "outcome"):
            justify: Literal["left", "right"] = "right" if title in ("audio", "took", "speed") else "left"
            table.add_column(title, justify=justify, no_wrap=True)
        for outcome in self.outcomes:
            table.add_row(*map(Text, _row(outcome)))  # a name is no markup
        n_done = len(self.outcomes) - self.n_failed
        print_table(table, to_stderr=True)
        errors.print(f"{n_done} transcribed, {self.n_failed} failed", markup=False)


def text_of(transcript: Transcript, *, words: bool) -> str:
    """What is printed of a transcript, to its last line break: its first file format, its words, or its text."""
    if transcript.renditions:
        return transcript.renditions[0].content
    return (_words(transcript) if words else "\n".join(segment.text for segment in transcript.segments)) + "\n"


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
    """A Duration as a number."""
    return duration.seconds + duration.nanos / 1e9


def _clock(offset: Duration) -> str:
    return f"{int(seconds(offset) // 60):02d}:{seconds(offset) % 60:06.3f}"
