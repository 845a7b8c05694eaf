"""Every field of TranscriptionOptions through every way in: it changes what it should, and the same everywhere."""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.harness import AUDIO, Served, ServedJobs, serving, serving_jobs
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.interface import (
    Chunking,
    DecodeOptions,
    Engine,
    Mode,
    PostProcessing,
    Script,
    Task,
    VoiceActivityOptions,
)
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, jobs_pb2, transcript_pb2, transcription_pb2
from typeless_grpc.pb.v1.transcript_pb2 import Transcript

Way = Callable[[Served, bytes, transcription_pb2.TranscriptionOptions], Awaitable[Transcript]]


async def transcribe(served: Served, content: bytes, options: transcription_pb2.TranscriptionOptions) -> Transcript:
    source = audio_pb2.AudioSource(content=content)
    answer = await served.transcription.Transcribe(
        transcription_pb2.TranscribeRequest(audio=source, options=options), timeout=30
    )
    return answer.transcript


async def batch(served: Served, content: bytes, options: transcription_pb2.TranscriptionOptions) -> Transcript:
    item = transcription_pb2.BatchItem(audio=audio_pb2.AudioSource(content=content), options=options)
    answer = await served.transcription.BatchTranscribe(
        transcription_pb2.BatchTranscribeRequest(items=[item]), timeout=30
    )
    assert answer.results[0].WhichOneof("outcome") == "transcript", answer.results[0].failure
    return answer.results[0].transcript


async def batch_for_all(served: Served, content: bytes, options: transcription_pb2.TranscriptionOptions) -> Transcript:
    item = transcription_pb2.BatchItem(audio=audio_pb2.AudioSource(content=content))
    request = transcription_pb2.BatchTranscribeRequest(items=[item], options=options)
    return (await served.transcription.BatchTranscribe(request, timeout=30)).results[0].transcript


def streaming(mode: transcription_pb2.StreamMode.ValueType) -> Way:
    async def stream(served: Served, content: bytes, options: transcription_pb2.TranscriptionOptions) -> Transcript:
        requests = [
            transcription_pb2.StreamTranscribeRequest(
                config=transcription_pb2.StreamConfig(mode=mode, options=options)
            ),
            transcription_pb2.StreamTranscribeRequest(audio=content),
        ]
        responses = [one async for one in served.transcription.StreamTranscribe(iter(requests), timeout=30)]
        assert responses[-1].HasField("completed")
        return responses[-1].completed.transcript

    return stream


async def job(served: Served, content: bytes, options: transcription_pb2.TranscriptionOptions) -> Transcript:
    assert isinstance(served, ServedJobs)
    source = audio_pb2.AudioSource(content=content)
    submitted = await served.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(audio=source, options=options), timeout=30)
    watching = served.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=submitted.job.job_id), timeout=30)
    async for _ in watching:
        pass
    ended = await served.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=submitted.job.job_id), timeout=30)
    assert ended.job.state == jobs_pb2.JOB_STATE_COMPLETED, ended.job.failure
    return ended.job.transcript


WAYS: dict[str, Way] = {
    "Transcribe": transcribe,
    "BatchTranscribe": batch,
    "BatchTranscribe for all": batch_for_all,
    "LIVE stream": streaming(transcription_pb2.STREAM_MODE_LIVE),
    "FILE stream": streaming(transcription_pb2.STREAM_MODE_FILE),
    "job": job,
}
STREAMS = {"LIVE stream", "FILE stream"}
# What a stream refuses, because it needs all of the audio at once.
REFUSED_IN_STREAMS = {"chunking", "channel_mode"}


@asynccontextmanager
async def serving_for(way: str, engine: Engine, data_dir: Path, **settings: Any) -> AsyncIterator[Served]:
    """A server that has this way in."""
    around = serving_jobs(engine, data_dir, **settings) if way == "job" else serving(engine, **settings)
    async with around as served:
        yield served


SPOKEN = "Um, the the price is twenty dollars, darn it."
MONO = (AUDIO / "en_short.flac").read_bytes()
STEREO = (AUDIO / "two_speakers_stereo.flac").read_bytes()

# Field: the request's options; the engine options that they change; and how the transcript shows it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Transcript], Any], Any]] = {
    "model": ({"model": "tiny"}, {"model": "tiny"}, lambda it: it.model, "tiny"),
    "language": ({"language": "de-AT"}, {"language": "de"}, lambda it: it.language, "de"),
    "allowed_languages": (
        {"allowed_languages": ["de", "zh-Hant"]},
        {"allowed_languages": ("de", "zh"), "script": Script.TRADITIONAL},
        lambda it: it.text,
        SPOKEN,
    ),
    "task": (
        {"task": transcription_pb2.TASK_TRANSLATE},
        {"task": Task.TRANSLATE},
        lambda it: it.text,
        SPOKEN,
    ),
    "prompt": ({"prompt": "Dr Zelvari"}, {"prompt": "Dr Zelvari"}, lambda it: it.text, SPOKEN),
    "hotwords": ({"hotwords": ["Korventa"]}, {"hotwords": ("Korventa",)}, lambda it: it.text, SPOKEN),
    "word_timestamps": (
        {"word_timestamps": True},
        {"word_timestamps": True},
        lambda it: [word.text for word in it.segments[0].words],
        SPOKEN.split(),
    ),
    "chunking": (
        {"chunking": transcription_pb2.CHUNKING_STRATEGY_FIXED},
        {"chunking": Chunking.FIXED},
        lambda it: it.text,
        SPOKEN,
    ),
    "channel_mode": (
        {"channel_mode": transcription_pb2.CHANNEL_MODE_SEPARATE},
        {"separate_channels": True},
        lambda it: [segment.channel for segment in it.segments],
        [0, 1],
    ),
    "decoding": (
        {"decoding": transcription_pb2.DecodingOptions(beam_size=7, temperatures=[0.5])},
        {"beam_size": 7, "temperatures": (0.5,)},
        lambda it: it.text,
        SPOKEN,
    ),
    "voice_activity": (
        {
            "voice_activity": transcription_pb2.VoiceActivityOptions(
                threshold=0.25,
                end_silence=Duration(seconds=1),
                speech_padding=Duration(nanos=100_000_000),
                max_utterance=Duration(seconds=9),
            )
        },
        {"voice_activity": VoiceActivityOptions(0.25, 1.0, 0.1, 9.0)},
        lambda it: it.text,
        SPOKEN,
    ),
    "post_processing": (
        {
            "post_processing": transcription_pb2.PostProcessing(
                mode=transcription_pb2.POST_PROCESSING_MODE_STANDARD,
                replacements={"price": "cost"},
                mask_profanity=True,
            )
        },
        {"post_processing": PostProcessing(Mode.STANDARD, {"price": "cost"}, mask_profanity=True)},
        lambda it: (it.text, it.raw_text),
        ("The cost is $20, d*** it.", SPOKEN),
    ),
    "output_formats": (
        {"output_formats": [transcript_pb2.OUTPUT_FORMAT_TEXT, transcript_pb2.OUTPUT_FORMAT_WEBVTT]},
        {"word_timestamps": True},  # cues are timed by words; the formats are written when the text is finished
        lambda it: [one.content.split("\n")[0] for one in it.renditions],
        [SPOKEN, "WEBVTT"],
    ),
}


def test_no_field_is_left_out():
    assert set(CASES) == set(transcription_pb2.TranscriptionOptions.DESCRIPTOR.fields_by_name)


@pytest.fixture
def profane(tmp_path) -> str:
    words = tmp_path / "words.txt"
    words.write_text("darn", encoding="utf-8")
    return str(words)


def options_of(calls: Sequence[EngineCall]) -> set[str]:
    """The options that the engine was given."""
    return {repr(one.options) for one in calls}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", CASES)
async def test_a_field_has_the_same_effect_in_every_call(field: str, way: str, profane: str, tmp_path: Path):
    fields, expected, shown, value = CASES[field]
    engine = ScriptedEngine(lambda call: SPOKEN)
    content = STEREO if field == "channel_mode" else MONO
    requested = transcription_pb2.TranscriptionOptions(**fields)
    async with serving_for(way, engine, tmp_path, profanity_file=profane) as served:
        plain = await WAYS[way](served, content, transcription_pb2.TranscriptionOptions())
        n_plain = len(engine.calls)
        if way in STREAMS and field in REFUSED_IN_STREAMS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await WAYS[way](served, content, requested)
            assert CallFailed.of(caught.value).fields[0][0] == f"config.options.{field}"
            return
        transcript = await WAYS[way](served, content, requested)
    assert options_of(engine.calls[:n_plain]) == {repr(DecodeOptions())}
    assert options_of(engine.calls[n_plain:]) == {repr(DecodeOptions(**expected))}
    assert shown(transcript) == value
    if value != SPOKEN:
        assert shown(plain) != value


@pytest.mark.parametrize("way", [way for way in WAYS if way not in STREAMS])
async def test_channels_reach_the_engine_one_by_one(way: str, tmp_path: Path):
    engine = ScriptedEngine(lambda call: SPOKEN)
    options = transcription_pb2.TranscriptionOptions(channel_mode=transcription_pb2.CHANNEL_MODE_SEPARATE)
    async with serving_for(way, engine, tmp_path) as served:
        await WAYS[way](served, STEREO, options)
    left, right = engine.calls
    assert left.audio.ndim == right.audio.ndim == 1
    assert len(left.audio) == len(right.audio)
    assert (left.audio != right.audio).any()


async def test_too_many_separate_channels_are_refused_by_their_field():
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((9, 2, 16_000, 0, "NONE", ""))
        output.writeframes(bytes(2 * 9 * 16_000))
    options = transcription_pb2.TranscriptionOptions(channel_mode=transcription_pb2.CHANNEL_MODE_SEPARATE)
    audio = audio_pb2.AudioSource(content=file.getvalue())
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=audio, options=options))
    failed = CallFailed.of(caught.value)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_CHANNELS")
    assert [path for path, _ in failed.fields] == ["options.channel_mode"]
