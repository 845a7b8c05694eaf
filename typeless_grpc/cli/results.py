"""What commands make of transcripts: text on stdout, files in a directory, a table of what became of each recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Table

from typeless_grpc.cli.files import stems
from typeless_grpc.cli.flags import Format
from typeless_grpc.cli.output import errors
from typeless_grpc.pb.v1.transcript_pb2 import Transcript
from typeless_grpc.pb.v1.transcription_pb2 import ProcessingStats


@dataclass(frozen=True)
class Outcome:
    """What became of one recording. answer: the server's whole answer, None where it failed.

    error: a line for people; reason: the word that names it.
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

    def add(self, outcome: Outcome) -> None:
        """Print or save the next recording's outcome."""
        stem = stems(self.files)[len(self.outcomes)]
        self.outcomes.append(outcome)
        if outcome.transcript is None:
            errors.print(f"{outcome.file}: {outcome.error}", soft_wrap=True, markup=False)
            return
        if self.directory is not None:
            for format, rendition in zip(self.formats, outcome.transcript.renditions, strict=True):
                (self.directory / f"{stem}.{format.suffix}").write_text(rendition.content, encoding="utf-8")
        if self.as_json and outcome.answer is not None:
            typer.echo(MessageToJson(outcome.answer, indent=None))
        elif self.directory is None:
            self._print(outcome.file, outcome.transcript)

    def _print(self, file: Path, transcript: Transcript) -> None:
        if len(self.files) > 1:
            typer.echo(f"# {file}")
        typer.echo(text_of(transcript, words=self.words), nl=False)

    @property
    def n_failed(self) -> int:
        """Recordings without a transcript."""
        return sum(outcome.transcript is None for outcome in self.outcomes)

    def summary(self) -> None:
        """A table on stderr, where there is more than one recording."""
        if len(self.outcomes) < 2:
            return
        table = Table(box=None, pad_edge=False)
        for title in ("file", "language", "audio", "took", "speed", "outcome"):
            table.add_column(title, justify="right" if title in ("audio", "took", "speed") else "left", overflow="fold")
        for outcome in self.outcomes:
            table.add_row(*_row(outcome))
        n_done = len(self.outcomes) - self.n_failed
        errors.print(table)
        errors.print(f"{n_done} transcribed, {self.n_failed} failed", markup=False)


def text_of(transcript: Transcript, *, words: bool) -> str:
    """What is printed of a transcript, to its last line break: its first file format, its words, or its text."""
    if transcript.renditions:
        return transcript.renditions[0].content
    return (_words(transcript) if words else "\n".join(segment.text for segment in transcript.segments)) + "\n"


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.transcript is None or outcome.stats is None:
        return str(outcome.file), "", "", "", "", outcome.reason or "failed"
    audio_s, took_s = seconds(outcome.transcript.audio_duration), seconds(outcome.stats.processing_time)
    speed = f"{audio_s / took_s:.1f}x" if took_s else ""
    return str(outcome.file), outcome.transcript.language, f"{audio_s:.1f} s", f"{took_s:.1f} s", speed, "done"


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
