"""The flags of every command that transcribes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from typeless_grpc.client import Options

MAX_TIMEOUT_S = 1_000_000  # 11 days; gRPC treats far larger numbers as a deadline that has passed


class Format(StrEnum):
    """A file format, by its common name."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    TSV = "tsv"

    @property
    def proto_name(self) -> str:
        """The name in `Options.output_formats`."""
        return "webvtt" if self is Format.VTT else self.value

    @property
    def suffix(self) -> str:
        """The suffix of its files, without the dot."""
        return "txt" if self is Format.TEXT else self.value


class Task(StrEnum):
    """Transcribe in the spoken language, or translate into English."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Chunking(StrEnum):
    """How to cut long recordings into chunks."""

    AUTO = "auto"
    WHOLE = "whole"
    FIXED = "fixed"
    VAD = "vad"
    HYBRID = "hybrid"


class Channels(StrEnum):
    """Mix the channels, or transcribe each on its own."""

    MIX = "mix"
    SEPARATE = "separate"


class Tidy(StrEnum):
    """How much to edit the text."""

    NONE = "none"
    BASIC = "basic"
    STANDARD = "standard"


def _positive(seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds <= MAX_TIMEOUT_S:
        raise typer.BadParameter(f"must be more than 0 and at most {MAX_TIMEOUT_S}")
    return seconds


Files = Annotated[
    list[str],
    typer.Argument(
        help="Recordings in any format, directories, patterns like 'calls/*.mp3', pipes, or - for standard input."
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Model; the server's default if not set.")]
Words = Annotated[
    bool,
    typer.Option("--words", help="Show each word with times and confidence; with --format, in the file."),
]
Formats = Annotated[list[Format] | None, typer.Option("--format", "-f", help="File format; repeatable with --output.")]
OutputDirectory = Annotated[
    str, typer.Option("--output", "-o", help="Write files to this directory, one for each recording and format.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", callback=_positive, metavar="SECONDS", help="Time limit of a call; none by default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print whole responses as JSON, one line for each file.")]


@dataclass(frozen=True)
class Decoding:
    """The decoding options of recordings and streams."""

    language: Annotated[
        str, typer.Option("--language", "-l", help="Spoken language, such as en or zh-Hant; detected by default.")
    ] = ""
    allow_language: Annotated[
        list[str] | None,
        typer.Option("--allow-language", help="Detect only among these languages; repeatable."),
    ] = None
    task: Annotated[Task, typer.Option("--task", help="Text in the spoken language, or in English.")] = Task.TRANSCRIBE
    prompt: Annotated[str, typer.Option("--prompt", help="Context for the model: names, spelling, style.")] = ""
    hotwords: Annotated[
        list[str] | None,
        typer.Option("--hotwords", "--hotword", help="Names and phrases to expect, separated by commas; repeatable."),
    ] = None
    beam_size: Annotated[
        int,
        typer.Option(
            "--beam-size",
            min=0,
            max=10,
            show_default=False,
            help="Beam size, 1 to 10; 0, the default, is the server's choice.",
        ),
    ] = 0
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="Temperature, 0 to 1; repeat it for fallbacks.")
    ] = None
    tidy: Annotated[
        Tidy,
        typer.Option("--tidy", help="basic: remove repeated words; standard: also remove fillers, write figures."),
    ] = Tidy.NONE
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="FOUND=WRITTEN: replace whole words, in any case; repeatable.")
    ] = None
    mask_profanity: Annotated[bool, typer.Option("--mask-profanity", help="Mask profane words.")] = False

    def to_options(self, model: str, *, words: bool, formats: Sequence[Format] = ()) -> Options:
        """Convert to the options of the client."""
        return Options(
            model=model,
            language=self.language,
            allowed_languages=self.allow_language or (),
            task=self.task.value,
            prompt=self.prompt,
            hotwords=[word.strip() for row in self.hotwords or () for word in row.split(",") if word.strip()],
            word_timestamps=words,
            beam_size=self.beam_size,
            temperatures=self.temperature or (),
            post_processing=self.tidy.value,
            replacements=dict(_pair(one) for one in self.replace or ()),
            mask_profanity=self.mask_profanity,
            output_formats=[format.proto_name for format in formats],
        )


@dataclass(frozen=True)
class WholeDecoding(Decoding):
    """The decoding options of whole recordings."""

    chunking: Annotated[Chunking, typer.Option("--chunking", help="How to cut long recordings.")] = Chunking.AUTO
    channels: Annotated[
        Channels, typer.Option("--channels", help="separate: each channel on its own, as for phone calls.")
    ] = Channels.MIX

    def to_options(self, model: str, *, words: bool, formats: Sequence[Format] = ()) -> Options:
        """Convert to the options of the client."""
        options = super().to_options(model, words=words, formats=formats)
        return dataclasses.replace(options, chunking=self.chunking.value, channels=self.channels.value)


def _pair(text: str) -> tuple[str, str]:
    found, mark, written = text.partition("=")
    if not mark or not found.strip():
        raise typer.BadParameter(f"'{text}' is not FOUND=WRITTEN", param_hint="--replace")
    return found, written
