"""The line of each finished call, and the metrics of its audio."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import servers
from tests.harness import request, serving, serving_jobs
from tests.service.access import USER, guarded, outcome
from tests.service.streams import events, live
from tests.service.test_metrics import scrape
from tests.speech import silence, speech
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2, jobs_pb2, jobs_pb2_grpc, transcription_pb2
from typeless_grpc.telemetry import logs

METHOD = "/typeless.v1.TranscriptionService/"


class Lines(logging.Handler):
    """Keeps what would be written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.written: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(json.loads(self.format(record)))

    def of_calls(self) -> list[dict[str, Any]]:
        return [line for line in self.written if line["event"] == "call ended"]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines of this package, from DEBUG on."""
    root, ours = logging.getLogger(), logging.getLogger("typeless_grpc")
    before, level, ours_level = list(root.handlers), root.level, ours.level
    logs.configure("debug", "json")
    assert root.handlers[0].formatter is not None
    kept = Lines(root.handlers[0].formatter)
    ours.addHandler(kept)
    yield kept
    ours.removeHandler(kept)
    root.handlers[:] = before
    root.setLevel(level)
    ours.setLevel(ours_level)


async def test_a_finished_call_has_one_line_with_what_it_used(lines: Lines):
    async with serving(ScriptedEngine(lambda call: "the text")) as served:
        await served.transcription.Transcribe(request(2.0), metadata=[("x-request-id", "mine")])
    (line,) = lines.of_calls()
    assert line["method"] == f"{METHOD}Transcribe"
    assert (line["level"], line["code"], line["request_id"]) == ("info", "OK", "mine")
    assert (line["audio_s"], line["caller"]) == (2.0, "address:127.0.0.1")
    assert line["duration_s"] > 0
    assert not {"reason", "text", "jobs"} & set(line)


async def test_text_is_in_the_line_only_if_log_text_is_on(lines: Lines):
    for log_text in (False, True):
        async with serving(ScriptedEngine(lambda call: "the text"), log_text=log_text) as served:
            await served.transcription.Transcribe(request())
            await events(served, live(data=speech(1.0, 1.0, 2.0)))
    assert [line.get("text") for line in lines.of_calls()] == [None, None, "the text", "the text the text"]


async def test_a_failed_call_has_its_reason_and_a_key_its_id(lines: Lines):
    async with guarded(ScriptedEngine(lambda call: InvalidInput("audio", "is odd", reason="ODD"))) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.transcription.Transcribe(request(), metadata=[("x-api-key", USER)])
        await outcome(served, f"{METHOD}Transcribe", ("x-api-key", "wrong"))
        await outcome(served, "/grpc.health.v1.Health/Check", ("x-api-key", USER))
    failed, refused, health = lines.of_calls()
    assert (failed["code"], failed["reason"]) == ("INVALID_ARGUMENT", "ODD")
    assert failed["caller"].startswith("key:")
    assert "audio_s" not in failed
    assert (refused["code"], refused["reason"]) == ("UNAUTHENTICATED", "KEY_INVALID")
    assert "caller" not in refused
    assert (health["level"], health["code"]) == ("debug", "OK")


async def test_a_cancelled_call_has_a_line(lines: Lines):
    engine = ScriptedEngine(lambda call: "text")
    async with serving(engine) as served:
        engine.gate.clear()
        call = served.transcription.Transcribe(request())
        await engine.until(n_calls=1)
        call.cancel()
        await engine.until(n_cancelled=1)
    (line,) = lines.of_calls()
    assert line["code"] == "CANCELLED"


async def test_audio_is_counted_once_by_its_kind_of_call(tmp_path: Path, lines: Lines):
    port = servers.free_port()
    engine = ScriptedEngine(lambda call: "text")
    async with serving(engine, metrics_port=port) as served:
        await served.transcription.Transcribe(request(2.0))
        odd = audio_pb2.AudioSource(content=b"RIFF")
        items = [transcription_pb2.BatchItem(audio=one) for one in (request(1.0).audio, odd, request(3.0).audio)]
        await served.transcription.BatchTranscribe(transcription_pb2.BatchTranscribeRequest(items=items))
        await events(served, live(data=silence(0.5) + speech(1.0, 1.0)))
        seen = await scrape(port)
    kinds = {name: value for name, value in seen.items() if name.startswith("typeless_audio_seconds_total")}
    assert kinds == {
        f'typeless_audio_seconds_total{{kind="{kind}"}}': pytest.approx(seconds)
        for kind, seconds in (("transcribe", 2.0), ("batch", 4.0), ("stream", 2.5), ("job", 0.0))
    }
    assert seen['typeless_finals_total{mode="live"}'] == 1
    assert seen['typeless_final_latency_seconds_count{mode="live"}'] == 1
    assert seen['typeless_sessions_total{event="opened"}'] == 1
    assert seen["typeless_streams_open"] == 0
    assert [line["audio_s"] for line in lines.of_calls()] == pytest.approx([2.0, 4.0, 2.5])


async def test_a_submission_that_is_sent_again_counts_as_one_job(tmp_path: Path, lines: Lines):
    async with serving_jobs(ScriptedEngine(lambda call: "text"), tmp_path, max_concurrent_jobs=0) as served:
        stub = jobs_pb2_grpc.JobsServiceStub(served.channel)
        for _ in range(2):
            await stub.SubmitJob(jobs_pb2.SubmitJobRequest(audio=request().audio, request_id="one"))
    assert [line.get("jobs") for line in lines.of_calls()] == [1, None]
