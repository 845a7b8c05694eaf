from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Mode,
    PostProcessing,
    Recognition,
    Script,
    Task,
    VoiceActivityOptions,
)
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, transcript_pb2, transcription_pb2
from typeless_grpc.servicers import convert
from typeless_grpc.servicers.options import OUTPUT_FORMATS
from typeless_grpc.speech.transcript import (
    OutputFormat,
    Rendition,
    Segment,
    Suppressed,
    SuppressionReason,
    Transcript,
    Word,
)


def options(**fields: Any) -> DecodeOptions:
    return convert.decode_options(transcription_pb2.TranscriptionOptions(**fields), "options")


def decoding(**fields: Any) -> dict[str, Any]:
    return {"decoding": transcription_pb2.DecodingOptions(**fields)}


def voice(**fields: Any) -> dict[str, Any]:
    return {"voice_activity": transcription_pb2.VoiceActivityOptions(**fields)}


def post(**fields: Any) -> dict[str, Any]:
    return {"post_processing": transcription_pb2.PostProcessing(**fields)}


def test_empty_options_leave_all_choices_to_the_engine():
    assert options() == DecodeOptions()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "tiny.en"}, DecodeOptions(model="tiny.en")),
        ({"language": "en"}, DecodeOptions(language="en")),
        ({"language": "EN-us"}, DecodeOptions(language="en")),
        ({"language": "pt_BR"}, DecodeOptions(language="pt")),
        ({"language": "yue"}, DecodeOptions(language="yue")),
        ({"language": "nb-NO"}, DecodeOptions(language="no")),
        ({"language": "jv"}, DecodeOptions(language="jw")),
        ({"language": "cmn-Hant"}, DecodeOptions(language="zh", script=Script.TRADITIONAL)),
        ({"hotwords": ["coast", " coast", "sea"]}, DecodeOptions(hotwords=("coast", "sea"))),
        ({"task": transcription_pb2.TASK_TRANSCRIBE}, DecodeOptions()),
        ({"task": transcription_pb2.TASK_TRANSLATE}, DecodeOptions(task=Task.TRANSLATE)),
        ({"prompt": "p" * 4096}, DecodeOptions(prompt="p" * 4096)),
        ({"hotwords": [" Korventa ", "你好"]}, DecodeOptions(hotwords=("Korventa", "你好"))),
        ({"word_timestamps": True}, DecodeOptions(word_timestamps=True)),
        (decoding(beam_size=10), DecodeOptions(beam_size=10)),
        (decoding(temperatures=[0, 0.2, 1]), DecodeOptions(temperatures=(0.0, 0.2, 1.0))),
        (voice(threshold=0.5), DecodeOptions(voice_activity=VoiceActivityOptions(threshold=0.5))),
        (
            voice(
                end_silence=Duration(nanos=250_000_000), speech_padding=Duration(), max_utterance=Duration(seconds=30)
            ),
            DecodeOptions(voice_activity=VoiceActivityOptions(None, 0.25, 0.0, 30.0)),
        ),
        ({"chunking": transcription_pb2.CHUNKING_STRATEGY_AUTO}, DecodeOptions()),
        ({"chunking": transcription_pb2.CHUNKING_STRATEGY_WHOLE}, DecodeOptions(chunking=Chunking.WHOLE)),
        ({"chunking": transcription_pb2.CHUNKING_STRATEGY_FIXED}, DecodeOptions(chunking=Chunking.FIXED)),
        ({"chunking": transcription_pb2.CHUNKING_STRATEGY_VAD}, DecodeOptions(chunking=Chunking.VAD)),
        ({"chunking": transcription_pb2.CHUNKING_STRATEGY_HYBRID}, DecodeOptions(chunking=Chunking.HYBRID)),
        ({"language": "zh"}, DecodeOptions(language="zh")),
        ({"language": "zh-Hans-TW"}, DecodeOptions(language="zh", script=Script.SIMPLIFIED)),
        ({"language": "zh-Hant"}, DecodeOptions(language="zh", script=Script.TRADITIONAL)),
        ({"language": "zh-TW"}, DecodeOptions(language="zh", script=Script.TRADITIONAL)),
        ({"allowed_languages": ["en", "es-MX", "EN"]}, DecodeOptions(allowed_languages=("en", "es"))),
        (
            {"allowed_languages": ["en", "zh-Hant"]},
            DecodeOptions(allowed_languages=("en", "zh"), script=Script.TRADITIONAL),
        ),
        ({"language": "en", "allowed_languages": ["en"]}, DecodeOptions(language="en", allowed_languages=("en",))),
        ({"channel_mode": transcription_pb2.CHANNEL_MODE_MIX}, DecodeOptions()),
        ({"channel_mode": transcription_pb2.CHANNEL_MODE_SEPARATE}, DecodeOptions(separate_channels=True)),
        (post(mode=transcription_pb2.POST_PROCESSING_MODE_NONE), DecodeOptions()),
        (
            post(mode=transcription_pb2.POST_PROCESSING_MODE_BASIC),
            DecodeOptions(post_processing=PostProcessing(Mode.BASIC)),
        ),
        (
            post(mode=transcription_pb2.POST_PROCESSING_MODE_STANDARD, replacements={"a": ""}, mask_profanity=True),
            DecodeOptions(post_processing=PostProcessing(Mode.STANDARD, {"a": ""}, mask_profanity=True)),
        ),
        (
            {"output_formats": [transcript_pb2.OUTPUT_FORMAT_TSV, transcript_pb2.OUTPUT_FORMAT_SRT]},
            DecodeOptions(output_formats=(OutputFormat.TSV, OutputFormat.SRT)),
        ),
    ],
    ids=str,
)
def test_options_are_parsed(fields: dict[str, Any], expected: DecodeOptions):
    assert options(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"language": "e"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"language": "english"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"language": "e1"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"language": "ру"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"language": "-en"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"task": 9}, "options.task", "INVALID_FIELD"),
        ({"task": -1}, "options.task", "INVALID_FIELD"),
        ({"prompt": "p" * 4097}, "options.prompt", "INVALID_FIELD"),
        ({"hotwords": ["a", " "]}, "options.hotwords[1]", "INVALID_FIELD"),
        ({"hotwords": ["a" * 129]}, "options.hotwords[0]", "INVALID_FIELD"),
        ({"hotwords": ["a"] * 257}, "options.hotwords", "INVALID_FIELD"),
        (decoding(beam_size=-1), "options.decoding.beam_size", "INVALID_FIELD"),
        (decoding(beam_size=11), "options.decoding.beam_size", "INVALID_FIELD"),
        (decoding(temperatures=[0, 1.1]), "options.decoding.temperatures[1]", "INVALID_FIELD"),
        (decoding(temperatures=[-0.1]), "options.decoding.temperatures[0]", "INVALID_FIELD"),
        (decoding(temperatures=[math.nan]), "options.decoding.temperatures[0]", "INVALID_FIELD"),
        (decoding(temperatures=[0.1] * 11), "options.decoding.temperatures", "INVALID_FIELD"),
        (voice(threshold=1.0), "options.voice_activity.threshold", "INVALID_FIELD"),
        (voice(threshold=-0.1), "options.voice_activity.threshold", "INVALID_FIELD"),
        (voice(threshold=math.nan), "options.voice_activity.threshold", "INVALID_FIELD"),
        (voice(end_silence=Duration()), "options.voice_activity.end_silence", "INVALID_FIELD"),
        (voice(end_silence=Duration(seconds=3601)), "options.voice_activity.end_silence", "INVALID_FIELD"),
        (voice(speech_padding=Duration(seconds=-1)), "options.voice_activity.speech_padding", "INVALID_FIELD"),
        (voice(speech_padding=Duration(nanos=-1)), "options.voice_activity.speech_padding", "INVALID_FIELD"),
        (voice(max_utterance=Duration(seconds=31)), "options.voice_activity.max_utterance", "INVALID_FIELD"),
        (voice(max_utterance=Duration()), "options.voice_activity.max_utterance", "INVALID_FIELD"),
        ({"language": "sr-Latn"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"language": "zh-Latn"}, "options.language", "LANGUAGE_NOT_SUPPORTED"),
        ({"allowed_languages": ["en", ""]}, "options.allowed_languages[1]", "LANGUAGE_NOT_SUPPORTED"),
        ({"allowed_languages": ["en"] * 129}, "options.allowed_languages", "INVALID_FIELD"),
        ({"language": "de", "allowed_languages": ["en"]}, "options.allowed_languages", "INVALID_FIELD"),
        ({"chunking": 17}, "options.chunking", "INVALID_FIELD"),
        ({"channel_mode": 3}, "options.channel_mode", "INVALID_FIELD"),
        (post(mode=4), "options.post_processing.mode", "INVALID_FIELD"),
        (post(replacements={" ": "x"}), "options.post_processing.replacements", "INVALID_FIELD"),
        (post(replacements={"a": "x\ny"}), "options.post_processing.replacements", "INVALID_FIELD"),
        (post(replacements={"a": "x" * 257}), "options.post_processing.replacements", "INVALID_FIELD"),
        (
            post(replacements={"New York": "x", "new  york": "y"}),
            "options.post_processing.replacements",
            "INVALID_FIELD",
        ),
        (
            post(replacements={str(i): "x" for i in range(257)}),
            "options.post_processing.replacements",
            "INVALID_FIELD",
        ),
        ({"output_formats": [1, 0]}, "options.output_formats[1]", "INVALID_FIELD"),
        ({"output_formats": [9]}, "options.output_formats[0]", "INVALID_FIELD"),
        ({"output_formats": [2, 2]}, "options.output_formats", "INVALID_FIELD"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_invalid_option_is_refused_with_its_path(fields: dict[str, Any], path: str, reason: str):
    with pytest.raises(InvalidInput) as caught:
        options(**fields)
    assert [violation.field for violation in caught.value.violations] == [path]
    assert caught.value.reason == reason


# Every field that TranscriptionOptions has; a new one fails here until it is read above.
READ = {
    "model",
    "language",
    "allowed_languages",
    "task",
    "prompt",
    "hotwords",
    "word_timestamps",
    "chunking",
    "channel_mode",
    "decoding",
    "voice_activity",
    "post_processing",
    "output_formats",
}


def test_no_option_is_accepted_and_ignored():
    assert set(transcription_pb2.TranscriptionOptions.DESCRIPTOR.fields_by_name) == READ


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (audio_pb2.AudioFormat(), AudioFormat()),
        (
            audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_MULAW, sample_rate_hertz=8000, channel_count=2),
            AudioFormat(Encoding.MULAW, 8000, 2),
        ),
    ],
    ids=["unset", "raw"],
)
def test_a_format_is_parsed(message: audio_pb2.AudioFormat, expected: AudioFormat):
    assert convert.audio_format(message, "audio.format") == expected


def test_every_encoding_of_the_contract_is_known():
    assert set(convert.ENCODINGS) == set(audio_pb2.AudioEncoding.values())


def test_an_unknown_encoding_is_refused():
    with pytest.raises(InvalidInput) as caught:
        convert.audio_format(audio_pb2.AudioFormat(encoding=99), "items[2].audio.format")  # type: ignore[arg-type]
    assert caught.value.violations[0].field == "items[2].audio.format.encoding"


@pytest.mark.parametrize(
    ("source", "path", "reason"),
    [
        (audio_pb2.AudioSource(), "audio.content", "AUDIO_MISSING"),
        (audio_pb2.AudioSource(content=b""), "audio.content", "AUDIO_MISSING"),
        (audio_pb2.AudioSource(uri=""), "audio.uri", "AUDIO_MISSING"),
    ],
    ids=["unset", "empty", "empty uri"],
)
def test_missing_audio_is_refused(source: audio_pb2.AudioSource, path: str, reason: str):
    with pytest.raises(InvalidInput) as caught:
        convert.audio_source(source, "audio")
    assert (caught.value.violations[0].field, caught.value.reason) == (path, reason)


def test_audio_is_bytes_or_a_uri():
    assert convert.audio_source(audio_pb2.AudioSource(content=b"RIFF"), "audio") == b"RIFF"
    assert convert.audio_source(audio_pb2.AudioSource(uri="upload://u1"), "audio") == "upload://u1"


# ---- back: a transcript in a message is the transcript ----------------------------------------------------------

MICROSECONDS = st.integers(min_value=0, max_value=86_400_000_000).map(lambda n: n / 1e6)
# What a float32 on the wire can hold exactly.
SHARES = st.floats(min_value=0, max_value=1, width=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = st.builds(Word, TEXTS, MICROSECONDS, MICROSECONDS, SHARES)
SEGMENTS = st.builds(
    Segment,
    start_s=MICROSECONDS,
    end_s=MICROSECONDS,
    text=TEXTS,
    language=TEXTS,
    confidence=SHARES,
    no_speech_probability=SHARES,
    words=st.lists(WORDS, max_size=3).map(tuple),
    channel=st.integers(0, 7),
)
TRANSCRIPTS = st.builds(
    Transcript,
    segments=st.lists(SEGMENTS, max_size=3).map(tuple),
    suppressed=st.lists(st.builds(Suppressed, SEGMENTS, st.sampled_from(SuppressionReason)), max_size=2).map(tuple),
    language=st.sampled_from(["en", "zh", ""]),
    language_probability=SHARES,
    audio_s=MICROSECONDS,
    speech_s=MICROSECONDS,
    model=TEXTS,
    raw_text=TEXTS,
    renditions=st.lists(st.builds(Rendition, st.sampled_from(OutputFormat), TEXTS), max_size=2).map(tuple),
)


def seconds(message: Duration) -> float:
    return message.ToMicroseconds() / 1e6


def read_segment(message: transcript_pb2.Segment) -> Segment:
    return Segment(
        start_s=seconds(message.start_offset),
        end_s=seconds(message.end_offset),
        text=message.text,
        language=message.language,
        confidence=message.confidence,
        no_speech_probability=message.no_speech_probability,
        words=tuple(
            Word(word.text, seconds(word.start_offset), seconds(word.end_offset), word.confidence)
            for word in message.words
        ),
        channel=message.channel,
    )


@given(TRANSCRIPTS)
def test_a_transcript_survives_the_wire(value: Transcript):
    sent = convert.transcript(value).SerializeToString()
    message = transcript_pb2.Transcript.FromString(sent)
    reasons = {number: reason for reason, number in convert.SUPPRESSION_REASONS.items()}
    assert value == Transcript(
        segments=tuple(read_segment(one) for one in message.segments),
        suppressed=tuple(Suppressed(read_segment(one.segment), reasons[one.reason]) for one in message.suppressed),
        language=message.language,
        language_probability=message.language_probability,
        audio_s=seconds(message.audio_duration),
        speech_s=seconds(message.speech_duration),
        model=message.model,
        raw_text=message.raw_text,
        renditions=tuple(Rendition(OUTPUT_FORMATS[one.format], one.content) for one in message.renditions),
    )
    assert message.text == value.text
    assert [segment.index for segment in message.segments] == list(range(len(value.segments)))


def test_every_reason_to_suppress_has_a_name_on_the_wire():
    assert set(convert.SUPPRESSION_REASONS) == set(SuppressionReason)


def test_stats_have_the_speed():
    nothing = Transcript((), (), "en", 1.0, audio_s=30.0, speech_s=0.0, model="base")
    stats = convert.stats(Recognition(nothing, queue_s=0.5, n_chunks=4), processing_s=10.0)
    assert stats.realtime_factor == 3.0
    assert (seconds(stats.processing_time), seconds(stats.queue_time)) == (10.0, 0.5)
    assert stats.chunk_count == 4


@pytest.mark.parametrize("used", Chunking)
def test_stats_name_the_strategy_that_was_used(used: Chunking):
    nothing = Transcript((), (), "en", 1.0, audio_s=30.0, speech_s=0.0, model="base")
    stats = convert.stats(Recognition(nothing, queue_s=0.0, n_chunks=1, chunking=used), processing_s=1.0)
    assert transcription_pb2.ChunkingStrategy.Name(stats.chunking) == f"CHUNKING_STRATEGY_{used.name}"
