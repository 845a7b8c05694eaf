"""Converts Google's RecognitionConfig, of each version, to our options: pure functions.

A field that would make the answer wrong is refused; a hint is accepted. docs/drop-in.md lists both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typeless_grpc.errors import InvalidInput, NotFound
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2
from typeless_grpc.servicers.compat.options import DeclaredAudio, Paths, phrases
from typeless_grpc.servicers.google.messages import Version

_RAW = {
    "LINEAR16": audio_pb2.AUDIO_ENCODING_PCM_S16LE,
    "MULAW": audio_pb2.AUDIO_ENCODING_MULAW,
    "ALAW": audio_pb2.AUDIO_ENCODING_ALAW,
}
_DETECT = ("", "auto", "und")
_ENGLISH = "en"

# From the paths of our messages to those of RecognitionConfig.
_PATHS_V1 = {
    "format.encoding": "encoding",
    "format.sample_rate_hertz": "sample_rate_hertz",
    "format.channel_count": "audio_channel_count",
    "options.model": "model",
    "options.language": "language_code",
    "options.allowed_languages": "alternative_language_codes",
    "options.hotwords": "adaptation",
    "options.channel_mode": "enable_separate_recognition_per_channel",
    "options.post_processing.replacements": "transcript_normalization",
    "options.post_processing.mask_profanity": "profanity_filter",
    "options.word_timestamps": "enable_word_time_offsets",
}
_PATHS_V2 = {
    "format.encoding": "explicit_decoding_config.encoding",
    "format.sample_rate_hertz": "explicit_decoding_config.sample_rate_hertz",
    "format.channel_count": "explicit_decoding_config.audio_channel_count",
    "options.model": "model",
    "options.language": "language_codes",
    "options.allowed_languages": "language_codes",
    "options.task": "translation_config.target_language",
    "options.hotwords": "adaptation",
    "options.channel_mode": "features.multi_channel_mode",
    "options.post_processing.replacements": "transcript_normalization",
    "options.post_processing.mask_profanity": "features.profanity_filter",
    "options.word_timestamps": "features.enable_word_time_offsets",
}


def of_recording(version: Version) -> Paths:
    """Return the paths in a request with a whole recording."""
    return Paths("config", "content", _PATHS_V2) if version.is_v2 else Paths("config", "audio.content", _PATHS_V1)


def of_stream(version: Version) -> Paths:
    """Return the paths in the requests of a stream."""
    names, audio = (_PATHS_V2, "audio") if version.is_v2 else (_PATHS_V1, "audio_content")
    return Paths("streaming_config.config", audio, names)


@dataclass(frozen=True)
class Wanted:
    """The content of a RecognitionConfig of any version.

    options: our options, without the model, whose name is Google's. languages: the tags of the request, unchanged.
    """

    options: transcription_pb2.TranscriptionOptions
    model: str
    audio: DeclaredAudio
    languages: tuple[str, ...]
    separates_channels: bool
    has_word_times: bool
    has_word_confidences: bool


def check_recognizer(name: str) -> None:
    """Refuse any recognizer but "projects/…/locations/…/recognizers/_". Raises InvalidInput or NotFound."""
    if not name:
        raise InvalidInput("recognizer", "is empty: use projects/PROJECT/locations/LOCATION/recognizers/_")
    if name.rpartition("/")[2] != "_":
        message = f"There is no recognizer '{name[:200]}': only '_' exists, with the configuration of each request."
        raise NotFound(message, reason="RECOGNIZER_NOT_FOUND")


def wanted(version: Version, config: Any) -> Wanted:
    """Return what a RecognitionConfig requests. Raises InvalidInput."""
    return _wanted_v2(version, config) if version.is_v2 else _wanted_v1(version, config)


def _wanted_v1(version: Version, config: Any) -> Wanted:
    _refuse(config.diarization_config.enable_speaker_diarization, "diarization_config.enable_speaker_diarization")
    if version.name == "v1p1beta1":
        _refuse(config.enable_speaker_diarization, "enable_speaker_diarization")
    _refuse(config.enable_spoken_punctuation.value, "enable_spoken_punctuation")
    _refuse(config.enable_spoken_emojis.value, "enable_spoken_emojis")
    adaptation = config.adaptation
    _refuse(adaptation.phrase_set_references, "adaptation.phrase_set_references")
    _refuse(adaptation.custom_classes, "adaptation.custom_classes")
    _refuse(adaptation.abnf_grammar.abnf_strings, "adaptation.abnf_grammar")
    hints = [(phrase, context.boost) for context in config.speech_contexts for phrase in context.phrases]
    options = _options(
        [config.language_code, *config.alternative_language_codes],
        hints=[*hints, *_hints(adaptation.phrase_sets)],
        normalization=config.transcript_normalization,
    )
    options.word_timestamps = config.enable_word_time_offsets or config.enable_word_confidence
    options.post_processing.mask_profanity = config.profanity_filter
    encoding = _known(version.enum("RecognitionConfig.AudioEncoding"), config.encoding, "encoding")
    return Wanted(
        options=options,
        model=config.model,
        audio=_audio(encoding, config.sample_rate_hertz, config.audio_channel_count, "encoding"),
        languages=(config.language_code, *config.alternative_language_codes),
        separates_channels=config.enable_separate_recognition_per_channel,
        has_word_times=config.enable_word_time_offsets,
        has_word_confidences=config.enable_word_confidence,
    )


def _wanted_v2(version: Version, config: Any) -> Wanted:
    features, explicit = config.features, config.explicit_decoding_config
    _refuse(features.HasField("diarization_config"), "features.diarization_config")
    _refuse(features.enable_spoken_punctuation, "features.enable_spoken_punctuation")
    _refuse(features.enable_spoken_emojis, "features.enable_spoken_emojis")
    _refuse(features.custom_prompt_config.custom_prompt, "features.custom_prompt_config")
    _refuse(config.adaptation.custom_classes, "adaptation.custom_classes")
    sets = config.adaptation.phrase_sets
    _refuse(any(one.phrase_set for one in sets), "adaptation.phrase_sets[].phrase_set")
    options = _options(
        list(config.language_codes),
        hints=_hints(one.inline_phrase_set for one in sets),
        normalization=config.transcript_normalization,
    )
    if target := config.translation_config.target_language:
        if target.lower().partition("-")[0] != _ENGLISH:
            why = f"'{target[:40]}' is not English, the only language that is translated into"
            raise InvalidInput("config.translation_config.target_language", why, reason="NOT_SUPPORTED")
        options.task = transcription_pb2.TASK_TRANSLATE
    options.word_timestamps = features.enable_word_time_offsets or features.enable_word_confidence
    options.post_processing.mask_profanity = features.profanity_filter
    modes = version.enum("RecognitionFeatures.MultiChannelMode")
    _known(modes, features.multi_channel_mode, "features.multi_channel_mode")
    path = "explicit_decoding_config.encoding"
    encoding = _known(version.enum("ExplicitDecodingConfig.AudioEncoding"), explicit.encoding, path)
    is_explicit = config.HasField("explicit_decoding_config")
    if is_explicit and not explicit.encoding:
        raise InvalidInput(f"config.{path}", "is required in an explicit_decoding_config")
    return Wanted(
        options=options,
        model=config.model,
        audio=_audio(encoding, explicit.sample_rate_hertz, explicit.audio_channel_count, path)
        if is_explicit
        else DeclaredAudio(None, 0, 0),
        languages=tuple(config.language_codes),
        separates_channels=bool(features.multi_channel_mode),
        has_word_times=features.enable_word_time_offsets,
        has_word_confidences=features.enable_word_confidence,
    )


def _refuse(is_wanted: object, path: str) -> None:
    if is_wanted:
        raise InvalidInput(f"config.{path}", "this server does not support it", reason="NOT_SUPPORTED")


def _known(names: Mapping[int, str], number: int, path: str) -> str:
    if number not in names:
        raise InvalidInput(f"config.{path}", f"{number} is not a value that is allowed here")
    return names[number]


def _audio(encoding: str, sample_rate_hz: int, n_channels: int, path: str) -> DeclaredAudio:
    _refuse(encoding == "SPEEX_WITH_HEADER_BYTE", path)
    names_encoding = not encoding.endswith("ENCODING_UNSPECIFIED")
    raw = _RAW.get(encoding) if names_encoding else audio_pb2.AUDIO_ENCODING_PCM_S16LE
    return DeclaredAudio(raw, sample_rate_hz, n_channels, names_encoding)


def _options(
    languages: Sequence[str], hints: Iterable[tuple[str, float]], normalization: Any
) -> transcription_pb2.TranscriptionOptions:
    named = [tag for tag in languages if tag.strip().lower() not in _DETECT]
    options = transcription_pb2.TranscriptionOptions(hotwords=phrases(hints))
    if len(named) == 1 and len(languages) == 1:
        options.language = named[0]
    elif len(named) == len(languages):
        options.allowed_languages.extend(named)
    for entry in normalization.entries:
        _refuse(entry.case_sensitive, "transcript_normalization.entries[].case_sensitive")
        options.post_processing.replacements[entry.search] = entry.replace
    return options


def _hints(phrase_sets: Iterable[Any]) -> list[tuple[str, float]]:
    """Return phrases with their boosts. Those with classes, such as "$MONTH", are not text that could be spoken."""
    return [
        (phrase.value, phrase.boost or one.boost)
        for one in phrase_sets
        for phrase in one.phrases
        if "$" not in phrase.value
    ]
