"""A running server, and probes of it: each shows the effect of a setting."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from structlog.testing import capture_logs

from tests.harness import Served, ServedJobs, pcm, request
from tests.pace import awake
from tests.service import google, riva
from tests.service.access import ADMIN, USER, outcome
from tests.service.streams import END, RAW, audio, config
from tests.service.test_jobs import COMPLETED, found, submission, until, watched
from tests.service.test_life import health
from tests.service.test_uploads import chunk, finish, header, uploaded
from tests.speech import speech
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, audio_pb2, jobs_pb2, transcription_pb2
from typeless_grpc.servicers.google.messages import V1
from typeless_grpc.servicers.riva import messages

INFO, CONFIG = "/typeless.v1.ServerService/GetServerInfo", "/typeless.v1.AdminService/GetConfig"
GOOGLE = f"/{V1.service.full_name}/Recognize"
RIVA = f"/{messages.SERVICE}/Recognize"
TRANSCRIBE, JOBS = "/typeless.v1.TranscriptionService/Transcribe", "/typeless.v1.JobsService/ListJobs"
BATCH, STREAM = (
    "/typeless.v1.TranscriptionService/BatchTranscribe",
    "/typeless.v1.TranscriptionService/StreamTranscribe",
)


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
AS_USER, AS_ADMIN = ("x-api-key", USER), ("x-api-key", ADMIN)


@dataclass
class World:
    """A running server and its engine."""

    served: Served
    engine: ScriptedEngine
    directory: Path
    stack: AsyncExitStack
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    @property
    def jobs(self) -> ServedJobs:
        assert isinstance(self.served, ServedJobs)
        return self.served


Probe = Callable[[World], Awaitable[Any]]


def code(failed: CallFailed | None) -> str:
    return failed.code.name if failed else "OK"


def called(method: str, *metadata: tuple[str, str], n: int = 1, message: Any = None) -> Probe:
    """Probe the outcomes of n calls, one after the other."""
    data = b"" if message is None else message.SerializeToString()

    async def probe(world: World) -> list[str]:
        return [code(await outcome(world.served, method, *metadata, request=data)) for _ in range(n)]

    return probe


async def held_open(world: World) -> str:
    """Begin a call that the engine holds; return how it ends, "held" if it does not."""
    world.engine.gate.clear()
    n_calls = len(world.engine.calls)
    call = world.served.transcription.Transcribe(request())
    world.stack.callback(call.cancel)
    reached = asyncio.ensure_future(world.engine.until(n_calls=n_calls + 1))
    ended = asyncio.ensure_future(call.code())
    await asyncio.wait({reached, ended}, return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    return "held" if not ended.done() else ended.result().name


async def two_held_open(world: World) -> list[str]:
    ended = [await held_open(world) for _ in range(2)]
    await world.stack.aclose()
    async with asyncio.timeout(30):
        while code(await outcome(world.served, INFO)) != "OK":
            pass
    return ended


async def transcribed(world: World, **options: Any) -> str:
    answer = await world.served.transcription.Transcribe(request(**options))
    return str(answer.transcript.text)


async def masked(world: World) -> str:
    post = transcription_pb2.PostProcessing(mask_profanity=True)
    return await transcribed(world, post_processing=post)


async def logged(world: World) -> list[str | None]:
    """The text in the log line of a call."""
    logging.getLogger("typeless_grpc").setLevel(logging.INFO)
    with capture_logs() as lines:
        await transcribed(world)
        await until(lambda: any(line["event"] == "call ended" for line in lines))
    return [line.get("text") for line in lines if line["event"] == "call ended"]


async def created(world: World) -> str:
    try:
        await admin_pb2_grpc.AdminServiceStub(world.served.channel).CreateApiKey(
            admin_pb2.CreateApiKeyRequest(), metadata=[AS_ADMIN]
        )
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def forwarded(world: World) -> list[str]:
    addresses = [f"192.0.2.{next(world.numbers)}" for _ in range(2)]
    return [code(await outcome(world.served, INFO, ("x-forwarded-for", address))) for address in addresses]


async def never_sent(world: World) -> Any:
    """A unary call whose request does not come."""

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    call = world.served.channel.stream_unary(TRANSCRIBE)(nothing())
    world.stack.callback(call.cancel)
    return call


async def slow_request(world: World) -> str:
    (ended,) = await slow_requests(world, 1)
    return ended


async def slow_requests(world: World, n: int = 5) -> dict[str, int]:
    calls = [await never_sent(world) for _ in range(n)]
    codes = [asyncio.ensure_future(call.code()) for call in calls]
    await awake(1.5, *codes)  # longer than a request that is not slow may take
    ended = Counter(one.result().name if one.done() else "waits" for one in codes)
    for call in calls:
        call.cancel()
    await asyncio.gather(*codes)
    return dict(ended)


async def stalled(world: World) -> int:
    await held_open(world)
    await asyncio.sleep(1.2)
    async with asyncio.timeout(20):
        status = await health(world.served, "")
        while world.served.reloads.settings.engine_stall_s == 1 and status == 1:
            await asyncio.sleep(0.05)
            status = await health(world.served, "")
    await world.stack.aclose()
    return status


async def drained(world: World) -> float:
    await held_open(world)
    started_s = time.monotonic()
    await world.served.server.stop()
    return time.monotonic() - started_s


async def model_of_riva(world: World) -> str:
    await riva.recognize(world.served, pcm(), sample_rate_hertz=16_000, model="parakeet")
    return world.engine.calls[-1].options.model


async def model_of_google(world: World) -> str:
    await google.recognize(world.served, V1, pcm(), **google.raw(V1), model="telephony")
    return world.engine.calls[-1].options.model


# ---- jobs and uploads


async def submitted(world: World) -> str:
    try:
        await world.jobs.jobs.SubmitJob(submission())
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def pending(world: World) -> str:
    """Submit a job once there is one."""
    if not (await world.jobs.jobs.ListJobs(jobs_pb2.ListJobsRequest())).jobs:
        await world.jobs.jobs.SubmitJob(submission())
    return await submitted(world)


async def ended(world: World, seconds: float = 1.0) -> jobs_pb2.Job:
    job = (await world.jobs.jobs.SubmitJob(submission(seconds))).job
    return (await watched(world.jobs, job.job_id))[-1].job


async def job_state(world: World) -> int:
    return (await ended(world)).state


async def job_kept_s(world: World) -> int:
    job = await ended(world)
    return int(job.expire_time.seconds - job.end_time.seconds)


async def job_attempts(world: World) -> int:
    return (await ended(world)).attempt


async def job_chunks(world: World) -> int:
    return (await ended(world, 12.0)).stats.chunk_count


async def job_retried(world: World) -> bool:
    """Whether a job whose first run fails has ended, once its first run has failed."""
    world.engine.calls.clear()
    job = (await world.jobs.jobs.SubmitJob(submission())).job
    await until(lambda: len(world.engine.calls) > 0)
    await awake(1.5)
    return (await found(world.jobs, job.job_id)).state == COMPLETED


async def audio_kept(world: World) -> bool:
    job = await ended(world)
    return any(path.name.startswith("audio") for path in world.directory.rglob(f"*{job.job_id}*/*"))


async def uploads(world: World, data: bytes = b"x" * 2000) -> str:
    try:
        await uploaded(world.jobs, header(), chunk(data), finish(data))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def upload_opened(world: World) -> list[str]:
    async def opened() -> str:
        try:
            await uploaded(world.jobs, header())
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    return [await opened(), await opened()]


async def upload_kept_s(world: World) -> int:
    upload = await uploaded(world.jobs, header(), chunk(b"abc"), finish(b"abc"))
    return round((upload.expire_time.ToMilliseconds() / 1000 - time.time()) / 100)


async def by_uri(world: World) -> str:
    path = world.directory / "one.pcm"
    path.write_bytes(pcm())
    source = audio_pb2.AudioSource(uri=f"file://{path}", format=RAW)
    message = transcription_pb2.TranscribeRequest(audio=source)
    return code(await outcome(world.served, TRANSCRIBE, request=message.SerializeToString()))


# ---- streams


@dataclass
class Opened:
    """A stream and its `started`, or the error that it failed with."""

    call: Any
    started: transcription_pb2.StreamStarted | None = None
    error: str = ""


async def opened(world: World, **fields: Any) -> Opened:
    call = world.served.transcription.StreamTranscribe()
    world.stack.callback(call.cancel)
    try:
        await call.write(config(**fields))
        async with asyncio.timeout(30):
            answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return Opened(call, error=error.code().name)
    if answer is grpc.aio.EOF:
        return Opened(call, error=(await call.code()).name)
    return Opened(call, answer.started)


async def two_streams(world: World) -> list[str]:
    ended = [(await opened(world)).error or "open" for _ in range(2)]
    await world.stack.aclose()
    await awake(0.6)  # sessions of cancelled calls wait to be resumed
    return ended


async def stream_audio(world: World) -> str:
    stream = await opened(world)
    try:
        for message in [*audio(speech(2.0)), END]:
            await stream.call.write(message)
        while await stream.call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error).reason
    return str((await stream.call.code()).name)


async def idle_stream(world: World) -> str:
    stream = await opened(world)

    async def last() -> None:
        with suppress(grpc.aio.AioRpcError):
            while await stream.call.read() is not grpc.aio.EOF:
                pass

    reading = asyncio.ensure_future(last())
    await awake(3.0, reading)
    if not reading.done():
        reading.cancel()
        return "open"
    return str((await stream.call.code()).name)


async def resumed(world: World) -> str:
    stream = await opened(world)
    assert stream.started is not None
    await stream.call.write(audio(pcm(0.2))[0])
    stream.call.cancel()
    await awake(0.6)  # sessions are looked at four times a second
    return (await opened(world, format=None, resume_session_id=stream.started.session_id)).error or "resumed"


async def interim_interval_s(world: World) -> float:
    stream = await opened(world, interim_results=True)
    assert stream.started is not None
    return stream.started.effective_config.interim_interval.ToTimedelta().total_seconds()
