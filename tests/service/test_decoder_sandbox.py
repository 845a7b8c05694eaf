"""A decoder that fails, fails its own call, stream or job, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import AUDIO, REPOSITORY, serving, serving_jobs
from tests.service import streams, test_jobs
from tests.service.test_transcribe import refused
from typeless_grpc.audio.decoders import Decoders, sandboxed
from typeless_grpc.audio.sandbox.processes import DecoderProcesses, SandboxOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2

BROKEN = REPOSITORY / "tests" / "unit" / "audio" / "sandbox" / "broken_decoder.py"
GOOD = (AUDIO / "en_short.webm").read_bytes()
CONTAINER = audio_pb2.AudioFormat()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    options = SandboxOptions(memory_bytes=64 << 20, cpu_s=1, stall_s=60.0)
    with closing(DecoderProcesses(options, program=[str(BROKEN)])) as processes:
        processes.start()
        yield sandboxed(processes)


def recording(content: bytes) -> transcription_pb2.TranscribeRequest:
    return transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=content))


@pytest.mark.parametrize("act", ["CRASH", "HANG", "GROW"])
async def test_a_decoder_that_fails_fails_its_own_call(act: str, decoders: Decoders):
    async with serving(ScriptedEngine(lambda call: "fine"), decoders=decoders) as served:
        failure = await refused(served.transcription.Transcribe(recording(act.encode())))
        assert (failure.code.name, failure.reason) == ("INVALID_ARGUMENT", "DECODER_FAILED")
        assert [field for field, _ in failure.fields] == ["audio.content"]
        assert failure.retry_after_s is None
        assert (await served.transcription.Transcribe(recording(GOOD))).transcript.text == "fine"


async def test_an_item_of_a_batch_fails_alone(decoders: Decoders):
    items = [
        transcription_pb2.BatchItem(name=name, audio=audio_pb2.AudioSource(content=content))
        for name, content in (("bad", b"CRASH"), ("good", GOOD))
    ]
    async with serving(ScriptedEngine(lambda call: "fine"), decoders=decoders) as served:
        answer = await served.transcription.BatchTranscribe(transcription_pb2.BatchTranscribeRequest(items=items))
    bad, good = answer.results
    assert (bad.failure.reason, good.transcript.text) == ("DECODER_FAILED", "fine")
    assert bad.failure.message.startswith("items[0].audio.content: ")


async def test_a_decoder_that_fails_fails_its_own_stream(decoders: Decoders):
    async with serving(ScriptedEngine(lambda call: "fine"), decoders=decoders) as served:
        failure = await streams.refused(served, streams.live(data=b"CRASH " + bytes(4000), format=CONTAINER))
        assert (failure.code.name, failure.reason) == ("INVALID_ARGUMENT", "DECODER_FAILED")
        found = await streams.events(served, streams.live(streams.END, data=GOOD, format=CONTAINER))
    assert found[-1].HasField("completed")
    assert [one.segment.text for one in found if one.HasField("segment")] == ["fine"]


async def test_a_decoder_that_fails_fails_its_own_job_at_once(decoders: Decoders, tmp_path: Path):
    async with serving_jobs(ScriptedEngine(lambda call: "fine"), tmp_path, decoders=decoders) as served:
        bad, good = [
            await test_jobs.submitted(served, audio=audio_pb2.AudioSource(content=content))
            for content in (b"CRASH", GOOD)
        ]
        failed = (await test_jobs.watched(served, bad.job_id))[-1].job
        completed = (await test_jobs.watched(served, good.job_id))[-1].job
    assert (failed.state, failed.attempt) == (test_jobs.FAILED, 1)
    assert (failed.failure.reason, failed.failure.HasField("retry_delay")) == ("DECODER_FAILED", False)
    assert completed.transcript.text == "fine"
