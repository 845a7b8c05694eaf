"""Converts Riva's RecognitionConfig to our options: pure functions.

What would make the answer wrong is refused; what is a hint is accepted. protos/riva says which is which for each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.compat.options import DeclaredAudio, Paths, phrases
from typeless_grpc.servicers.convert import duration
from typeless_grpc.servicers.riva.messages import AudioEncoding

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

OF_RECORDING = Paths("config", "audio", _PATHS)
OF_STREAM = Paths("streaming_config.config", "audio_content", _PATHS)


def transcription_options(config: Any, model: str) -> transcription_pb2.TranscriptionOptions:
    """Return our options for a RecognitionConfig. model: ours for its model. Raises InvalidInput."""
    if config.diarization_config.enable_speaker_diarization:
        why = "this server does not tell speakers apart"
        raise InvalidInput("config.diarization_config.enable_speaker_diarization", why, reason="NOT_SUPPORTED")
    language = config.language_code.strip()
    options = transcription_pb2.TranscriptionOptions(
        model=model,
        language="" if language.lower() in _DETECT else language,
        task=_task(config.custom_configuration),
        hotwords=phrases((phrase, context.boost) for context in config.speech_contexts for phrase in context.phrases),
        word_timestamps=config.enable_word_time_offsets,
    )
    if config.profanity_filter:
        options.post_processing.mask_profanity = True
    _set_endpointing(options.voice_activity, config.endpointing_config)
    return options


def declared_audio(config: Any) -> DeclaredAudio:
    """Return what a RecognitionConfig says about its audio. Raises InvalidInput."""
    if config.encoding not in AudioEncoding.values():
        raise InvalidInput("config.encoding", f"{config.encoding} is no known encoding")
    return DeclaredAudio(
        encoding=_RAW.get(config.encoding),
        sample_rate_hz=config.sample_rate_hertz,
        n_channels=config.audio_channel_count,
        names_encoding=config.encoding != AudioEncoding["ENCODING_UNSPECIFIED"],
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


def _set_endpointing(options: transcription_pb2.VoiceActivityOptions, config: Any) -> None:
    if config.HasField("start_threshold") and 0.0 < config.start_threshold < 1.0:
        options.threshold = config.start_threshold
    if config.HasField("stop_history") and config.stop_history > 0:
        silence_ms = min(max(config.stop_history, MIN_END_SILENCE_MS), MAX_END_SILENCE_MS)
        options.end_silence.CopyFrom(duration(silence_ms / 1000))
