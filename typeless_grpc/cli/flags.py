"""The flags that every command takes which transcribes, and what they ask of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from typeless_grpc.client import Options


class Format(StrEnum):
    """A file format, by the name that people know it by."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    TSV = "tsv"

    @property
    def name_in_contract(self) -> str:
        """As `Options.output_formats` has it."""
        return "webvtt" if self is Format.VTT else self.value

    @property
    def suffix(self) -> str:
        """Of a file in this format, without its dot."""
        return "txt" if self is Format.TEXT else self.value


class Task(StrEnum):
    """What becomes of the speech."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Chunking(StrEnum):
    """How long recordings are cut."""

    AUTO = "auto"
    WHOLE = "whole"
    FIXED = "fixed"
    VAD = "vad"
    HYBRID = "hybrid"


class Channels(StrEnum):
    """What becomes of several channels."""

    MIX = "mix"
    SEPARATE = "separate"


class Tidy(StrEnum):
    """How far the text is tidied."""

    NONE = "none"
    BASIC = "basic"
    STANDARD = "standard"


Files = Annotated[
    list[str],
    typer.Argument(
        help="Recordings of any format, directories of them, or patterns like 'calls/*.mp3'; pipes, too, "
        "and - is standard input."
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Model; the server's default unless set.")]
Words = Annotated[
    bool, typer.Option("--words", help="Each word with its times and confidence; with --format json, in it.")
]
Formats = Annotated[
    list[Format] | None, typer.Option("--format", "-f", help="File format; may be repeated with --output.")
]
OutputDirectory = Annotated[
    str, typer.Option("--output", "-o", help="Directory to write a file to for each recording and format.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds to wait for each call; no limit unless set.")]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON, one object for each file.")]


@dataclass(frozen=True)
class Decoding:
    """How speech becomes text, in a recording or while it is spoken."""

    language: Annotated[
        str, typer.Option("--language", "-l", help="Spoken language, en or zh-Hant; detected unless set.")
    ] = ""
    allow_language: Annotated[
        list[str] | None,
        typer.Option("--allow-language", help="Where it is detected, only one of these; may be repeated."),
    ] = None
    task: Annotated[Task, typer.Option("--task", help="Text in the language spoken, or in English.")] = Task.TRANSCRIBE
    prompt: Annotated[str, typer.Option("--prompt", help="Text to condition on: names, spelling, style.")] = ""
    hotwords: Annotated[
        list[str] | None,
        typer.Option("--hotwords", "--hotword", help="Names and phrases to expect, with commas; may be repeated."),
    ] = None
    beam_size: Annotated[
        int, typer.Option("--beam-size", min=0, max=10, help="1 to 10; the server's choice unless set.")
    ] = 0
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="0 to 1, tried in turn; may be repeated.")
    ] = None
    tidy: Annotated[
        Tidy, typer.Option("--tidy", help="basic: repeated words; standard: also fillers, and numbers as written.")
    ] = Tidy.NONE
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="FOUND=WRITTEN, whole words in any case; may be repeated.")
    ] = None
    mask_profanity: Annotated[bool, typer.Option("--mask-profanity", help="Mask profane words.")] = False

    def asked(self, model: str, *, words: bool, formats: Sequence[Format] = ()) -> Options:
        """What to ask the server for."""
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
            output_formats=[format.name_in_contract for format in formats],
        )


@dataclass(frozen=True)
class WholeDecoding(Decoding):
    """How a recording becomes text that is there as a whole."""

    chunking: Annotated[Chunking, typer.Option("--chunking", help="How long recordings are cut.")] = Chunking.AUTO
    channels: Annotated[Channels, typer.Option("--channels", help="separate: a speaker a channel, as on a call.")] = (
        Channels.MIX
    )

    def asked(self, model: str, *, words: bool, formats: Sequence[Format] = ()) -> Options:
        """What to ask the server for."""
        options = super().asked(model, words=words, formats=formats)
        return dataclasses.replace(options, chunking=self.chunking.value, channels=self.channels.value)


def _pair(text: str) -> tuple[str, str]:
    found, mark, written = text.partition("=")
    if not mark or not found.strip():
        raise typer.BadParameter(f"'{text}' is not FOUND=WRITTEN", param_hint="--replace")
    return found, written
