"""Traces of the real program, exported to a collector of this test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tests.collector import Collector, Exported, collecting
from tests.harness import AUDIO
from tests.relay import proxied
from tests.servers import free_port
from typeless_grpc.client import AsyncClient, CallFailed, Client, Options, RawFormat, StreamOptions
from typeless_grpc.client.channels import async_channel
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc

pytestmark = pytest.mark.model
PIPE = asyncio.subprocess.PIPE
SPEECH = AUDIO / "en_two_sentences.flac"
TRACER = TracerProvider().get_tracer("the test")
SERVER, CONSUMER = 2, 5  # kinds of spans, in OTLP
TRANSCRIBE = "typeless.v1.TranscriptionService/Transcribe"
ENGINE = {"queue", "inference", "encode", "decode"}


@dataclass(frozen=True)
class TracedProcess:
    """A process of ours. log: the file of its log lines, which are JSON."""

    process: asyncio.subprocess.Process
    port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]

    async def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(self.process.wait(), 60) == 0


@asynccontextmanager
async def running(command: str, directory: Path, **variables: str) -> AsyncIterator[TracedProcess]:
    """`typeless serve` or `typeless worker`, with stores in a directory, until it has printed its first line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TYPELESS_", "OTEL_"))}
    port, log = free_port(), directory / f"{command}-{free_port()}.log"
    settings = {
        "TYPELESS_MODEL": "tiny.en",
        "TYPELESS_PORT": str(port),
        "TYPELESS_RATE_LIMIT_ENABLED": "false",
        "TYPELESS_DATABASE_URL": f"sqlite:///{directory}/jobs.db",
        "TYPELESS_STORAGE_URL": str(directory / "files"),
    }
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "typeless",
            command,
            stdout=PIPE,
            stderr=errors,
            env=kept | settings | {"OTEL_BSP_SCHEDULE_DELAY": "200"} | variables,
        )
    try:
        assert process.stdout
        async with asyncio.timeout(60):
            assert await process.stdout.readline(), log.read_text("utf-8")
        yield TracedProcess(process, port, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TracedProcess]:
    directory = tmp_path_factory.mktemp("traced")
    async with running("serve", directory, OTEL_EXPORTER_OTLP_ENDPOINT=collector.target) as one:
        yield one


@contextmanager
def traced() -> Iterator[str]:
    """A current span of the test's own; its trace."""
    with TRACER.start_as_current_span("test") as span:
        yield trace.format_trace_id(span.get_span_context().trace_id)


def by_name(spans: list[Exported], name: str) -> list[Exported]:
    return [span for span in spans if span.name == name]


def one(spans: list[Exported], name: str) -> Exported:
    (found,) = by_name(spans, name)
    return found


def batches_of(collector: Collector, call: Exported) -> list[Exported]:
    """The batches that link to a call."""
    spans = collector.until(lambda all: any(call.id in span.links for span in all if span.name == "batch"))
    return [span for span in spans if span.name == "batch" and call.id in span.links]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_is_one_trace_from_the_client_through_queue_encoder_and_decoder_to_the_text(
    server: TracedProcess, collector: Collector
):
    options = Options(mask_profanity=True)
    async with AsyncClient(server.target) as client:
        with traced() as trace_id:
            await client.transcribe(SPEECH, options)
    spans = collector.trace(trace_id, TRANSCRIBE, *ENGINE, "audio", "text")
    call = one(spans, TRANSCRIBE)
    assert call.kind == SERVER
    assert call.parent_id  # the client's span
    assert call.resource["service.name"] == "typeless-grpc"
    expected = {"rpc.system": "grpc", "rpc.service": TRANSCRIBE.split("/")[0], "rpc.method": "Transcribe"}
    assert expected.items() <= call.attributes.items()
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert call.attributes["typeless.audio_s"] > 4
    queue, inference = by_name(spans, "queue")[0], by_name(spans, "inference")[0]
    audio, text = one(spans, "audio"), one(spans, "text")
    assert {span.parent_id for span in (audio, queue, inference, text)} == {call.span_id}
    assert {span.parent_id for span in spans if span.name in ("encode", "decode")} == {
        span.span_id for span in by_name(spans, "inference")
    }
    # All of it within the call, each after the other.
    assert (
        call.start_ns
        <= audio.start_ns
        <= audio.end_ns
        <= queue.start_ns
        <= queue.end_ns
        == inference.start_ns
        < inference.end_ns
        <= call.end_ns
    )
    encode, decode = by_name(spans, "encode")[0], by_name(spans, "decode")[0]
    slack_ns = 2_000_000  # clocks are converted from one to the other
    assert inference.start_ns - slack_ns <= encode.start_ns < decode.start_ns <= inference.end_ns
    # The batch: it links to the call, and the window to it.
    (batch, *_) = batches_of(collector, call)
    assert batch.id in inference.links
    assert batch.trace_id != trace_id
    assert (batch.start_ns, batch.end_ns) == (inference.start_ns, inference.end_ns)
    # The log.
    lines = [line for line in server.lines() if line.get("event") == "call ended" and line.get("trace_id") == trace_id]
    assert [line["request_id"] for line in lines] == [call.attributes["typeless.request_id"]]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_batch_of_several_calls_links_to_all_of_them(server: TracedProcess, collector: Collector):
    trace_ids = []

    async def transcribe(client: AsyncClient) -> None:
        with traced() as trace_id:
            trace_ids.append(trace_id)
            await client.transcribe(SPEECH)

    async with AsyncClient(server.target) as client:
        await asyncio.gather(*(transcribe(client) for _ in range(12)))
    calls = [one(collector.trace(trace_id, TRANSCRIBE, "inference"), TRANSCRIBE) for trace_id in trace_ids]
    batches = {batch.id: batch for call in calls for batch in batches_of(collector, call)}
    assert max(len(set(batch.links)) for batch in batches.values()) > 1
    for trace_id, call in zip(trace_ids, calls, strict=True):
        for window in by_name(collector.trace(trace_id), "inference"):
            (link,) = window.links
            assert call.id in batches[link].links


@pytest.mark.asyncio(loop_scope="module")
async def test_a_batch_call_is_one_trace(server: TracedProcess, collector: Collector):
    async with AsyncClient(server.target) as client:
        with traced() as trace_id:
            await client.batch([SPEECH, SPEECH])
    method = "typeless.v1.TranscriptionService/BatchTranscribe"
    spans = collector.trace(trace_id, method, *ENGINE)
    call = one(spans, method)
    assert {span.parent_id for span in spans if span.name in ("queue", "inference")} == {call.span_id}
    assert len(by_name(spans, "inference")) >= 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stream_is_one_trace_with_its_finals(server: TracedProcess, collector: Collector):
    data = (AUDIO / "en_short_s16le_16k.raw").read_bytes() + bytes(32_000)
    async with AsyncClient(server.target) as client:
        with traced() as trace_id:
            events = client.stream([data, data], StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000)))
            finals = [event async for event in events if event.WhichOneof("event") == "segment"]
    method = "typeless.v1.TranscriptionService/StreamTranscribe"
    spans = collector.trace(trace_id, method, *ENGINE, "final")
    assert len(by_name(spans, "final")) == len(finals)
    assert {span.parent_id for span in by_name(spans, "final")} == {one(spans, method).span_id}
    assert {span.attributes["typeless.mode"] for span in by_name(spans, "final")} == {"live"}
    lanes = {span.attributes["typeless.lane"] for span in by_name(spans, "inference")}
    assert "live_final" in lanes


@pytest.mark.asyncio(loop_scope="module")
async def test_a_refused_call_is_a_span_with_its_reason(server: TracedProcess, collector: Collector):
    async with AsyncClient(server.target, retry=False) as client:
        with traced() as trace_id, pytest.raises(CallFailed):
            await client.transcribe(b"no audio")
    call = one(collector.trace(trace_id, TRANSCRIBE), TRANSCRIBE)
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert call.attributes["error.type"].startswith("AUDIO_")
    assert not call.is_error  # the caller's fault


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("header", ["", "00-xyz", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
async def test_a_malformed_traceparent_begins_a_new_trace(header: str, server: TracedProcess, collector: Collector):
    async with async_channel(server.target) as channel:
        stub = server_pb2_grpc.ServerServiceStub(channel)
        call = stub.GetServerInfo(
            server_pb2.GetServerInfoRequest(), metadata=[("traceparent", header), ("x-request-id", f"bad{len(header)}")]
        )
        await call
    spans = collector.until(
        lambda all: [span for span in all if span.attributes.get("typeless.request_id") == f"bad{len(header)}"]
    )
    (found,) = [span for span in spans if span.attributes.get("typeless.request_id") == f"bad{len(header)}"]
    assert found.parent_id == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trace_that_its_caller_does_not_sample_is_not_exported(server: TracedProcess, collector: Collector):
    trace_id = "ab" * 16
    async with async_channel(server.target) as channel:
        await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
            server_pb2.GetServerInfoRequest(), metadata=[("traceparent", f"00-{trace_id}-{'cd' * 8}-00")]
        )
    with traced() as later:
        async with AsyncClient(server.target) as client:
            await client.transcribe(SPEECH)
    collector.trace(later, TRANSCRIBE)
    assert [span for span in collector.spans if span.trace_id == trace_id] == []


def test_the_client_for_threads_continues_the_trace_too(server: TracedProcess, collector: Collector):
    with traced() as trace_id, Client(server.target) as client:
        client.transcribe(SPEECH)
    assert one(collector.trace(trace_id, TRANSCRIBE), TRANSCRIBE).parent_id


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("is_worker", [False, True], ids=["in the server", "in a worker"])
async def test_a_job_is_in_the_trace_of_its_submission_wherever_it_runs(
    is_worker: bool, collector: Collector, tmp_path: Path
):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.target, "TYPELESS_JOB_CHUNK_S": "5"}
    if is_worker:
        variables["TYPELESS_MAX_CONCURRENT_JOBS"] = "0"
    async with running("serve", tmp_path, **variables) as server, AsyncClient(server.target) as client:
        with traced() as trace_id:
            job = await client.jobs.submit(AUDIO / "en_minute.ogg")
        if is_worker:
            del variables["TYPELESS_MAX_CONCURRENT_JOBS"]
            async with running("worker", tmp_path, OTEL_SERVICE_NAME="the-worker", **variables) as worker:
                done = await client.jobs.wait(job.job_id)
                await worker.stop()
        else:
            done = await client.jobs.wait(job.job_id)
        await server.stop()
    method = "typeless.v1.JobsService/SubmitJob"
    spans = collector.trace(trace_id, method, "job queue", "job", "job chunk", *ENGINE)
    submission, run = one(spans, method), one(spans, "job")
    assert run.resource["service.name"] == ("the-worker" if is_worker else "typeless-grpc")
    assert (run.parent_id, run.links, run.kind) == (submission.span_id, (submission.id,), CONSUMER)
    assert one(spans, "job queue").parent_id == submission.span_id
    assert run.attributes["typeless.job_id"] == job.job_id
    assert (run.attributes["typeless.outcome"], run.attributes["typeless.attempt"]) == ("completed", 1)
    chunks = by_name(spans, "job chunk")
    assert [chunk.attributes["typeless.chunk"] for chunk in chunks] == list(range(done.stats.chunk_count))
    assert len(chunks) > 1
    assert {chunk.parent_id for chunk in chunks} == {run.span_id}
    windows = by_name(spans, "inference")
    assert {window.parent_id for window in windows} == {chunk.span_id for chunk in chunks}


async def test_an_unreachable_collector_delays_no_call_and_no_end(tmp_path: Path):
    async with running("serve", tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as server:
        async with AsyncClient(server.target) as client:
            started_s = time.monotonic()
            for _ in range(3):
                await client.transcribe(SPEECH)
            assert time.monotonic() - started_s < 20
        started_s = time.monotonic()
        await server.stop()
        assert time.monotonic() - started_s < 12  # 5 s of it for the last spans


async def test_the_last_spans_are_exported_at_the_end(tmp_path: Path):
    with collecting() as collector:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.target, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with running("serve", tmp_path, **variables) as server:
            async with AsyncClient(server.target) as client:
                await client.transcribe(SPEECH)
            assert collector.spans == []
            await server.stop()
        assert TRANSCRIBE in {span.name for span in collector.spans}


async def test_the_standard_variables_are_honoured(tmp_path: Path):
    with collecting() as collector:
        variables = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.target,
            "OTEL_SERVICE_NAME": "speech",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
        async with running("serve", tmp_path, **variables) as server:
            async with AsyncClient(server.target) as client:
                await client.transcribe(SPEECH)
                with traced() as trace_id:
                    await client.transcribe(SPEECH)
            await server.stop()
        assert {span.trace_id for span in collector.spans if span.name != "batch"} == {trace_id}
        resource = collector.spans[0].resource
        assert (resource["service.name"], resource["deployment.environment"]) == ("speech", "test")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_resumed_stream_stays_in_its_trace(server: TracedProcess, collector: Collector):
    data = (AUDIO / "en_short_s16le_16k.raw").read_bytes() + bytes(32_000)
    is_open = asyncio.Event()
    async with proxied(server.target) as proxy, AsyncClient(proxy.target) as client:

        async def source() -> AsyncIterator[bytes]:
            yield data
            await is_open.wait()
            proxy.cut()
            yield data

        with traced() as trace_id:
            events = client.stream(source(), StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000)))
            kinds = []
            async for event in events:
                kinds.append(event.WhichOneof("event"))
                if kinds[-1] == "segment":
                    is_open.set()
        assert kinds[-1] == "completed"
    method = "typeless.v1.TranscriptionService/StreamTranscribe"
    spans = collector.until(
        lambda all: len([span for span in all if span.trace_id == trace_id and span.name == method]) == 2
    )
    calls = sorted(
        (span for span in spans if span.trace_id == trace_id and span.name == method), key=lambda s: s.start_ns
    )
    assert [call.attributes["rpc.grpc.status_code"] for call in calls] == [1, 0]  # CANCELLED, as it broke, and OK
