"""UploadService over a real channel, and what becomes of an upload afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import AUDIO, ServedJobs, pcm, request, serving, serving_jobs
from tests.pace import awake
from tests.service.test_transcribe import refused
from typeless_grpc.client import AsyncClient, CallFailed, Client, RawFormat, RetryPolicy
from typeless_grpc.client.recording import CHUNK_BYTES, INLINE_BYTES
from typeless_grpc.client.uploads import Uploads
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import (
    audio_pb2,
    jobs_pb2,
    server_pb2,
    server_pb2_grpc,
    transcription_pb2,
    uploads_pb2,
    uploads_pb2_grpc,
)

Request = uploads_pb2.UploadAudioRequest
FORMAT = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)


def header(upload_id: str = "", offset: int = 0) -> Request:
    return Request(header=uploads_pb2.UploadHeader(upload_id=upload_id, offset=offset))


def chunk(data: bytes) -> Request:
    return Request(chunk=data)


def finish(data: bytes = b"") -> Request:
    return Request(finish=uploads_pb2.UploadFinish(sha256=hashlib.sha256(data).digest() if data else b""))


async def uploaded(served: ServedJobs, *requests: Request) -> uploads_pb2.Upload:
    return (await served.uploads.UploadAudio(iter(requests))).upload


async def found(served: ServedJobs, upload_id: str) -> uploads_pb2.Upload:
    return (await served.uploads.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload_id))).upload


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedJobs]:
    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0, max_upload_bytes=1_000_000) as running:
        yield running


async def test_an_upload_in_one_call(served: ServedJobs):
    upload = await uploaded(served, header(), chunk(b"abc"), chunk(b"def"), finish(b"abcdef"))
    assert (upload.size_bytes, upload.complete, upload.uri) == (6, True, f"upload://{upload.upload_id}")
    assert upload.HasField("expire_time")
    assert await found(served, upload.upload_id) == upload


async def test_an_upload_continues_in_another_call(served: ServedJobs):
    opened = await uploaded(served, header())
    assert (opened.size_bytes, opened.complete) == (0, False)
    part = await uploaded(served, header(opened.upload_id), chunk(b"abc"))
    assert (part.size_bytes, part.complete) == (3, False)
    whole = await uploaded(served, header(opened.upload_id, 3), chunk(b"def"), finish(b"abcdef"))
    assert (whole.size_bytes, whole.complete) == (6, True)


async def test_data_that_arrived_before_a_call_broke_is_kept(served: ServedJobs):
    opened = await uploaded(served, header())
    call = served.uploads.UploadAudio()
    await call.write(header(opened.upload_id))
    await call.write(chunk(b"abc"))
    await call.write(chunk(b"def"))
    await awake(0.5)  # sent is not received: the call is to break once the server has seen something of it
    call.cancel()
    async with asyncio.timeout(30):
        while not (size := (await found(served, opened.upload_id)).size_bytes):
            pass
    assert size in (3, 6)
    rest = await uploaded(served, header(opened.upload_id, size), chunk(b"abcdefghi"[size:]), finish(b"abcdefghi"))
    assert rest.complete


async def test_an_empty_chunk_changes_nothing(served: ServedJobs):
    opened = await uploaded(served, header(), chunk(b""))
    part = await uploaded(served, header(opened.upload_id), chunk(b""), chunk(b"abc"), chunk(b""))
    assert part.size_bytes == 3
    assert (await uploaded(served, header(opened.upload_id, 3), chunk(b""), finish(b"abc"))).complete
    failed = await refused(uploaded(served, header(), finish(), chunk(b"")))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_data_with_another_sha256_do_not_complete_an_upload(served: ServedJobs):
    opened = await uploaded(served, header())
    failed = await refused(uploaded(served, header(opened.upload_id), chunk(b"abc"), finish(b"abd")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SHA256_MISMATCH")
    after = await found(served, opened.upload_id)
    assert (after.size_bytes, after.complete) == (3, False)
    failed = await refused(uploaded(served, header(opened.upload_id, 3), finish(b"other")))
    assert failed.reason == "SHA256_MISMATCH"
    assert (await uploaded(served, header(opened.upload_id, 3), finish(b"abc"))).complete


async def test_the_check_can_be_left_out(served: ServedJobs):
    assert (await uploaded(served, header(), chunk(b"abc"), finish())).complete


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [Request()],
        [chunk(b"a")],
        [finish()],
        [header(), header()],
        [header(), finish(), chunk(b"a")],
        [header(), finish(), finish()],
        [header(), Request(finish=uploads_pb2.UploadFinish(sha256=b"short"))],
        [header(offset=3)],
    ],
    ids=["none", "unset", "chunk", "finish", "two headers", "late chunk", "two ends", "short sha", "offset"],
)
async def test_requests_out_of_order_are_refused(served: ServedJobs, requests: Sequence[Request]):
    failed = await refused(uploaded(served, *requests))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.fields


async def test_an_offset_that_is_not_the_servers_is_refused(served: ServedJobs):
    upload = await uploaded(served, header(), chunk(b"abc"))
    for offset in (0, 2, 4):
        failed = await refused(uploaded(served, header(upload.upload_id, offset), chunk(b"d")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_OFFSET_MISMATCH")
    await uploaded(served, header(upload.upload_id, 3), finish())
    failed = await refused(uploaded(served, header(upload.upload_id, 3), chunk(b"d")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_COMPLETE")


async def test_unknown_uploads_are_not_found(served: ServedJobs):
    for call in (uploaded(served, header("nobody"), chunk(b"a")), found(served, "nobody")):
        failed = await refused(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    assert (await refused(found(served, ""))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_many_bytes_are_refused_and_what_came_before_is_kept(served: ServedJobs):
    opened = await uploaded(served, header())
    await uploaded(served, header(opened.upload_id), chunk(bytes(900_000)))
    failed = await refused(uploaded(served, header(opened.upload_id, 900_000), chunk(bytes(200_000))))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_TOO_LARGE")
    assert (await found(served, opened.upload_id)).size_bytes == 900_000


async def test_server_info_has_the_size_of_uploads_and_the_schemes_of_uris(served: ServedJobs):
    info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert info.max_upload_bytes == 1_000_000
    assert list(info.uri_schemes) == ["upload"]


async def test_transcribe_takes_an_upload(served: ServedJobs):
    upload = await uploaded(served, header(), chunk(pcm(2.0)), finish())
    source = audio_pb2.AudioSource(uri=upload.uri, format=FORMAT)
    answer = await served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source))
    assert answer.transcript.text == "2.0 seconds"


@pytest.mark.parametrize(
    ("uri", "code", "reason"),
    [
        ("upload://nobody", grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND"),
        ("file:///etc/hostname", grpc.StatusCode.INVALID_ARGUMENT, "URI_SCHEME_NOT_ALLOWED"),
        ("https://example.com/a.wav", grpc.StatusCode.INVALID_ARGUMENT, "URI_SCHEME_NOT_ALLOWED"),
        ("no uri", grpc.StatusCode.INVALID_ARGUMENT, "URI_INVALID"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "AUDIO_MISSING"),
    ],
)
async def test_transcribe_refuses_other_uris(served: ServedJobs, uri: str, code: grpc.StatusCode, reason: str):
    source = audio_pb2.AudioSource(uri=uri, format=FORMAT)
    failed = await refused(served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source)))
    assert (failed.code, failed.reason) == (code, reason)


async def test_transcribe_and_jobs_take_files_that_are_allowed(tmp_path: Path):
    engine = ScriptedEngine(lambda call: "text")
    async with serving_jobs(engine, tmp_path, audio_uri_prefixes=[f"file://{AUDIO}/"]) as served:
        source = audio_pb2.AudioSource(uri=f"file://{AUDIO}/en_short.flac")
        answer = await served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source))
        assert answer.transcript.text == "text"
        async with AsyncClient(served.target) as client:
            job = await client.jobs.submit(source.uri)
            assert (await client.jobs.wait(job.job_id)).transcript.text == "text"
            with pytest.raises(CallFailed) as caught:
                await client.jobs.submit(f"file://{AUDIO}/no-such-file.flac")
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert caught.value.reason == "AUDIO_NOT_FOUND"
    assert list(info.uri_schemes) == ["upload", "file"]


async def test_a_server_without_uploads_takes_no_uris():
    async with serving(ScriptedEngine()) as served:
        source = audio_pb2.AudioSource(uri="upload://x", format=FORMAT)
        failed = await refused(served.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=source)))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "URI_SCHEME_NOT_ALLOWED")
        assert (await served.transcription.Transcribe(request())).transcript.text


async def test_a_recording_uploaded_again_is_the_same_submission(tmp_path: Path):
    audio = bytes(INLINE_BYTES + 1)
    raw = RawFormat("pcm_s16le", 16_000)
    async with (
        serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served,
        AsyncClient(served.target) as client,
    ):
        job = await client.jobs.submit(audio, raw_format=raw, request_id="r1")
        assert (await client.jobs.submit(audio, raw_format=raw, request_id="r1")).job_id == job.job_id
        for changed in ({"audio": audio[1:] + b"x"}, {"labels": {"a": "b"}}):
            with pytest.raises(CallFailed) as caught:
                await client.jobs.submit(**{"audio": audio, "raw_format": raw, "request_id": "r1"} | changed)
            assert caught.value.reason == "REQUEST_ID_REUSED"
        assert [one.job_id async for one in client.jobs.list()] == [job.job_id]


class Flaky:
    """A servicer's view of a bad connection: uploads break after some chunks, a number of times."""

    def __init__(self, stub: Any, n_breaks: int) -> None:
        self._stub, self._n_breaks = stub, n_breaks
        self.n_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def UploadAudio(self, requests: Iterator[Request]) -> Any:
        sent = list(requests)
        self.n_calls += 1
        if len(sent) > 1 and self._n_breaks:
            self._n_breaks -= 1
            self._stub.UploadAudio(iter(sent[:3]))  # a header, two chunks, and no finish: the rest was lost
            raise Broken
        return self._stub.UploadAudio(iter(sent))


class Broken(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "connection reset"

    def trailing_metadata(self) -> tuple[()]:
        return ()


async def test_a_client_continues_where_a_broken_upload_stopped(tmp_path: Path):
    audio = bytes(range(256)) * (CHUNK_BYTES * 6 // 256)
    progress: list[int] = []

    def upload(target: str) -> tuple[uploads_pb2.Upload, int]:
        with grpc.insecure_channel(target) as channel:
            flaky: Any = Flaky(uploads_pb2_grpc.UploadServiceStub(channel), n_breaks=2)
            uploads = Uploads(flaky, server_pb2_grpc.ServerServiceStub(channel), RetryPolicy())
            return uploads.upload(audio, "", lambda sent, total: progress.append(sent)), flaky.n_calls

    async with serving_jobs(ScriptedEngine(), tmp_path, max_concurrent_jobs=0) as served:
        done, n_calls = await asyncio.to_thread(upload, served.target)
    assert (done.complete, done.size_bytes) == (True, len(audio))
    assert n_calls == 4  # to open it, twice broken, and the rest
    assert progress[-1] == len(audio)


async def test_a_python_client_uploads_large_recordings_before_it_submits(tmp_path: Path):
    recording = tmp_path / "long.wav"
    with wave.open(str(recording), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(pcm(150.0))

    def run(target: str) -> jobs_pb2.Job:
        with Client(target) as client:
            job = client.jobs.submit(recording)
            done = client.jobs.wait(job.job_id)
            assert [one.job_id for one in client.jobs.list()] == [job.job_id]
            assert client.jobs.stats().completed == 1
            client.jobs.delete(job.job_id)
            return done

    async with serving_jobs(ScriptedEngine(), tmp_path / "data") as served:
        done = await asyncio.to_thread(run, served.target)
    assert done.state == jobs_pb2.JOB_STATE_COMPLETED
    assert done.audio_duration.seconds == 150
