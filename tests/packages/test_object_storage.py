"""Servers that share an S3 server and a database: uploads, jobs and streams, and an S3 server that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import Served, ServedJobs, serving_jobs
from tests.packages.s3 import BUCKET, S3Server, environment, s3_server
from tests.relay import proxied
from tests.service.streams import audio, config, is_kind, reads
from tests.service.test_hand_over import resumed, two_servers
from tests.service.test_stream_resume import RAW, recognized
from tests.silence import SilentProxy
from tests.speech import BYTES_PER_S, silence, speech
from typeless_grpc.client import AsyncClient, CallFailed, Jobs, Options, RetryPolicy, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput, SourceUnavailable, TypelessError
from typeless_grpc.pb.v1 import jobs_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse
from typeless_grpc.stores import files
from typeless_grpc.stores.files import Files

pytestmark = [pytest.mark.packages, pytest.mark.timeout(120)]
STORAGE = f"s3://{BUCKET}/typeless"
TALK = silence(0.3) + speech(*[0.7, 0.9] * 8)
SLOW_S = 2.0  # of each answer of a slow object store
LANGUAGE = {"options": {"language": "en"}}


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path) as server:
        use(monkeypatch, **environment(server.port))
        yield server


def use(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@asynccontextmanager
async def two_workers(directory: Path, **settings: Any) -> AsyncIterator[tuple[ServedJobs, ServedJobs]]:
    """Servers that share the object store and a database. Only the second runs jobs."""
    shared = {"storage_url": STORAGE, "database_url": f"sqlite:///{directory}/jobs.db"}
    async with AsyncExitStack() as stack:
        both = [
            serving_jobs(ScriptedEngine(recognized), directory / name, **shared | own | settings)
            for name, own in (("a", {"max_concurrent_jobs": 0}), ("b", {"job_poll_s": 0.05}))
        ]
        yield await stack.enter_async_context(both[0]), await stack.enter_async_context(both[1])


def ours(s3: S3Server) -> list[str]:
    """Return what the object store has, but the id of the storage."""
    names = [str(path.relative_to(s3.objects / "typeless")) for path in s3.files()]
    return [name for name in names if name != "store-id"]


async def test_an_upload_here_is_a_job_there_and_nothing_is_left_of_either(s3: S3Server, tmp_path: Path):
    async with two_workers(tmp_path) as (first, second), AsyncClient(first.target) as here:
        uploaded = await here.jobs.upload(TALK)
        async with AsyncClient(second.target) as there:
            job = await there.jobs.submit(uploaded.uri, raw_format=RAW)
            job = await there.jobs.wait(job.job_id)
        assert job.state == jobs_pb2.JOB_STATE_COMPLETED
        found = await here.jobs.get(job.job_id)  # read by the server that did not run it
        assert found.audio_duration.ToTimedelta().total_seconds() == len(TALK) / BYTES_PER_S
        assert any(name.startswith(f"jobs/{job.job_id}/chunks/") for name in ours(s3))
        await here.jobs.delete(job.job_id)
        assert not [name for name in ours(s3) if name.startswith("jobs/")]  # the upload stays for its time


async def test_a_stream_survives_its_server_with_its_audio_in_an_object_store(s3: S3Server, tmp_path: Path):
    options = StreamOptions(Options(language="en"), RAW)
    async with two_servers(tmp_path, storage_url=STORAGE) as (first, second):
        async with AsyncClient(second.target) as client:
            whole = [event async for event in client.stream([TALK], options)][-1].completed.transcript
        got = await begun(first)
        await first.server.stop()
        assert [name for name in ours(s3) if name.startswith(f"streams/{got[0].started.session_id}/")]
        acknowledged, rest = await resumed(second, got, TALK)
    assert acknowledged > 0
    assert rest[-1].completed.transcript == whole


async def begun(served: Served) -> list[StreamTranscribeResponse]:
    """Begin a stream, and read until its second final."""
    call = served.transcription.StreamTranscribe()
    for request in [config(**LANGUAGE), *audio(TALK[:200_000])]:
        await call.write(request)
    got = await reads(call, is_kind("segment"))
    got += await reads(call, is_kind("segment"))
    call.cancel()
    return got


@pytest.mark.parametrize("damage", ["missing", "half", "changed"])
async def test_damaged_audio_of_a_stream_is_an_error_and_no_text(s3: S3Server, damage: str, tmp_path: Path):
    async with two_servers(tmp_path, storage_url=STORAGE) as (first, second):
        got = await begun(first)
        await first.server.stop()
        (part, *_) = [path for path in s3.files() if path.parent.name == got[0].started.session_id]
        spoil(part, damage)
        call = second.transcription.StreamTranscribe()
        await call.write(config(format=None, resume_session_id=got[0].started.session_id, resume_after_sequence=0))
        events: list[StreamTranscribeResponse] = []

        async def read() -> None:
            while True:
                events.append(await call.read())

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read()
        failed = CallFailed.of(caught.value)
    assert failed.reason == "AUDIO_DAMAGED"
    assert "again" in failed.message
    segments = [event.segment for event in events if event.HasField("segment")]
    final = [event.segment for event in got if event.HasField("segment")]
    assert segments[: len(final)] == final
    assert len(segments) < 6  # those that were stored, of six that the audio has


def spoil(part: Path, damage: str) -> None:
    data = part.read_bytes()
    match damage:
        case "missing":
            part.unlink()
        case "half":
            part.write_bytes(data[: len(data) // 2])
        case "changed":
            part.write_bytes(bytes(len(data)))


@pytest.mark.parametrize("damage", ["missing", "half"])
@pytest.mark.parametrize("kind", ["upload", "job"])
async def test_damaged_audio_of_a_job_is_an_error_and_no_text(s3: S3Server, kind: str, damage: str, tmp_path: Path):
    async with two_workers(tmp_path, max_concurrent_jobs=0) as (first, _), AsyncClient(first.target) as client:
        if kind == "upload":
            job = await client.jobs.submit((await client.jobs.upload(TALK)).uri, raw_format=RAW)
        else:
            job = await client.jobs.submit(TALK, raw_format=RAW)
        (stored,) = [path for path in s3.files() if path.name != "store-id"]
        spoil(stored, damage)
        run = first.runs.claim(job.job_id, "w")
        assert run is not None

        def read() -> None:
            with first.runs.open_audio(run.job) as file:
                while file.read(1 << 16):
                    pass

        with pytest.raises(TypelessError) as caught:
            await asyncio.to_thread(read)
    is_missing = (kind, damage) == ("job", "missing")
    assert caught.value.reason == ("AUDIO_NOT_FOUND" if is_missing else "AUDIO_DAMAGED")


async def test_streams_wait_for_an_object_store_that_is_down_and_uploads_are_refused(s3: S3Server, tmp_path: Path):
    options = StreamOptions(Options(language="en"), RAW)
    async with (
        two_workers(tmp_path, max_concurrent_jobs=0) as (of_uploads, _),
        two_servers(tmp_path, storage_url=STORAGE) as (of_streams, _),
        AsyncClient(of_streams.target) as client,
    ):

        async def spoken() -> AsyncIterator[bytes]:
            yield TALK[:150_000]
            await is_down.wait()
            yield TALK[150_000:]

        is_down = asyncio.Event()
        streaming = asyncio.create_task(collected(client.stream(spoken(), options)))
        await asyncio.sleep(0.3)
        s3.stop()
        is_down.set()
        began_s = time.monotonic()
        with pytest.raises(CallFailed) as caught:
            await asyncio.to_thread(upload_once, of_uploads.target)
        assert (caught.value.reason, time.monotonic() - began_s < 20) == ("STORE_UNAVAILABLE", True)
        assert not streaming.done()  # its last part of audio is not stored
        s3.start()
        events = await streaming
    assert events[-1].acknowledged_bytes == len(TALK)
    assert len(events[-1].completed.transcript.segments) == 8


def upload_once(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        Jobs(channel, RetryPolicy(max_attempts=1)).upload(TALK)


async def collected(events: AsyncIterator[StreamTranscribeResponse]) -> list[StreamTranscribeResponse]:
    return [event async for event in events]


async def test_a_slow_object_store_delays_no_text(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with proxied(f"127.0.0.1:{s3.port}") as slow:
        use(monkeypatch, **environment(int(slow.target.rpartition(":")[2])))
        async with (
            two_workers(tmp_path) as (of_jobs, _),
            two_servers(tmp_path, storage_url=STORAGE) as (of_streams, _),
            AsyncClient(of_jobs.target) as client,
        ):
            slow.answer_delay_s = SLOW_S
            began_s = time.monotonic()
            submitting = asyncio.create_task(client.jobs.submit(TALK, raw_format=RAW))
            call = of_streams.transcription.StreamTranscribe()
            for request in [config(**LANGUAGE), *audio(TALK)]:
                await call.write(request)
            got = await reads(call, is_kind("segment"))
            assert time.monotonic() - began_s < SLOW_S
            assert got[-1].acknowledged_bytes == 0
            await client.transcribe(TALK, raw_format=RAW)
            assert time.monotonic() - began_s < SLOW_S
            await call.done_writing()
            *_, completed = await reads(call, is_kind("completed"))
            assert completed.acknowledged_bytes == len(TALK)
            assert len(completed.completed.transcript.segments) == 8
            job = await client.jobs.wait((await submitting).job_id)
            assert time.monotonic() - began_s > SLOW_S
            assert job.state == jobs_pb2.JOB_STATE_COMPLETED
            assert job.audio_duration.ToTimedelta().total_seconds() == len(TALK) / BYTES_PER_S


def test_an_object_store_that_swallows_packets_is_given_up_and_found_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
):
    assert files.READ_S < files.CALL_S <= 30
    monkeypatch.setattr(files, "READ_S", 0.5)
    proxy = SilentProxy(s3.port)
    try:
        use(monkeypatch, **environment(proxy.port))
        storage = Files(STORAGE)
        storage.write("streams/a/1", b"abc")
        proxy.fall_silent()
        for call in (lambda: storage.write("streams/a/2", b"abc"), lambda: storage.read(["streams/a/1"])):
            began_s = time.monotonic()
            with pytest.raises(SourceUnavailable):
                call()
            assert time.monotonic() - began_s < 10
        proxy.speak()
        assert storage.read(["streams/a/1"]) == [b"abc"]
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("url", "variables", "error"),
    [
        pytest.param(STORAGE, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses this server", id="a wrong secret"),
        pytest.param(STORAGE, {"AWS_ACCESS_KEY_ID": "stranger"}, "access key", id="an unknown key"),
        pytest.param("s3://nowhere/typeless", {}, "no such bucket", id="no bucket"),
        pytest.param(STORAGE, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "does not answer", id="no server"),
    ],
)
async def test_an_object_store_that_cannot_be_used_stops_the_start_and_says_why(
    s3: S3Server, url: str, variables: dict[str, str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, **variables)
    with pytest.raises((InvalidInput, SourceUnavailable), match=error) as caught:
        async with serving_jobs(ScriptedEngine(), tmp_path, storage_url=url):
            pass
    assert environment(0)["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert "storage_url" in str(caught.value)
