"""The flags that every command takes which transcribes, and what they ask of the server."""

from __future__ import annotations

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
    list[str], typer.Argument(help="Recordings of any format, directories of them, or patterns like 'calls/*.mp3'.")
]
Local = Annotated[bool, typer.Option("--local", help="Start a server for this command alone.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Model; the server's default unless set.")]
Language = Annotated[str, typer.Option("--language", "-l", help="Spoken language, en or zh-Hant; detected unless set.")]
AllowedLanguage = Annotated[
    list[str] | None,
    typer.Option("--allow-language", help="Where it is detected, only one of these; may be repeated."),
]
TaskFlag = Annotated[Task, typer.Option("--task", help="Text in the language spoken, or in English.")]
Prompt = Annotated[str, typer.Option("--prompt", help="Text to condition on: names, spelling, style.")]
Hotwords = Annotated[
    list[str] | None,
    typer.Option("--hotwords", "--hotword", help="Names and phrases to expect, with commas; may be repeated."),
]
BeamSize = Annotated[int, typer.Option("--beam-size", min=0, max=10, help="1 to 10; the server's choice unless set.")]
Temperature = Annotated[
    list[float] | None, typer.Option("--temperature", help="0 to 1, tried in turn; may be repeated.")
]
ChunkingFlag = Annotated[Chunking, typer.Option("--chunking", help="How long recordings are cut.")]
ChannelsFlag = Annotated[Channels, typer.Option("--channels", help="separate: a speaker a channel, as on a call.")]
TidyFlag = Annotated[
    Tidy, typer.Option("--tidy", help="basic: repeated words; standard: also fillers, and numbers as written.")
]
Replace = Annotated[
    list[str] | None, typer.Option("--replace", help="FOUND=WRITTEN, whole words in any case; may be repeated.")
]
MaskProfanity = Annotated[bool, typer.Option("--mask-profanity", help="Mask profane words.")]
Formats = Annotated[
    list[Format] | None, typer.Option("--format", "-f", help="File format; may be repeated with --output.")
]
OutputDirectory = Annotated[
    str, typer.Option("--output", "-o", help="Directory to write a file to for each recording and format.")
]
Words = Annotated[
    bool, typer.Option("--words", help="Each word with its times and confidence; with --format json, in it.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds to wait for each call; no limit unless set.")]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON, one object for each file.")]


def asked(
    *,
    model: str,
    language: str,
    allow_language: list[str] | None,
    task: Task,
    prompt: str,
    hotwords: list[str] | None,
    words: bool,
    beam_size: int,
    temperature: list[float] | None,
    chunking: Chunking,
    channels: Channels,
    tidy: Tidy,
    replace: list[str] | None,
    mask_profanity: bool,
    formats: list[Format],
) -> Options:
    """The flags as options."""
    return Options(
        model=model,
        language=language,
        allowed_languages=allow_language or (),
        task=task.value,
        prompt=prompt,
        hotwords=[word.strip() for row in hotwords or () for word in row.split(",") if word.strip()],
        word_timestamps=words,
        beam_size=beam_size,
        temperatures=temperature or (),
        chunking=chunking.value,
        channels=channels.value,
        post_processing=tidy.value,
        replacements=dict(_pair(one) for one in replace or ()),
        mask_profanity=mask_profanity,
        output_formats=[format.name_in_contract for format in formats],
    )


def _pair(text: str) -> tuple[str, str]:
    found, mark, written = text.partition("=")
    if not mark or not found.strip():
        raise typer.BadParameter(f"'{text}' is not FOUND=WRITTEN", param_hint="--replace")
    return found, written
