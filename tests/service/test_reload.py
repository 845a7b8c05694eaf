"""Settings that are reloaded: each of them takes effect on a running server, and a bad one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter, namedtuple
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from tests.harness import Served, ServedJobs, pcm, request, serving, serving_jobs
from tests.identity_provider import bearer
from tests.service import riva
from tests.service.access import ADMIN, KEYS, USER, outcome
from tests.service.test_jobs import COMPLETED, FAILED, found, submission, until, watched
from tests.service.test_life import health
from tests.service.test_stream import END, RAW, audio, config
from tests.service.test_tokens import jwks_url
from tests.service.test_uploads import chunk, finish, header, uploaded
from tests.speech import speech
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.client import CallFailed
from typeless_grpc.config import Settings, is_reloadable, load
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, audio_pb2, jobs_pb2, server_pb2, transcription_pb2
from typeless_grpc.servicers.riva import messages
from typeless_grpc.telemetry.metrics import Metrics

__all__ = ["jwks_url"]  # the fixture

INFO, CONFIG = "/typeless.v1.ServerService/GetServerInfo", "/typeless.v1.AdminService/GetConfig"
RIVA = f"/{messages.SERVICE}/Recognize"
TRANSCRIBE, JOBS = "/typeless.v1.TranscriptionService/Transcribe", "/typeless.v1.JobsService/ListJobs"
BATCH, STREAM = (
    "/typeless.v1.TranscriptionService/BatchTranscribe",
    "/typeless.v1.TranscriptionService/StreamTranscribe",
)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
AS_USER, AS_ADMIN = ("x-api-key", USER), ("x-api-key", ADMIN)
DAY_S = 86_400  # of tokens: they are made when the tests are collected, and the whole suite takes minutes
TOKENS = {"jwt_issuer": "https://id.example", "jwt_audience": "typeless", "jwt_jwks_url": "{jwks}"}
LIMITED = {"rate_limit_enabled": True}
SHORT_RETRIES = {"job_retry_delay_s": 0.01, "job_poll_s": 0.05}


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
    async with asyncio.timeout(10):
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
    """A unary call whose request does not come: how it ends within two seconds."""

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    call = world.served.channel.stream_unary(TRANSCRIBE)(nothing())
    world.stack.callback(call.cancel)
    return call


async def slow_request(world: World) -> str:
    call = await never_sent(world)
    try:
        async with asyncio.timeout(2):
            return str((await call.code()).name)
    except TimeoutError:
        return "waits"


async def slow_requests(world: World) -> dict[str, int]:
    calls = [await never_sent(world) for _ in range(5)]
    codes = [asyncio.ensure_future(call.code()) for call in calls]
    await asyncio.wait(codes, timeout=1.5)  # longer than a request that is not slow may take
    ended = Counter(one.result().name if one.done() else "waits" for one in codes)
    for call in calls:
        call.cancel()
    await asyncio.gather(*codes)
    return dict(ended)


async def stalled(world: World) -> int:
    await held_open(world)
    await asyncio.sleep(1.2)
    async with asyncio.timeout(5):
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
    await asyncio.sleep(1.5)
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
        async with asyncio.timeout(10):
            answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return Opened(call, error=error.code().name)
    if answer is grpc.aio.EOF:
        return Opened(call, error=(await call.code()).name)
    return Opened(call, answer.started)


async def two_streams(world: World) -> list[str]:
    ended = [(await opened(world)).error or "open" for _ in range(2)]
    await world.stack.aclose()
    async with asyncio.timeout(10):  # sessions of cancelled calls wait to be resumed
        await asyncio.sleep(0.6)
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
    try:
        async with asyncio.timeout(3):
            while await stream.call.read() is not grpc.aio.EOF:
                pass
    except TimeoutError:
        return "open"
    except grpc.aio.AioRpcError:
        pass
    return str((await stream.call.code()).name)


async def resumed(world: World) -> str:
    stream = await opened(world)
    assert stream.started is not None
    await stream.call.write(audio(pcm(0.2))[0])
    stream.call.cancel()
    await asyncio.sleep(0.6)  # sessions are looked at four times a second
    return (await opened(world, format=None, resume_session_id=stream.started.session_id)).error or "resumed"


async def interim_interval_s(world: World) -> float:
    stream = await opened(world, interim_results=True)
    assert stream.started is not None
    return stream.started.effective_config.interim_interval.ToTimedelta().total_seconds()


# ---- the table

# before, after: settings. old, new: what the probe returns with them, or a predicate of it. given: settings throughout.
# n_failures: first calls of the engine that fail.
Row = namedtuple("Row", "before after probe old new given n_failures", defaults=[{}, 0])
ANY = object()  # the old value takes too long to see
LONG = transcription_pb2.BatchTranscribeRequest(items=[{"audio": request().audio}] * 2)


def counted(name: str, probe: Probe, **given: Any) -> Row:
    """A limit of calls: three calls are made."""
    codes = [["OK"] * n + ["RESOURCE_EXHAUSTED"] * (3 - n) for n in (1, 2)]
    return Row({name: "1/day"}, {name: "2/day"}, probe, *codes, LIMITED | given)


ONE = request()
OF_RIVA = messages.RecognizeRequest(config={"sample_rate_hertz": 16_000}, audio=pcm())
ONE_BATCH = transcription_pb2.BatchTranscribeRequest(items=[{"audio": ONE.audio}])
BLOCKED = "RESOURCE_EXHAUSTED"
ROWS: dict[str, Row] = {
    "trusted_proxies": Row(
        {"trusted_proxies": ""},
        {"trusted_proxies": "127.0.0.1"},
        forwarded,
        ["OK", BLOCKED],
        ["OK", "OK"],
        LIMITED | {"rate_limit_config": "1/day"},
    ),
    "drain_timeout_s": Row({"drain_timeout_s": 60}, {"drain_timeout_s": 0}, drained, ANY, lambda s: s < 20),
    "engine_stall_s": Row({"engine_stall_s": 60}, {"engine_stall_s": 1}, stalled, 1, 2),
    "profanity_file": Row({"profanity_file": None}, {"profanity_file": "{words}"}, masked, "a banana", "a b*****"),
    "log_text": Row({"log_text": False}, {"log_text": True}, logged, [None], ["a banana"]),
    # keys and tokens
    "require_auth": Row(
        {"require_auth": False},
        {"require_auth": True},
        called(TRANSCRIBE, message=ONE),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS,
    ),
    "api_keys": Row(
        {"api_keys": "another-key-1"},
        {"api_keys": f"another-key-1,{USER}"},
        called(TRANSCRIBE, AS_USER, message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS,
    ),
    "admin_keys": Row(
        {"admin_keys": "another-key-2"},
        {"admin_keys": ADMIN},
        called(CONFIG, AS_ADMIN),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS,
    ),
    "open_services": Row(
        {"open_services": "server"},
        {"open_services": "health"},
        called(INFO),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS | {"require_auth": True},
    ),
    "max_api_keys": Row({"max_api_keys": 2}, {"max_api_keys": 10}, created, BLOCKED, "OK", KEYS),
    "jwt_issuer": Row(
        {"jwt_issuer": "https://other.example"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_audience": Row(
        {"jwt_audience": "other"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_jwks_url": Row(
        {"jwt_jwks_url": "http://127.0.0.1:1/keys"},
        TOKENS,
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAVAILABLE"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_algorithms": Row(
        {"jwt_algorithms": "ES256"},
        {"jwt_algorithms": "RS256"},
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["UNAUTHENTICATED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_roles_claim": Row(
        {"jwt_roles_claim": "roles"},
        {"jwt_roles_claim": "groups"},
        called(CONFIG, bearer(DAY_S, groups=["admin"])),
        ["PERMISSION_DENIED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    "jwt_user_role": Row(
        {"jwt_user_role": ""},
        {"jwt_user_role": "speech"},
        called(TRANSCRIBE, bearer(DAY_S), message=ONE),
        ["OK"],
        ["UNAUTHENTICATED"],
        KEYS | TOKENS,
    ),
    "jwt_admin_role": Row(
        {"jwt_admin_role": "admin"},
        {"jwt_admin_role": "boss"},
        called(CONFIG, bearer(DAY_S, roles=["boss"])),
        ["PERMISSION_DENIED"],
        ["OK"],
        KEYS | TOKENS,
    ),
    # rates
    "rate_limit_transcribe": counted("rate_limit_transcribe", called(TRANSCRIBE, n=3, message=ONE)),
    "rate_limit_long": counted("rate_limit_long", called(TRANSCRIBE, n=3, message=ONE), long_audio_s=0.5),
    "rate_limit_batch": counted("rate_limit_batch", called(BATCH, n=3, message=ONE_BATCH)),
    "rate_limit_stream": counted("rate_limit_stream", called(STREAM, n=3, message=config())),
    "rate_limit_jobs": counted("rate_limit_jobs", called(JOBS, n=3), max_concurrent_jobs=0),
    "rate_limit_config": counted("rate_limit_config", called(INFO, n=3)),
    "rate_limit_health": counted("rate_limit_health", called(REFLECTION, n=3)),
    "rate_limit_riva": counted("rate_limit_riva", called(RIVA, n=3, message=OF_RIVA)),
    "rate_limit_audio": counted("rate_limit_audio", called(TRANSCRIBE, n=3, message=ONE)),
    "rate_limit_wrong_keys": Row(
        {"rate_limit_wrong_keys": "5/day"},
        {"rate_limit_wrong_keys": "1/day"},
        called(INFO, ("x-api-key", "wrong"), n=2),
        ["UNAUTHENTICATED"] * 2,
        [BLOCKED] * 2,
        LIMITED | KEYS,
    ),
    "rate_limit_anonymous_percent": Row(
        {"rate_limit_anonymous_percent": 50},
        {"rate_limit_anonymous_percent": 25},
        called(TRANSCRIBE, n=3, message=ONE),
        ["OK", "OK", BLOCKED],
        ["OK", BLOCKED, BLOCKED],
        LIMITED | KEYS | {"rate_limit_transcribe": "4/day"},
    ),
    "long_audio_s": Row(
        {"long_audio_s": 300},
        {"long_audio_s": 0.5},
        called(TRANSCRIBE, n=2, message=ONE),
        ["OK", "OK"],
        ["OK", BLOCKED],
        LIMITED | {"rate_limit_long": "1/day"},
    ),
    "max_calls_per_caller": Row(
        {"max_calls_per_caller": 1},
        {"max_calls_per_caller": 2},
        two_held_open,
        ["held", BLOCKED],
        ["held"] * 2,
        LIMITED,
    ),
    # Riva's clients
    "riva_models": Row({"riva_models": ""}, {"riva_models": "parakeet=tiny"}, model_of_riva, "", "tiny"),
    "riva_unknown_models": Row(
        {"riva_unknown_models": "default"}, {"riva_unknown_models": "refuse"}, model_of_riva, "", "parakeet"
    ),
    # bounds
    "max_concurrent_calls": Row(
        {"max_concurrent_calls": 1}, {"max_concurrent_calls": 10}, two_held_open, ["held", "UNAVAILABLE"], ["held"] * 2
    ),
    "max_open_calls": Row(
        {"max_open_calls": 1}, {"max_open_calls": 10}, two_held_open, ["held", "UNAVAILABLE"], ["held"] * 2
    ),
    "max_audio_s": Row(
        {"max_audio_s": 0.5}, {"max_audio_s": 5}, called(TRANSCRIBE, message=ONE), ["INVALID_ARGUMENT"], ["OK"]
    ),
    "max_batch_items": Row(
        {"max_batch_items": 1}, {"max_batch_items": 2}, called(BATCH, message=LONG), ["INVALID_ARGUMENT"], ["OK"]
    ),
    "max_held_audio_s": Row(
        {"max_held_audio_s": 1.5}, {"max_held_audio_s": 100}, two_held_open, ["held", BLOCKED], ["held"] * 2
    ),
    "max_metadata_entries": Row(
        {"max_metadata_entries": 16},
        {"max_metadata_entries": 64},
        called(INFO, *[(f"x-note-{n}", "x") for n in range(20)]),
        [BLOCKED],
        ["OK"],
    ),
    "request_arrival_timeout_s": Row(
        {"request_arrival_timeout_s": 60},
        {"request_arrival_timeout_s": 0.2},
        slow_request,
        "waits",
        "DEADLINE_EXCEEDED",
    ),
    "max_unfinished_bytes": Row(
        {"max_unfinished_bytes": 2**20},
        {"max_unfinished_bytes": 2**21},
        slow_requests,
        {"waits": 3, BLOCKED: 2},
        {"waits": 5},
        {"max_message_bytes": 64 * 1024},
    ),
    # jobs and uploads
    "max_pending_jobs": Row(
        {"max_pending_jobs": 1}, {"max_pending_jobs": 5}, pending, BLOCKED, "OK", {"max_concurrent_jobs": 0}
    ),
    "max_job_audio_s": Row(
        {"max_job_audio_s": 0.5}, {"max_job_audio_s": 5}, job_state, FAILED, COMPLETED, SHORT_RETRIES
    ),
    "job_ttl": Row({"job_ttl": 100}, {"job_ttl": 500}, job_kept_s, 100, 500, SHORT_RETRIES),
    "job_max_attempts": Row(
        {"job_max_attempts": 1}, {"job_max_attempts": 2}, job_attempts, 1, 2, SHORT_RETRIES, n_failures=100
    ),
    "job_retry_delay_s": Row(
        {"job_retry_delay_s": 0.01},
        {"job_retry_delay_s": 3600},
        job_retried,
        True,
        False,
        SHORT_RETRIES,
        n_failures=1,
    ),
    "job_chunk_s": Row({"job_chunk_s": 5}, {"job_chunk_s": 60}, job_chunks, lambda n: n > 1, 1, SHORT_RETRIES),
    "max_upload_bytes": Row(
        {"max_upload_bytes": 1024},
        {"max_upload_bytes": 5000},
        uploads,
        "INVALID_ARGUMENT",
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    "max_unfinished_uploads": Row(
        {"max_unfinished_uploads": 1},
        {"max_unfinished_uploads": 2},
        upload_opened,
        ["OK", BLOCKED],
        ["OK", BLOCKED],
        {"max_concurrent_jobs": 0},
    ),
    "max_upload_bytes_per_caller": Row(
        {"max_upload_bytes_per_caller": 1024},
        {"max_upload_bytes_per_caller": 5000},
        uploads,
        BLOCKED,
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    "upload_ttl": Row({"upload_ttl": 1000}, {"upload_ttl": 9000}, upload_kept_s, 10, 90, {"max_concurrent_jobs": 0}),
    "keep_job_audio": Row({"keep_job_audio": False}, {"keep_job_audio": True}, audio_kept, False, True, SHORT_RETRIES),
    "min_free_disk_percent": Row(
        {"min_free_disk_percent": 10},
        {"min_free_disk_percent": 60},
        uploads,
        "OK",
        "UNAVAILABLE",
        {"max_concurrent_jobs": 0},
    ),
    "audio_uri_prefixes": Row(
        {"audio_uri_prefixes": ""},
        {"audio_uri_prefixes": "file://{directory}/"},
        by_uri,
        "INVALID_ARGUMENT",
        "OK",
        {"max_concurrent_jobs": 0},
    ),
    # streams
    "max_streams": Row({"max_streams": 1}, {"max_streams": 2}, two_streams, ["open", "UNAVAILABLE"], ["open"] * 2),
    "max_streams_per_caller": Row(
        {"max_streams_per_caller": 1}, {"max_streams_per_caller": 2}, two_streams, ["open", BLOCKED], ["open"] * 2
    ),
    "max_stream_s": Row({"max_stream_s": 1}, {"max_stream_s": 10}, stream_audio, "AUDIO_TOO_LONG", "OK"),
    "stream_idle_timeout_s": Row(
        {"stream_idle_timeout_s": 60}, {"stream_idle_timeout_s": 1}, idle_stream, "open", "OK"
    ),
    "stream_resume_window_s": Row(
        {"stream_resume_window_s": 60}, {"stream_resume_window_s": 0}, resumed, "resumed", "NOT_FOUND"
    ),
    "max_kept_streams": Row({"max_kept_streams": 10}, {"max_kept_streams": 0}, resumed, "resumed", "NOT_FOUND"),
    "stream_interim_interval_s": Row(
        {"stream_interim_interval_s": 1}, {"stream_interim_interval_s": 2}, interim_interval_s, 1.0, 2.0
    ),
}
# Where each of the others is tested: with a real engine, and with a real process.
ELSEWHERE = {
    "user_models": "tests/model/test_reloaded_models.py",
    "max_model_memory_bytes": "tests/model/test_reloaded_models.py",
    "log_level": "tests/service/test_hang_up.py",
    "log_format": "tests/service/test_hang_up.py",
}


def test_every_reloadable_setting_is_tested():
    assert set(ROWS) | set(ELSEWHERE) == {name for name in Settings.model_fields if is_reloadable(name)}
    root = Path(__file__).parents[2]
    assert [name for name, file in ELSEWHERE.items() if name not in (root / file).read_text("utf-8")] == []


@asynccontextmanager
async def running(row: Row, directory: Path) -> AsyncIterator[World]:
    given = row.given

    def script(call: EngineCall) -> str | BaseException:
        has_failed = len(engine.calls) <= row.n_failures
        return EngineFailed("It broke.", retryable=True) if has_failed else "a banana"

    engine = ScriptedEngine(script)
    needs_jobs = "max_concurrent_jobs" in given or "job_poll_s" in given
    async with AsyncExitStack() as stack:
        if needs_jobs:
            served: Served = await stack.enter_async_context(serving_jobs(engine, directory, **given | row.before))
        else:
            served = await stack.enter_async_context(serving(engine, **given | row.before))
        async with AsyncExitStack() as calls:
            yield World(served, engine, directory, calls)


def filled(values: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    return {
        name: value.format(**places) if isinstance(value, str) and "{" in value else value
        for name, value in values.items()
    }


def is_as(expected: Any, value: Any) -> bool:
    return bool(expected(value)) if callable(expected) else expected is ANY or value == expected


@pytest.mark.parametrize("name", ROWS)
async def test_a_reloaded_setting_takes_effect(
    name: str, tmp_path: Path, jwks_url: str, monkeypatch: pytest.MonkeyPatch
):
    words = tmp_path / "words.txt"
    words.write_text("banana\n", "utf-8")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**39, 2**39))
    places = {"jwks": jwks_url, "words": str(words), "directory": str(tmp_path)}
    row = ROWS[name]
    row = row._replace(**{part: filled(getattr(row, part), places) for part in ("before", "after", "given")})
    async with running(row, tmp_path / "data") as world:
        world.directory = tmp_path
        if row.old is not ANY:
            old = await row.probe(world)
            assert is_as(row.old, old), f"before: {old}"
        assert await world.served.reload(**row.before | row.after)
        new = await row.probe(world)
        assert is_as(row.new, new), f"after: {new}"


# ---- all or nothing


async def test_a_bad_value_of_one_part_changes_nothing_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    added = "a-new-key-that-nobody-may-see"
    async with serving(ScriptedEngine(), **KEYS, data_dir=tmp_path) as served:
        bad = {"api_keys": f"{USER},{added}", "max_audio_s": 0.5, "profanity_file": tmp_path / "none.txt"}
        assert not await served.reload(**bad)
        refused = await outcome(served, TRANSCRIBE, ("x-api-key", added), request=ONE.SerializeToString())
        assert (code(refused), served.reloads.settings.max_audio_s) == ("UNAUTHENTICATED", 3600.0)
        listed = await admin_pb2_grpc.AdminServiceStub(served.channel).ListApiKeys(
            admin_pb2.ListApiKeysRequest(), metadata=[AS_ADMIN]
        )
        assert len(listed.api_keys) == 2
        assert "all old ones stay in force" in caplog.text
        assert "profanity_file" in caplog.text
        assert await served.reload(**bad | {"profanity_file": None})
        assert await outcome(served, INFO, ("x-api-key", added)) is None
    assert added not in caplog.text


async def test_a_reload_reports_what_changed_and_what_needs_a_restart(caplog: pytest.LogCaptureFixture):
    async with serving(ScriptedEngine()) as served:
        with caplog.at_level("INFO"):
            assert await served.reload(max_audio_s=5, port=1234, model="small")
        config = served.reloads.settings
        assert (config.max_audio_s, config.port, config.model) == (5.0, 0, "base")
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert (info.max_audio_duration.seconds, info.default_model) == (5, "base")
    assert "3600.0 -> 5.0" in caplog.text
    assert "changed settings need a restart" in caplog.text
    assert "'model', 'port'" in caplog.text


async def test_the_settings_in_force_are_shown_to_admins():
    async with serving(ScriptedEngine(), **KEYS) as served:
        assert await served.reload(max_audio_s=5, port=1234)
        answer = await admin_pb2_grpc.AdminServiceStub(served.channel).GetConfig(
            admin_pb2.GetConfigRequest(), metadata=[AS_ADMIN]
        )
    assert (answer.settings["TYPELESS_MAX_AUDIO_S"], answer.settings["TYPELESS_PORT"]) == ("5.0", "0")


async def test_the_calls_of_a_key_that_was_removed_end_and_others_continue():
    engine = ScriptedEngine()
    engine.gate.clear()
    other = "another-key-of-the-settings"
    async with serving(engine, **KEYS | {"api_keys": f"{USER},{other}"}) as served:
        ending, staying = [
            served.transcription.Transcribe(request(), metadata=[("x-api-key", key)]) for key in (USER, other)
        ]
        await engine.until(n_calls=2)
        assert await served.reload(api_keys=other)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ending
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        engine.gate.set()
        await staying


async def test_a_revoked_key_does_not_come_back_with_a_reload():
    async with serving(ScriptedEngine(), **KEYS) as served:
        admin = admin_pb2_grpc.AdminServiceStub(served.channel)
        keys = (await admin.ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=[AS_ADMIN])).api_keys
        user = next(key for key in keys if key.role == admin_pb2.API_KEY_ROLE_USER)
        await admin.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(key_id=user.key_id), metadata=[AS_ADMIN])
        assert await served.reload(api_keys=f"{USER},one-more-key")
        refused = await outcome(served, INFO, AS_USER)
    assert refused is not None
    assert refused.reason == "KEY_REVOKED"


async def test_a_limit_set_at_run_time_stays_in_force():
    async with serving(ScriptedEngine(), **LIMITED | KEYS, rate_limit_transcribe="5/day") as served:
        limit = admin_pb2.RateLimit(group="transcribe", amount=1, period_seconds=86_400)
        await admin_pb2_grpc.AdminServiceStub(served.channel).UpdateRateLimit(
            admin_pb2.UpdateRateLimitRequest(rate_limit=limit), metadata=[AS_ADMIN]
        )
        assert await served.reload(rate_limit_transcribe="9/day")
        probe = called(TRANSCRIBE, AS_USER, n=2, message=ONE)
        assert await probe(World(served, ScriptedEngine(), Path(), AsyncExitStack())) == ["OK", BLOCKED]


async def test_calls_in_progress_survive_a_reload_that_lowers_their_bounds():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with serving(engine) as served:
        calls = [served.transcription.Transcribe(request()) for _ in range(3)]
        await engine.until(n_calls=3)
        assert await served.reload(max_concurrent_calls=1, max_open_calls=1, max_held_audio_s=0.1, max_audio_s=0.1)
        engine.gate.set()
        assert [(await call).transcript.text for call in calls] == ["1.0 seconds"] * 3
        refused = await outcome(served, TRANSCRIBE, request=ONE.SerializeToString())
    assert code(refused) == "INVALID_ARGUMENT"


async def test_the_metrics_say_whether_the_last_reload_succeeded_and_how_old_the_settings_are():
    metrics = Metrics()
    reloads = Reloads(Settings(), report=metrics.reloaded)

    def shown() -> tuple[float | None, float | None]:
        value = metrics.registry.get_sample_value
        return value("typeless_config_reload_successful"), value("typeless_config_reload_timestamp_seconds")

    is_successful, began_s = shown()
    assert is_successful == 1
    assert not await reloads.reload(lambda: load(file=Path("/no/such/file")))
    assert shown() == (0, began_s)
    assert await reloads.reload(load)
    is_successful, reloaded_s = shown()
    assert is_successful == 1
    assert reloaded_s is not None
    assert began_s is not None
    assert reloaded_s > began_s
