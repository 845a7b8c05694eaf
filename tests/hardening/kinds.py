"""Calls of every kind, each made as a client makes it, and checked: a wrong answer is an AssertionError."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.hardening.audio import dialogue, seconds_of, spoken, text_of, wav
from tests.hardening.callers import Caller
from tests.hardening.server import ADMIN_KEY
from tests.harness import AUDIO
from tests.service import google, riva
from tests.service.console import END, config, texts
from tests.service.console import RAW as RAW_JSON
from tests.speech import cut
from typeless_grpc.pb.v1 import (
    admin_pb2,
    audio_pb2,
    jobs_pb2,
    models_pb2,
    models_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    transcription_pb2,
    uploads_pb2,
    uploads_pb2_grpc,
)
from typeless_grpc.servicers.google.messages import V1, V2, Version

RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
PART_BYTES = 6400
OGG = (AUDIO / "en_numbers.ogg").read_bytes()
ENGLISH = transcription_pb2.TranscriptionOptions(language="en")
Message = transcription_pb2.StreamTranscribeRequest


# ---- calls ------------------------------------------------------------------------------------------------------


async def transcribe(caller: Caller) -> None:
    number, data = _recording(caller)
    request = transcription_pb2.TranscribeRequest(audio=_raw(data), options=ENGLISH)
    answer = await caller.transcription.Transcribe(request)
    check(answer.transcript, number, data)


async def transcribe_a_container(caller: Caller) -> None:
    number, data = _recording(caller)
    request = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=wav(data)), options=ENGLISH)
    answer = await caller.transcription.Transcribe(request)
    check(answer.transcript, number, data)


async def transcribe_opus(caller: Caller) -> None:
    request = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(content=OGG))
    answer = await caller.transcription.Transcribe(request)
    assert answer.transcript.text


async def transcribe_a_batch(caller: Caller) -> None:
    recordings = [_recording(caller) for _ in range(3)]
    items = [transcription_pb2.BatchItem(audio=_raw(data), options=ENGLISH) for _, data in recordings]
    items.append(transcription_pb2.BatchItem(audio=audio_pb2.AudioSource(content=b"no recording")))
    answer = await caller.transcription.BatchTranscribe(transcription_pb2.BatchTranscribeRequest(items=items))
    assert (answer.summary.succeeded, answer.summary.failed) == (3, 1)
    for result, (number, data) in zip(answer.results, recordings, strict=False):
        check(result.transcript, number, data)


async def send_nonsense(caller: Caller) -> None:
    try:
        await caller.transcription.Transcribe(transcription_pb2.TranscribeRequest())
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
    else:
        raise AssertionError("accepted")


async def stream_live(caller: Caller, **fields: Any) -> None:
    number, n = caller.number(), caller.random.randrange(1, 4)
    events = await _streamed(caller.transcription.StreamTranscribe(), _requests(dialogue(number, n), **fields))
    assert [one.segment.text for one in events if one.HasField("segment")] == [text_of(number)] * n


async def stream_with_interims(caller: Caller) -> None:
    await stream_live(caller, interim_results=True, interim_interval=Duration(nanos=300_000_000))


async def stream_a_file(caller: Caller) -> None:
    number = caller.number()
    config = {"mode": transcription_pb2.STREAM_MODE_FILE}
    events = await _streamed(caller.transcription.StreamTranscribe(), _requests(dialogue(number, 6), **config))
    got = {one.segment.text for one in events if one.HasField("segment")}
    assert got == {text_of(number)}, got


async def stream_a_container(caller: Caller) -> None:
    config = {"mode": transcription_pb2.STREAM_MODE_FILE, "format": None}
    events = await _streamed(caller.transcription.StreamTranscribe(), _requests(OGG, **config))
    assert events[-1].HasField("completed")


async def resume_a_stream(caller: Caller) -> None:
    """Break off in the middle, and go on with another call."""
    number = caller.number()
    data = dialogue(number, 3)
    call = caller.transcription.StreamTranscribe()
    try:
        await call.write(_config())
        session = (await call.read()).started.session_id
        half = len(data) // 2 // 2 * 2
        await call.write(Message(audio=data[:half]))
    finally:
        call.cancel()
    again = caller.transcription.StreamTranscribe()
    with _cancelled(again):
        await again.write(
            Message(config=transcription_pb2.StreamConfig(resume_session_id=session, resume_after_sequence=1))
        )
        got: list[str] = []
        while (event := await again.read()) is not grpc.aio.EOF:
            if event.HasField("started"):
                await again.write(Message(audio=data[event.acknowledged_bytes :]))
                await again.done_writing()
            elif event.HasField("segment"):
                got.append(event.segment.text)
        assert got == [text_of(number)] * 3, got


async def abandon_a_stream(caller: Caller) -> None:
    """Open a stream, send some audio and go away; its session waits to be resumed."""
    call = caller.transcription.StreamTranscribe()
    try:
        await call.write(_config())
        await call.read()
        await call.write(Message(audio=spoken(caller.number(), 1.0)))
    finally:
        call.cancel()


async def run_a_job(caller: Caller) -> None:
    number, data = _recording(caller)
    job_id = await _submit(caller, data)
    call = caller.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id))
    with _cancelled(call):
        states = [event.job.state async for event in call]
    assert states[-1] == jobs_pb2.JOB_STATE_COMPLETED, states
    found = await caller.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))
    check(found.job.transcript, number, data)
    await caller.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job_id))


async def cancel_a_job(caller: Caller) -> None:
    job_id = await _submit(caller, _recording(caller)[1])
    try:
        await caller.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it has ended
            raise
    await caller.jobs.GetQueueStats(jobs_pb2.GetQueueStatsRequest())
    await caller.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=5))


async def upload(caller: Caller) -> None:
    number, data = _recording(caller)
    recording = wav(data)
    uploads = uploads_pb2_grpc.UploadServiceStub(caller.channel)

    call = uploads.UploadAudio()
    with _cancelled(call):
        await call.write(uploads_pb2.UploadAudioRequest(header=uploads_pb2.UploadHeader(filename="a.wav")))
        for part in cut(recording, [16_000]):
            await call.write(uploads_pb2.UploadAudioRequest(chunk=part))
        finish = uploads_pb2.UploadFinish(sha256=hashlib.sha256(recording).digest())
        await call.write(uploads_pb2.UploadAudioRequest(finish=finish))
        await call.done_writing()
        upload_id = (await call).upload.upload_id
    await uploads.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload_id))
    audio = audio_pb2.AudioSource(uri=f"upload://{upload_id}")
    answer = await caller.transcription.Transcribe(transcription_pb2.TranscribeRequest(audio=audio, options=ENGLISH))
    check(answer.transcript, number, data)


async def manage_keys(caller: Caller) -> None:
    made = await caller.admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(display_name="hardening"))
    limit = admin_pb2.RateLimit(group="transcribe", amount=100, period_seconds=60)
    await caller.admin.UpdateRateLimit(admin_pb2.UpdateRateLimitRequest(key_id=made.api_key.key_id, rate_limit=limit))
    await caller.admin.ListApiKeys(admin_pb2.ListApiKeysRequest(page_size=5))
    await caller.admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(key_id=made.api_key.key_id))


async def read_about_the_server(caller: Caller) -> None:
    await server_pb2_grpc.ServerServiceStub(caller.channel).GetServerInfo(server_pb2.GetServerInfoRequest())
    await models_pb2_grpc.ModelServiceStub(caller.channel).ListModels(models_pb2.ListModelsRequest())
    await caller.admin.GetConfig(admin_pb2.GetConfigRequest())
    await caller.admin.ListUsage(admin_pb2.ListUsageRequest(page_size=5))


async def check_health(caller: Caller) -> None:
    health = health_pb2_grpc.HealthStub(caller.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest())
    with _cancelled(watch):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING


async def reflect(caller: Caller) -> None:
    version = caller.random.choice(("v1", "v1alpha"))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = caller.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    assert await _streamed(call, [request])


async def riva_recognize(caller: Caller) -> None:
    number, data = _recording(caller)
    served: Any = caller
    answer = await riva.recognize(served, data, sample_rate_hertz=16_000, encoding=1, language_code="en-US")
    assert answer.results[0].alternatives[0].transcript.strip() == text_of(number)


async def riva_stream(caller: Caller) -> None:
    served: Any = caller
    number = caller.number()
    requests = [riva.configured(), *riva.audio_of(dialogue(number, 2))]
    answers = await _streamed(riva.riva_call(served, "StreamingRecognize")(), requests)
    finals = [result for answer in answers for result in answer.results if result.is_final]
    assert [one.alternatives[0].transcript.strip() for one in finals] == [text_of(number)] * 2


async def google_recognize(caller: Caller) -> None:
    served: Any = caller
    version = caller.random.choice((V1, V2))
    number, data = _recording(caller)
    metadata = (("x-api-key", ADMIN_KEY),)  # the helper would replace the channel's
    answer = await google.recognize(served, version, data, metadata, **_google_config(version))
    assert answer.results[0].alternatives[0].transcript.strip() == text_of(number)


async def google_stream(caller: Caller) -> None:
    served: Any = caller
    version = caller.random.choice((V1, V2))
    number = caller.number()
    opening = google.opening(version, _google_config(version))
    requests = [opening, *google.audio_of(version, dialogue(number, 2))]
    answers = await _streamed(google.streaming(served, version), requests)
    finals = [result for answer in answers for result in answer.results if result.is_final]
    assert [one.alternatives[0].transcript.strip() for one in finals] == [text_of(number)] * 2


async def console_call(caller: Caller) -> None:
    answer = await caller.site.call("ServerService", "GetServerInfo", x_api_key=ADMIN_KEY)
    assert answer.status == 200, answer.body


async def console_stream(caller: Caller) -> None:
    number = caller.number()
    async with caller.site.socket(key=ADMIN_KEY) as socket:
        await socket.send(config(format=RAW_JSON, options={"language": "en"}))
        for part in cut(dialogue(number, 2), [PART_BYTES]):
            await socket.send(part)
        await socket.send(END)
        messages = [json.loads(message) async for message in socket]
    assert texts(messages) == [text_of(number)] * 2, messages


Kind = Callable[[Caller], Awaitable[None]]
KINDS: Sequence[Kind] = (
    *(transcribe, transcribe_a_container, transcribe_opus, transcribe_a_batch, send_nonsense),
    *(stream_live, stream_with_interims, stream_a_file, stream_a_container, resume_a_stream, abandon_a_stream),
    *(run_a_job, cancel_a_job, upload, manage_keys, read_about_the_server, check_health, reflect),
    *(riva_recognize, riva_stream, google_recognize, google_stream, console_call, console_stream),
)


# ---- parts ------------------------------------------------------------------------------------------------------


def check(transcript: Any, number: int, data: bytes) -> None:
    """A transcript is that of this recording."""
    assert transcript.text == text_of(number), (transcript.text, number)
    length = transcript.audio_duration
    assert abs(length.seconds + length.nanos / 1e9 - seconds_of(data)) < 0.01, length


def _recording(caller: Caller) -> tuple[int, bytes]:
    number = caller.number()
    return number, spoken(number, caller.seconds())


def _raw(data: bytes) -> audio_pb2.AudioSource:
    return audio_pb2.AudioSource(content=data, format=RAW)


def _config(**fields: Any) -> Message:
    return Message(config=transcription_pb2.StreamConfig(**{"format": RAW, "options": ENGLISH} | fields))


def _google_config(version: Version) -> dict[str, Any]:
    language = {"language_codes": ["en-US"], "model": "long"} if version.is_v2 else {"language_code": "en-US"}
    return google.raw(version) | language


def _requests(data: bytes, **fields: Any) -> list[Message]:
    return [_config(**fields), *(Message(audio=part) for part in cut(data, [PART_BYTES]))]


async def _streamed(call: Any, requests: Iterable[Any]) -> list[Any]:
    """All responses to all requests, and the half-close."""
    with _cancelled(call):
        for request in requests:
            await call.write(request)
        await call.done_writing()
        return [response async for response in call]


async def _submit(caller: Caller, data: bytes) -> str:
    answer = await caller.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(audio=_raw(data), options=ENGLISH))
    return str(answer.job.job_id)


@contextlib.contextmanager
def _cancelled(call: Any) -> Iterator[None]:
    """Cancel a call at the end, if it has not ended."""
    try:
        yield
    finally:
        call.cancel()
