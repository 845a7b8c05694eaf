from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from typeless_grpc.client import CallFailed, Options, RawFormat, batch_request, transcribe_request
from typeless_grpc.pb.v1 import audio_pb2, transcript_pb2, transcription_pb2


class Ended:
    """The end of a call, as gRPC reports it."""

    def __init__(
        self, *details: Message, trailers: tuple[tuple[str, Any], ...] = (), text: str | None = "It is wrong."
    ) -> None:
        self._text = text
        packed = [any_pb2.Any() for _ in details]
        for holder, detail in zip(packed, details, strict=True):
            holder.Pack(detail)
        status = status_pb2.Status(code=3, message="It is wrong.", details=packed)
        self._trailers = (*trailers, ("grpc-status-details-bin", status.SerializeToString())) if details else trailers

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str | None:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._trailers or None


def test_every_detail_of_an_error_is_read():
    violation = error_details_pb2.BadRequest.FieldViolation(field="options.language", description="is not known")
    failed = CallFailed.of(
        Ended(
            error_details_pb2.ErrorInfo(reason="LANGUAGE_NOT_SUPPORTED", domain="typeless"),
            error_details_pb2.BadRequest(field_violations=[violation]),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
            trailers=(("x-request-id", "call-7"),),
        )
    )
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.reason == "LANGUAGE_NOT_SUPPORTED"
    assert failed.fields == (("options.language", "is not known"),)
    assert failed.retry_after_s == 1.5
    assert failed.request_id == "call-7"
    assert str(failed) == "It is wrong (LANGUAGE_NOT_SUPPORTED)"


def test_an_error_without_details_has_a_code():
    failed = CallFailed.of(Ended(text=None))
    assert (failed.reason, failed.fields, failed.retry_after_s, failed.request_id) == ("", (), None, "")
    assert str(failed) == " (INVALID_ARGUMENT)"


def test_unknown_details_are_ignored():
    assert CallFailed.of(Ended(duration_pb2.Duration(seconds=1))).reason == ""


def test_options_convert_to_the_message():
    options = Options(
        model="base",
        language="de",
        task="translate",
        prompt="p",
        hotwords=["h"],
        word_timestamps=True,
        beam_size=5,
        temperatures=[0.0],
        allowed_languages=["de", "en"],
        chunking="fixed",
        channels="separate",
        post_processing="standard",
        replacements={"a": "b"},
        mask_profanity=True,
        output_formats=["srt", "webvtt"],
        speech_threshold=0.25,
        end_silence_s=0.5,
        speech_padding_s=0.0,
        max_utterance_s=12,
    )
    assert options.message() == transcription_pb2.TranscriptionOptions(
        model="base",
        language="de",
        task=transcription_pb2.TASK_TRANSLATE,
        prompt="p",
        hotwords=["h"],
        word_timestamps=True,
        decoding=transcription_pb2.DecodingOptions(beam_size=5, temperatures=[0.0]),
        allowed_languages=["de", "en"],
        chunking=transcription_pb2.CHUNKING_STRATEGY_FIXED,
        channel_mode=transcription_pb2.CHANNEL_MODE_SEPARATE,
        post_processing=transcription_pb2.PostProcessing(
            mode=transcription_pb2.POST_PROCESSING_MODE_STANDARD, replacements={"a": "b"}, mask_profanity=True
        ),
        output_formats=[transcript_pb2.OUTPUT_FORMAT_SRT, transcript_pb2.OUTPUT_FORMAT_WEBVTT],
        voice_activity=transcription_pb2.VoiceActivityOptions(
            threshold=0.25,
            end_silence=duration_pb2.Duration(nanos=500_000_000),
            speech_padding=duration_pb2.Duration(),
            max_utterance=duration_pb2.Duration(seconds=12),
        ),
    )


def test_every_option_of_the_protos_can_be_set():
    message = Options(
        model="m",
        language="l",
        prompt="p",
        hotwords=["h"],
        word_timestamps=True,
        beam_size=1,
        allowed_languages=["l"],
        chunking="vad",
        channels="separate",
        mask_profanity=True,
        output_formats=["text"],
        end_silence_s=1.0,
    ).message()
    assert {field.name for field, _ in message.ListFields()} == set(message.DESCRIPTOR.fields_by_name)


def test_default_options_leave_the_message_empty_except_for_the_task():
    assert {field.name for field, _ in Options().message().ListFields()} <= {"task", "decoding"}


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le", "mulaw", "alaw"])
def test_every_raw_encoding_has_a_name(encoding: str):
    message = RawFormat(encoding, 8000, 2).message()
    assert audio_pb2.AudioEncoding.Name(message.encoding) == f"AUDIO_ENCODING_{encoding.upper()}"
    assert (message.sample_rate_hertz, message.channel_count) == (8000, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RawFormat("mp3", 8000).message(),
        lambda: Options(task="sing").message(),
        lambda: Options(chunking="no").message(),
        lambda: Options(channels="left").message(),
        lambda: Options(post_processing="nice").message(),
        lambda: Options(output_formats=["doc"]).message(),
    ],
)
def test_an_unknown_name_is_an_error_before_any_call(wrong: Any):
    with pytest.raises(ValueError):
        wrong()


def test_the_items_of_a_batch_have_their_paths_as_default_names(tmp_path: Any):
    path = tmp_path / "a.wav"
    path.write_bytes(b"riff")
    request = batch_request([path, b"data"], Options(language="de"))
    assert [(item.name, item.audio.content) for item in request.items] == [(str(path), b"riff"), ("", b"data")]
    assert request.options.language == "de"
    assert [item.name for item in batch_request([path, b"x"], Options(), names=["1", "2"]).items] == ["1", "2"]


def test_audio_is_a_path_or_bytes(tmp_path: Any):
    path = tmp_path / "a.wav"
    path.write_bytes(b"riff")
    for audio in (path, str(path), b"riff"):
        assert transcribe_request(audio, Options()).audio.content == b"riff"
    with pytest.raises(FileNotFoundError):
        transcribe_request(tmp_path / "missing.wav", Options())
