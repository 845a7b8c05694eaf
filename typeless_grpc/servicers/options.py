"""Parses TranscriptionOptions into the engine's options. Parsing validates: errors name the field's path.

Callers pass a path prefix ("options", "items[3].options"), because several requests contain the same message.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Mode,
    PostProcessing,
    Script,
    Task,
    VoiceActivityOptions,
)
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import transcript_pb2, transcription_pb2
from typeless_grpc.speech.transcript import OutputFormat

# Of any Duration in the options.
MAX_OPTION_S = 3600.0
MAX_PROMPT_CHARACTERS = 4096
MAX_HOTWORDS = 256
MAX_HOTWORD_CHARACTERS = 128
MAX_ALLOWED_LANGUAGES = 128
MAX_REPLACEMENTS = 256
MAX_TEMPERATURES = 10
MAX_OUTPUT_FORMATS = 16
MAX_REPLACEMENT_CHARACTERS = 256

TASKS = {
    transcription_pb2.TASK_UNSPECIFIED: Task.TRANSCRIBE,
    transcription_pb2.TASK_TRANSCRIBE: Task.TRANSCRIBE,
    transcription_pb2.TASK_TRANSLATE: Task.TRANSLATE,
}
CHUNKING = {
    transcription_pb2.CHUNKING_STRATEGY_UNSPECIFIED: Chunking.AUTO,
    transcription_pb2.CHUNKING_STRATEGY_AUTO: Chunking.AUTO,
    transcription_pb2.CHUNKING_STRATEGY_WHOLE: Chunking.WHOLE,
    transcription_pb2.CHUNKING_STRATEGY_FIXED: Chunking.FIXED,
    transcription_pb2.CHUNKING_STRATEGY_VAD: Chunking.VAD,
    transcription_pb2.CHUNKING_STRATEGY_HYBRID: Chunking.HYBRID,
}
CHANNEL_MODES = {
    transcription_pb2.CHANNEL_MODE_UNSPECIFIED: False,
    transcription_pb2.CHANNEL_MODE_MIX: False,
    transcription_pb2.CHANNEL_MODE_SEPARATE: True,
}
MODES = {
    transcription_pb2.POST_PROCESSING_MODE_UNSPECIFIED: Mode.NONE,
    transcription_pb2.POST_PROCESSING_MODE_NONE: Mode.NONE,
    transcription_pb2.POST_PROCESSING_MODE_BASIC: Mode.BASIC,
    transcription_pb2.POST_PROCESSING_MODE_STANDARD: Mode.STANDARD,
}
OUTPUT_FORMATS = {
    transcript_pb2.OUTPUT_FORMAT_TEXT: OutputFormat.TEXT,
    transcript_pb2.OUTPUT_FORMAT_SRT: OutputFormat.SRT,
    transcript_pb2.OUTPUT_FORMAT_WEBVTT: OutputFormat.WEBVTT,
    transcript_pb2.OUTPUT_FORMAT_JSON: OutputFormat.JSON,
    transcript_pb2.OUTPUT_FORMAT_TSV: OutputFormat.TSV,
}
# Regions that write Chinese in traditional characters by default (Unicode CLDR, likely subtags).
TRADITIONAL_REGIONS = frozenset({"tw", "hk", "mo"})
CHINESE = frozenset({"zh", "yue"})
# Tags of languages that Whisper knows under another code (IANA language subtag registry; only Whisper uses "jw").
ALIASES = {"nb": "no", "jv": "jw", "iw": "he", "in": "id", "fil": "tl", "cmn": "zh", "ji": "yi", "mo": "ro"}

Value = TypeVar("Value")


def decode_options(message: transcription_pb2.TranscriptionOptions, field: str) -> DecodeOptions:
    """Parse the options of a transcription, validated as far as that is possible without a model."""
    language, script = _language(message.language, f"{field}.language") if message.language else (None, None)
    allowed, allowed_script = _allowed_languages(list(message.allowed_languages), language, field)
    return DecodeOptions(
        model=message.model,
        language=language,
        task=_known(message.task, TASKS, f"{field}.task"),
        prompt=_at_most(message.prompt, MAX_PROMPT_CHARACTERS, f"{field}.prompt"),
        hotwords=_hotwords(list(message.hotwords), f"{field}.hotwords"),
        word_timestamps=message.word_timestamps,
        beam_size=_beam_size(message.decoding.beam_size, f"{field}.decoding.beam_size"),
        temperatures=_temperatures(list(message.decoding.temperatures), f"{field}.decoding.temperatures"),
        voice_activity=_voice_activity(message.voice_activity, f"{field}.voice_activity"),
        allowed_languages=allowed,
        script=script or allowed_script,
        chunking=_known(message.chunking, CHUNKING, f"{field}.chunking"),
        separate_channels=_known(message.channel_mode, CHANNEL_MODES, f"{field}.channel_mode"),
        post_processing=_post_processing(message.post_processing, f"{field}.post_processing"),
        output_formats=_output_formats(message.output_formats, f"{field}.output_formats"),
    )


def _known(value: int, table: Mapping[Any, Value], field: str) -> Value:
    """Return the value of an enum's number."""
    if value not in table:
        raise InvalidInput(field, f"{value} is not a value that is allowed here")
    return table[value]


def _language(tag: str, field: str) -> tuple[str, Script | None]:
    """Return Whisper's code for a BCP-47 tag, and the script that the tag requests.

    The code is the primary subtag. A region does not change recognition, only the script of Chinese.
    """
    primary, *rest = tag.replace("_", "-").lower().split("-")
    if not (primary.isascii() and primary.isalpha() and 2 <= len(primary) <= 3):
        raise InvalidInput(field, f"'{tag[:40]}' is not a BCP-47 language tag", reason="LANGUAGE_NOT_SUPPORTED")
    primary = ALIASES.get(primary, primary)
    requested = next((subtag for subtag in rest if len(subtag) == 4 and subtag.isalpha()), None)
    if requested is None:
        traditional = primary == "zh" and not TRADITIONAL_REGIONS.isdisjoint(rest)
        return primary, Script.TRADITIONAL if traditional else None
    script = next((one for one in Script if one.value.lower() == requested), None)
    if primary not in CHINESE or script is None:
        why = "a script can be chosen for Chinese only: zh-Hans or zh-Hant"
        raise InvalidInput(field, why, reason="LANGUAGE_NOT_SUPPORTED")
    return primary, script


def _allowed_languages(tags: list[str], language: str | None, field: str) -> tuple[tuple[str, ...], Script | None]:
    """Return Whisper's codes without duplicates, and the script that one of the tags requests."""
    field = f"{field}.allowed_languages"
    if len(tags) > MAX_ALLOWED_LANGUAGES:
        raise InvalidInput(field, f"{len(tags)} languages; at most {MAX_ALLOWED_LANGUAGES} are accepted")
    parsed = [_language(tag, f"{field}[{i}]") for i, tag in enumerate(tags)]
    codes = tuple(dict.fromkeys(code for code, _ in parsed))
    if codes and language and language not in codes:
        raise InvalidInput(field, f"the requested language '{language}' is not among them")
    return codes, next((script for _, script in parsed if script), None)


def _post_processing(message: transcription_pb2.PostProcessing, field: str) -> PostProcessing:
    return PostProcessing(
        mode=_known(message.mode, MODES, f"{field}.mode"),
        replacements=_replacements(dict(message.replacements), f"{field}.replacements"),
        mask_profanity=message.mask_profanity,
    )


def _replacements(replacements: dict[str, str], field: str) -> dict[str, str]:
    if len(replacements) > MAX_REPLACEMENTS:
        raise InvalidInput(field, f"{len(replacements)} replacements; at most {MAX_REPLACEMENTS} are accepted")
    for text in (*replacements, *replacements.values()):
        _at_most(text, MAX_REPLACEMENT_CHARACTERS, field)
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise InvalidInput(field, "one of them contains a line break or another control character")
    if not all(key.strip() for key in replacements):
        raise InvalidInput(field, "one of them has no text to replace")
    if len({" ".join(key.casefold().split()) for key in replacements}) < len(replacements):
        raise InvalidInput(field, "two of them differ only in case or spaces, which the search ignores")
    return replacements


def _output_formats(numbers: Sequence[int], field: str) -> tuple[OutputFormat, ...]:
    if len(numbers) > MAX_OUTPUT_FORMATS:
        raise InvalidInput(field, f"{len(numbers)} formats; at most {MAX_OUTPUT_FORMATS} are accepted")
    formats = tuple(_known(number, OUTPUT_FORMATS, f"{field}[{i}]") for i, number in enumerate(numbers))
    if len(set(formats)) < len(formats):
        raise InvalidInput(field, "a format is listed twice")
    return formats


def _at_most(text: str, n_characters: int, field: str) -> str:
    if len(text) > n_characters:
        raise InvalidInput(field, f"{len(text)} characters; at most {n_characters} are accepted")
    return text


def _hotwords(words: list[str], field: str) -> tuple[str, ...]:
    if len(words) > MAX_HOTWORDS:
        raise InvalidInput(field, f"{len(words)} phrases; at most {MAX_HOTWORDS} are accepted")
    for index, word in enumerate(words):
        if not word.strip():
            raise InvalidInput(f"{field}[{index}]", "is empty")
        _at_most(word, MAX_HOTWORD_CHARACTERS, f"{field}[{index}]")
    # Without duplicates: a prompt that repeats itself makes the model repeat itself, for a minute of work.
    return tuple(dict.fromkeys(word.strip() for word in words))


def _beam_size(value: int, field: str) -> int | None:
    if not 0 <= value <= 10:
        raise InvalidInput(field, f"{value} is not in 1 to 10")
    return value or None


def _temperatures(values: list[float], field: str) -> tuple[float, ...]:
    if len(values) > MAX_TEMPERATURES:
        raise InvalidInput(field, f"{len(values)} temperatures; at most {MAX_TEMPERATURES} are accepted")
    for index, value in enumerate(values):
        if not 0.0 <= value <= 1.0:
            raise InvalidInput(f"{field}[{index}]", f"{value} is not in 0 to 1")
    return tuple(round(value, 6) for value in values)


def _voice_activity(message: transcription_pb2.VoiceActivityOptions, field: str) -> VoiceActivityOptions:
    if not (0.0 <= message.threshold < 1.0):
        raise InvalidInput(f"{field}.threshold", f"{message.threshold} is not between 0 and 1")
    padding_s = _seconds(message, "speech_padding", field)
    end_silence_s = _seconds(message, "end_silence", field)
    max_utterance_s = _seconds(message, "max_utterance", field)
    if end_silence_s is not None and end_silence_s == 0:
        raise InvalidInput(f"{field}.end_silence", "must be above 0")
    if max_utterance_s is not None and not 1.0 <= max_utterance_s <= 30.0:
        raise InvalidInput(f"{field}.max_utterance", f"{max_utterance_s} s is not in 1 to 30 s")
    return VoiceActivityOptions(
        threshold=message.threshold or None,
        end_silence_s=end_silence_s,
        speech_padding_s=padding_s,
        max_utterance_s=max_utterance_s,
    )


def _seconds(message: transcription_pb2.VoiceActivityOptions, name: str, field: str) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    value: Duration = getattr(message, name)
    seconds = value.seconds + value.nanos / 1e9
    if not 0.0 <= seconds <= MAX_OPTION_S or abs(value.nanos) > 999_999_999:
        raise InvalidInput(f"{field}.{name}", f"{seconds} s is not in 0 to {MAX_OPTION_S:.0f} s")
    return seconds
