"""Converts Riva's RecognitionConfig to our options: pure functions.

What would make the answer wrong is refused; what is a hint is accepted. protos/riva says which is which for each field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from typeless_grpc.audio.joined import begins_file
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.convert import duration
from typeless_grpc.servicers.options import MAX_HOTWORD_CHARACTERS, MAX_HOTWORDS
from typeless_grpc.servicers.riva.messages import AudioEncoding

# Enough of the audio to recognize a container.
HEAD_BYTES = 12
MIN_END_SILENCE_MS, MAX_END_SILENCE_MS = 200, 5000
_DETECT = ("", "multi", "auto")
_ENGLISH = ("en", "en-us")

_RAW = {
    AudioEncoding["ENCODING_UNSPECIFIED"]: audio_pb2.AUDIO_ENCODING_PCM_S16LE,
    AudioEncoding["LINEAR_PCM"]: audio_pb2.AUDIO_ENCODING_PCM_S16LE,
    AudioEncoding["MULAW"]: audio_pb2.AUDIO_ENCODING_MULAW,
    AudioEncoding["ALAW"]: audio_pb2.AUDIO_ENCODING_ALAW,
}
_TASKS = {
    "transcribe": transcription_pb2.TASK_TRANSCRIBE,
    "translate": transcription_pb2.TASK_TRANSLATE,
}

# From the paths of our messages to those of RecognitionConfig.
_PATHS = {
    "format.encoding": "encoding",
    "format.sample_rate_hertz": "sample_rate_hertz",
    "format.channel_count": "audio_channel_count",
    "options.model": "model",
    "options.language": "language_code",
    "options.task": "custom_configuration",
    "options.hotwords": "speech_contexts",
    "options.channel_mode": "enable_separate_recognition_per_channel",
    "options.voice_activity.threshold": "endpointing_config.start_threshold",
    "options.voice_activity.end_silence": "endpointing_config.stop_history",
    "options.post_processing.mask_profanity": "profanity_filter",
    "options.word_timestamps": "enable_word_time_offsets",
}


@dataclass(frozen=True)
class ModelNames:
    """Which model a name means. models: from the operator. refuses_unknown: else other names mean the default model."""

    models: Mapping[str, str] = field(default_factory=dict)
    refuses_unknown: bool = False

    def model(self, name: str, *, is_known: bool) -> str:
        """Return the name of our model, "" for the default one. is_known: whether it is one of ours already."""
        if name in self.models:
            return self.models[name]
        return name if is_known or self.refuses_unknown else ""


@contextmanager
def riva_paths(config: str, audio: str) -> Iterator[None]:
    """Let errors name fields by their path in Riva's request. config, audio: paths of its configuration and audio."""
    try:
        yield
    except InvalidInput as error:
        raise error.moved(lambda path: _riva_path(path, config, audio)) from error


def _riva_path(path: str, config: str, audio: str) -> str:
    inner = path.removeprefix("audio.").removeprefix("config.")
    for ours, theirs in _PATHS.items():
        if inner == ours or inner.startswith((f"{ours}[", f"{ours}.")):
            return f"{config}.{theirs}"
    if path.startswith("config."):
        return f"{config}.{inner}"
    return audio if path in ("audio", "audio.content") else path


def transcription_options(
    config: Any, names: ModelNames, *, knows_model: bool
) -> transcription_pb2.TranscriptionOptions:
    """Return our options for a RecognitionConfig. Raises InvalidInput.

    knows_model: whether its model is one of ours.
    """
    if config.diarization_config.enable_speaker_diarization:
        why = "this server does not tell speakers apart"
        raise InvalidInput("config.diarization_config.enable_speaker_diarization", why, reason="NOT_SUPPORTED")
    language = config.language_code.strip()
    options = transcription_pb2.TranscriptionOptions(
        model=names.model(config.model, is_known=knows_model),
        language="" if language.lower() in _DETECT else language,
        task=_task(config.custom_configuration),
        hotwords=_phrases(config.speech_contexts),
        word_timestamps=config.enable_word_time_offsets,
    )
    if config.profanity_filter:
        options.post_processing.mask_profanity = True
    _set_endpointing(options.voice_activity, config.endpointing_config)
    return options


def audio_format(config: Any, head: bytes) -> audio_pb2.AudioFormat | None:
    """Return the format of audio that begins with head; None for a container. Raises InvalidInput."""
    if config.encoding not in AudioEncoding.values():
        raise InvalidInput("config.encoding", f"{config.encoding} is no known encoding")
    encoding = _RAW.get(config.encoding)
    names_no_format = config.encoding == AudioEncoding["ENCODING_UNSPECIFIED"] and not config.sample_rate_hertz
    if encoding is None or begins_file(head) or (names_no_format and head):
        return None
    return audio_pb2.AudioFormat(
        encoding=encoding,
        sample_rate_hertz=config.sample_rate_hertz or (0 if head else 16000),
        channel_count=config.audio_channel_count,
    )


def _task(custom: Mapping[str, str]) -> transcription_pb2.Task.ValueType:
    target = custom.get("target_language", "").strip().lower()
    if target and target not in _ENGLISH:
        why = f"'{target[:40]}' is not English, the only language that is translated into"
        raise InvalidInput("config.custom_configuration[target_language]", why, reason="NOT_SUPPORTED")
    name = custom.get("task", "translate" if target else "transcribe").strip().lower()
    if name not in _TASKS:
        raise InvalidInput("config.custom_configuration[task]", f"'{name[:40]}' is neither transcribe nor translate")
    return _TASKS[name]


def _phrases(contexts: Any) -> list[str]:
    """Return the phrases that our bounds admit: they are hints."""
    wanted = (phrase.strip() for context in contexts if context.boost >= 0 for phrase in context.phrases)
    return [phrase for phrase in wanted if 0 < len(phrase) <= MAX_HOTWORD_CHARACTERS][:MAX_HOTWORDS]


def _set_endpointing(options: transcription_pb2.VoiceActivityOptions, config: Any) -> None:
    if config.HasField("start_threshold") and 0.0 < config.start_threshold < 1.0:
        options.threshold = config.start_threshold
    if config.HasField("stop_history") and config.stop_history > 0:
        silence_ms = min(max(config.stop_history, MIN_END_SILENCE_MS), MAX_END_SILENCE_MS)
        options.end_silence.CopyFrom(duration(silence_ms / 1000))
