"""The usage of each key, counted by servers and listed by AdminService."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import Served, request, serving_jobs
from tests.identity_provider import bearer
from tests.postgres import Postgres
from tests.service.access import KEYS, USER, guarded, outcome
from tests.service.streams import END, audio, config
from tests.service.test_access import new_key, revoke
from tests.service.test_admin import call
from tests.service.test_jobs import submission
from tests.service.test_tokens import jwks_url  # noqa: F401 - a fixture
from tests.service.test_transcribe import refused
from tests.speech import speech
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import admin_pb2
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeResponse

AS_USER = (("x-api-key", USER),)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings of servers that share a database."""
    if request.param == "sqlite":
        return {"data_dir": str(tmp_path)}
    return {"database_url": new_database(request.getfixturevalue("postgres"))}


def new_database(postgres: Postgres) -> str:
    engine = sa.create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    name = f"usage_{datetime.now(UTC):%H%M%S%f}"
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{postgres.url.rpartition('/')[0]}/{name}"


async def listed(served: Served, **fields: Any) -> list[admin_pb2.DailyUsage]:
    answer = await call(served, "ListUsage", admin_pb2.ListUsageRequest(**fields))
    return list(answer.usage)


@dataclass
class Sum:
    """The usage of all days; audio in milliseconds."""

    calls: int = 0
    failed: int = 0
    audio_ms: int = 0
    jobs: int = 0


async def sums(served: Served) -> dict[str, Sum]:
    """From key id, or token subject, to usage."""
    found: dict[str, Sum] = {}
    for one in await listed(served):
        total = found.setdefault(one.key_id or one.token_subject, Sum())
        total.calls += one.calls
        total.failed += one.failed_calls
        total.audio_ms += one.audio_duration.ToMilliseconds()
        total.jobs += one.jobs
    return found


def as_key(secret: str) -> tuple[tuple[str, str], ...]:
    return (("x-api-key", secret),)


async def test_all_calls_of_all_keys_are_counted_by_servers_that_share_a_database(shared: dict[str, Any]):
    async with guarded(**shared) as served:
        keys = [await new_key(served) for _ in range(3)]
    expected = {key.api_key.key_id: Sum() for key in keys}

    async def use(served: Served, n: int) -> None:
        key, seconds = keys[n % 3], 0.5 + n / 10
        await served.transcription.Transcribe(request(seconds), metadata=as_key(key.secret))
        failed = await refused(served.transcription.Transcribe(request(0.0), metadata=as_key(key.secret)))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        total = expected[key.api_key.key_id]
        total.calls += 2
        total.failed += 1
        total.audio_ms += round(seconds * 1000)

    for _ in range(2):  # restarted in the middle
        async with guarded(**shared) as one, guarded(**shared) as other, asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task(use((one, other)[n % 2], n))
    async with guarded(**shared) as served:
        found = await sums(served)
        assert {key: found[key] for key in expected} == expected
        # The answer includes what the server has counted until now.
        await served.transcription.Transcribe(request(), metadata=as_key(keys[0].secret))
        assert (await sums(served))[keys[0].api_key.key_id].calls == expected[keys[0].api_key.key_id].calls + 1


async def test_a_revoked_key_still_has_its_usage_and_its_refused_calls_do_not_count():
    async with guarded() as served:
        key = await new_key(served)
        await served.transcription.Transcribe(request(2.0), metadata=as_key(key.secret))
        await revoke(served, key.api_key.key_id)
        await refused(served.transcription.Transcribe(request(), metadata=as_key(key.secret)))
        (found,) = await listed(served, key_id=key.api_key.key_id)
    assert (found.calls, found.failed_calls, found.audio_duration.ToMilliseconds()) == (1, 0, 2000)
    assert found.day == datetime.now(UTC).date().isoformat()


async def test_callers_without_a_key_are_one_row_and_probes_none():
    async with guarded() as served:
        await served.transcription.Transcribe(request(1.0))
        await outcome(served, "/typeless.v1.ServerService/GetServerInfo")
        await outcome(served, "/grpc.health.v1.Health/Watch")
        await outcome(served, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
        await refused(served.transcription.Transcribe(request(), metadata=as_key("wrong")))
        assert await sums(served) == {"": Sum(2, 0, 1000)}


async def test_usage_of_tokens_is_by_their_subject(jwks_url: str):  # noqa: F811
    settings = {"jwt_issuer": "https://id.example", "jwt_audience": "typeless", "jwt_jwks_url": jwks_url}
    async with guarded(require_auth=True, **settings) as served:
        for subject in ("ada", "bob", "ada"):
            await served.transcription.Transcribe(request(1.0), metadata=(bearer(sub=subject),))
        assert await sums(served) == {"ada": Sum(2, 0, 2000), "bob": Sum(1, 0, 1000)}


async def opened(served: Served, **fields: Any) -> tuple[Any, StreamTranscribeResponse]:
    stream = served.transcription.StreamTranscribe(metadata=AS_USER)
    await stream.write(config(**fields))
    return stream, await stream.read()


async def ended(stream: Any, data: bytes) -> None:
    for part in (*audio(data), END):
        await stream.write(part)
    while await stream.read() is not grpc.aio.EOF:
        pass


async def user_sum(served: Served, *, audio_ms: int) -> Sum:
    """The usage of the user's key, once it has so much audio."""
    keys = (await call(served, "ListApiKeys", admin_pb2.ListApiKeysRequest())).api_keys
    key_id = next(key.key_id for key in keys if key.display_name == "TYPELESS_API_KEYS")
    async with asyncio.timeout(30):
        while (found := (await sums(served)).get(key_id, Sum())).audio_ms != audio_ms:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def test_the_audio_of_a_stream_shows_while_it_is_open():
    async with guarded(ScriptedEngine(lambda call: "hello")) as served:
        stream, _ = await opened(served)
        for part in audio(speech(3.0)):
            await stream.write(part)
        assert await user_sum(served, audio_ms=3000) == Sum(0, 0, 3000)
        await ended(stream, b"")
        assert await user_sum(served, audio_ms=3000) == Sum(1, 0, 3000)


async def test_the_audio_of_a_stream_that_is_resumed_counts_once():
    data = speech(3.0)
    async with guarded(ScriptedEngine(lambda call: "hello")) as served:
        first, response = await opened(served)
        for part in audio(data[: len(data) * 2 // 3]):
            await first.write(part)
        await user_sum(served, audio_ms=2000)
        first.cancel()
        second, resumed = await opened(served, format=None, resume_session_id=response.started.session_id)
        assert resumed.started.resumed
        await ended(second, data[len(data) * 2 // 3 :])
        assert await user_sum(served, audio_ms=3000) == Sum(2, 0, 3000)


async def test_a_job_counts_once_and_its_audio_when_it_is_transcribed(tmp_path: Path, shared: dict[str, Any]):
    settings = {name: value for name, value in shared.items() if name != "data_dir"}  # which is tmp_path anyway
    async with serving_jobs(ScriptedEngine(lambda call: "x"), tmp_path, **KEYS | settings) as served:
        key = await new_key(served)
        for _ in range(3):
            await served.jobs.SubmitJob(submission(2.5, request_id="the same"), metadata=as_key(key.secret))
        async with asyncio.timeout(60):
            while (await sums(served))[key.api_key.key_id] != Sum(3, 0, 2500, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_database_that_is_unavailable_for_a_while_loses_no_usage(postgres: Postgres):
    async with guarded(database_url=new_database(postgres)) as served:
        key = await new_key(served)
        await served.transcription.Transcribe(request(1.0), metadata=as_key(key.secret))
        postgres.stop()
        try:
            for _ in range(5):
                await served.transcription.Transcribe(request(1.0), metadata=as_key(key.secret))
            failed = await refused(call(served, "ListUsage", admin_pb2.ListUsageRequest()))
            assert failed.reason == "KEY_STORE_UNAVAILABLE"
        finally:
            postgres.start()
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await sums(served)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
        assert found[key.api_key.key_id] == Sum(6, 0, 6000)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"first_day": "yesterday"}, "first_day"),
        ({"first_day": "20250131"}, "first_day"),
        ({"first_day": "2025-W05-5"}, "first_day"),
        ({"last_day": "2025-02-30"}, "last_day"),
        ({"first_day": "2025-02-01", "last_day": "2025-01-31"}, "last_day"),
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "next, please"}, "page_token"),
        ({"page_token": "ÿ"}, "page_token"),
        ({"page_token": "MjAyNS0wMS0zMS8A"}, "page_token"),
        ({"key_id": "k\0"}, "key_id"),
    ],
)
async def test_a_request_that_is_wrong_is_refused_by_field(fields: dict[str, Any], field: str):
    async with guarded() as served:
        failed = await refused(call(served, "ListUsage", admin_pb2.ListUsageRequest(**fields)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path, _ in failed.fields] == [field]


async def test_a_users_key_may_not_list_usage():
    async with guarded() as served:
        failed = await outcome(served, "/typeless.v1.AdminService/ListUsage", *AS_USER)
    assert failed is not None
    assert failed.reason == "ADMIN_KEY_REQUIRED"
