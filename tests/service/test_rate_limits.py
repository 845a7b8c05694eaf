"""Quotas over real channels, with one server and with two, while Redis is available, unavailable and back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests import servers
from tests.harness import Served, request, serving
from tests.service.access import ADMIN, USER, guarded, outcome
from typeless_grpc.client import CallFailed
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import Overloaded
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, transcription_pb2

AS_USER = (("x-api-key", USER),)
AS_ADMIN = (("x-api-key", ADMIN),)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TEN = "10/hour"  # nothing comes back while a test runs, however slow the machine
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
INFO = "/typeless.v1.ServerService/GetServerInfo"


async def transcribe(
    served: Served, *metadata: tuple[str, str], seconds: float = 0.1
) -> grpc.aio.Metadata | CallFailed:
    """The trailers of a call that went well, or what it failed with."""
    call = served.transcription.Transcribe(request(seconds), metadata=metadata)
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return CallFailed.of(error)
    trailers: grpc.aio.Metadata = await call.trailing_metadata()
    return trailers


def n_passed(outcomes: list[Any]) -> int:
    return sum(not isinstance(one, CallFailed) for one in outcomes)


def limited(**settings: Any) -> Any:
    return serving(ScriptedEngine(), rate_limit_enabled=True, **settings)


async def update(served: Served, key_id: str = "", **limit: Any) -> None:
    message = admin_pb2.UpdateRateLimitRequest(rate_limit=admin_pb2.RateLimit(**limit), key_id=key_id)
    await admin_pb2_grpc.AdminServiceStub(served.channel).UpdateRateLimit(message, metadata=AS_ADMIN)


async def test_of_a_hundred_calls_at_once_exactly_ten_get_through():
    async with limited(rate_limit_transcribe=TEN, max_calls_per_caller=100) as served:
        outcomes = await asyncio.gather(*(transcribe(served) for _ in range(100)))
    assert n_passed(outcomes) == 10
    assert {(f.code, f.reason) for f in outcomes if isinstance(f, CallFailed)} == {(EXHAUSTED, "RATE_LIMITED")}


async def test_only_a_caller_on_the_machine_of_a_server_without_keys_learns_the_setting_of_quotas():
    setting = "TYPELESS_RATE_LIMIT_ENABLED=false"
    async with limited(rate_limit_transcribe="1/hour") as served:
        here = [await transcribe(served) for _ in range(2)][-1]
        elsewhere = [await transcribe(served, ("x-forwarded-for", "192.0.2.1")) for _ in range(2)][-1]
    assert isinstance(here, CallFailed)
    assert isinstance(elsewhere, CallFailed)
    assert (setting in str(here), setting in str(elsewhere)) == (True, False)


async def test_two_servers_that_share_a_redis_let_ten_through_together(tmp_path: Path):
    with servers.redis_server(tmp_path) as redis:
        shared = {"redis_url": redis.url, "redis_timeout_s": 30.0, "rate_limit_transcribe": TEN}
        shared["max_calls_per_caller"] = 100
        async with limited(**shared) as one, limited(**shared) as other:
            outcomes = await asyncio.gather(*(transcribe((one, other)[n % 2]) for n in range(100)))
    assert n_passed(outcomes) == 10


async def test_the_eleventh_call_gets_a_retry_delay_and_succeeds_after_it():
    async with limited(rate_limit_transcribe="10/second:3") as served:
        while not isinstance(refused := await transcribe(served), CallFailed):
            pass
        wait_s = refused.retry_after_s
        assert wait_s is not None
        assert 0 < wait_s <= 0.11
        await asyncio.sleep(wait_s)
        assert not isinstance(await transcribe(served), CallFailed)


async def test_an_admitted_call_reports_the_state_of_its_quota():
    async with limited(rate_limit_transcribe="6/hour:3") as served:
        standing = [await transcribe(served) for _ in range(2)]
    trailers = [
        {name: int(value) for name, value in one if name.startswith("ratelimit-")}
        for one in standing
        if not isinstance(one, CallFailed)
    ]
    assert [one.pop("ratelimit-reset") for one in trailers] == [600, pytest.approx(1200, abs=60)]
    assert trailers == [{"ratelimit-limit": 3, "ratelimit-remaining": left} for left in (2, 1)]


async def test_a_refusal_has_its_reason_and_a_time_to_retry_in_every_form():
    async with limited(rate_limit_transcribe="1/minute") as served:
        await transcribe(served)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.transcription.Transcribe(request())
    trailers = {name: value for name, value in caught.value.trailing_metadata()}  # noqa: C416 - no mapping
    assert int(trailers["retry-after"]) == pytest.approx(60, abs=20)
    assert int(trailers["grpc-retry-pushback-ms"]) == pytest.approx(60_000, abs=20_000)
    details = {
        d.type_url.rpartition(".")[2]: d
        for d in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    }
    assert set(details) == {"ErrorInfo", "QuotaFailure", "RetryInfo"}
    quota = error_details_pb2.QuotaFailure()
    details["QuotaFailure"].Unpack(quota)
    assert [(v.subject, v.description) for v in quota.violations] == [
        ("address:127.0.0.1", "transcribe: 1 calls in 60 s")
    ]


async def test_a_call_with_a_mistake_counts_and_one_refused_for_load_does_not():
    engine = ScriptedEngine(lambda call: Overloaded("Busy."))
    bad = transcription_pb2.TranscribeRequest()
    async with serving(engine, rate_limit_enabled=True, rate_limit_transcribe="2/hour") as served:
        busy = [await transcribe(served) for _ in range(5)]
        wrong = [
            await outcome(served, "/typeless.v1.TranscriptionService/Transcribe", request=bad.SerializeToString())
            for _ in range(3)
        ]
    assert [f.code.name for f in busy if isinstance(f, CallFailed)] == ["UNAVAILABLE"] * 5
    assert [f.code.name for f in wrong if f] == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"]


async def test_groups_have_quotas_of_their_own():
    async with limited(rate_limit_transcribe="1/hour", rate_limit_config="1/hour") as served:
        outcomes = [await transcribe(served) for _ in range(2)]
        info = [await outcome(served, "/typeless.v1.ServerService/GetServerInfo") for _ in range(2)]
        health = [await outcome(served, CHECK) for _ in range(3)]
    assert n_passed(outcomes) == 1
    assert [f is None for f in info] == [True, False]
    assert health == [None] * 3


async def test_health_checks_are_charged_to_no_quota():
    async with limited(rate_limit_health="1/hour", max_calls_per_caller=1) as served:
        assert [await outcome(served, CHECK) for _ in range(5)] == [None] * 5


async def test_callers_have_quotas_of_their_own():
    limits = {"rate_limit_enabled": True, "rate_limit_transcribe": "4/hour"}
    async with guarded(**limits) as served:
        passed = {
            name: n_passed([await transcribe(served, *metadata) for _ in range(6)])
            for name, metadata in {"user": AS_USER, "admin": AS_ADMIN, "anonymous": ()}.items()
        }
    assert passed == {"user": 4, "admin": 4, "anonymous": 2}


async def test_a_forwarded_address_is_trusted_only_from_a_trusted_proxy():
    def sent_by(address: str) -> tuple[str, str]:
        return ("x-forwarded-for", address)

    async with limited(rate_limit_config="1/hour", trusted_proxies="127.0.0.0/8") as served:
        believed = [await outcome(served, INFO, sent_by(f"198.51.100.{n}")) for n in (1, 1, 2)]
    async with limited(rate_limit_config="1/hour") as served:
        not_believed = [await outcome(served, INFO, sent_by(f"198.51.100.{n}")) for n in (1, 2)]
    assert [f is None for f in believed] == [True, False, True]
    assert [f is None for f in not_believed] == [True, False]


async def test_a_long_recording_is_charged_to_both_groups():
    settings = {"long_audio_s": 0.5, "rate_limit_long": "1/hour", "rate_limit_transcribe": "5/hour"}
    async with limited(**settings) as served:
        long = [await transcribe(served, seconds=1.0) for _ in range(2)]
        short = [await transcribe(served) for _ in range(4)]
    assert n_passed(long) == 1
    assert "group long" in str(long[1])
    assert n_passed(short) == 3


async def test_seconds_of_audio_are_a_quota_too():
    engine = ScriptedEngine()
    async with serving(engine, rate_limit_enabled=True, rate_limit_audio="5/minute") as served:
        outcomes = [await transcribe(served, seconds=seconds) for seconds in (2.5, 2.0, 2.0, 6.0)]
    assert n_passed(outcomes) == 2
    assert len(engine.calls) == 2
    refused, hopeless = outcomes[2:]
    assert isinstance(refused, CallFailed)
    assert refused.retry_after_s == pytest.approx(24, abs=10)
    assert isinstance(hopeless, CallFailed)
    assert (hopeless.code, hopeless.retry_after_s) == (EXHAUSTED, None)


async def test_calls_open_at_once_are_bounded_for_each_caller():
    engine = ScriptedEngine()
    engine.gate.clear()
    limits = {"rate_limit_enabled": True, "max_calls_per_caller": 2}
    async with guarded(engine, **limits) as served:
        open_calls = [served.transcription.Transcribe(request(), metadata=AS_USER) for _ in range(2)]
        await engine.until(n_calls=2)
        refused = await transcribe(served, *AS_USER)
        another = served.transcription.Transcribe(request(), metadata=AS_ADMIN)
        await engine.until(n_calls=3)
        engine.gate.set()
        await asyncio.gather(*open_calls, another)
        again = await transcribe(served, *AS_USER)
    assert isinstance(refused, CallFailed)
    assert (refused.code, refused.retry_after_s) == (EXHAUSTED, 1.0)
    assert not isinstance(again, CallFailed)


async def test_streams_open_at_once_are_bounded_too_and_health_is_checked_beside_them():
    async with limited(max_calls_per_caller=1) as served:
        watch = served.channel.unary_stream(WATCH)
        stream = watch(b"")
        await stream.read()
        refused = await outcome(served, WATCH)
        check = await outcome(served, CHECK)
        stream.cancel()
        async with asyncio.timeout(30):
            while await outcome(served, WATCH) is not None:
                pass
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == (EXHAUSTED, 1.0)
    assert check is None


async def test_all_limits_can_be_switched_off():
    off = {"rate_limit_enabled": False, "rate_limit_transcribe": "1/minute", "max_calls_per_caller": 1}
    async with serving(ScriptedEngine(), **off) as served:
        outcomes = await asyncio.gather(*(transcribe(served) for _ in range(20)))
    assert n_passed(outcomes) == 20


async def test_one_limit_can_be_switched_off():
    async with limited(rate_limit_transcribe="off") as served:
        outcomes = await asyncio.gather(*(transcribe(served) for _ in range(20)))
    assert n_passed(outcomes) == 20


async def test_a_limit_set_while_serving_holds_at_once_for_one_key_or_all_and_after_a_restart(tmp_path: Path):
    kept = {"data_dir": str(tmp_path), "rate_limit_enabled": True}
    async with guarded(**kept) as served:
        keys = await admin_pb2_grpc.AdminServiceStub(served.channel).ListApiKeys(
            admin_pb2.ListApiKeysRequest(), metadata=AS_ADMIN
        )
        user = next(key for key in keys.api_keys if key.role == admin_pb2.API_KEY_ROLE_USER)
        await update(served, group="transcribe", amount=2, period_seconds=3600)
        await update(served, user.key_id, group="transcribe", amount=3, period_seconds=3600)
        first = [n_passed([await transcribe(served, *who) for _ in range(5)]) for who in (AS_USER, AS_ADMIN)]
    async with guarded(**kept) as served:
        after = [n_passed([await transcribe(served, *who) for _ in range(5)]) for who in (AS_USER, AS_ADMIN)]
    assert first == after == [3, 2]


async def test_no_call_fails_while_redis_is_unavailable_and_limits_are_exact_afterwards(tmp_path: Path, caplog: Any):
    """Killed and started again while 4 callers call without pause."""
    with servers.redis_server(tmp_path) as redis:
        settings = {"redis_url": redis.url, "rate_limit_config": "100000/minute", "rate_limit_transcribe": "3/hour"}
        async with limited(**settings) as served:
            outcomes: Counter[str] = Counter()
            done = asyncio.Event()

            async def call_on() -> None:
                while not done.is_set():
                    failed = await outcome(served, INFO)
                    outcomes[failed.code.name if failed else "OK"] += 1

            async def reach(n_calls: int) -> None:
                async with asyncio.timeout(30):
                    goal = outcomes.total() + n_calls
                    while outcomes.total() < goal:  # noqa: ASYNC110 - two lines say it better than an event
                        await asyncio.sleep(0.01)

            callers = [asyncio.create_task(call_on()) for _ in range(4)]
            await reach(50)
            await asyncio.to_thread(redis.kill)
            await reach(200)
            alone = [await transcribe(served) for _ in range(5)]
            await asyncio.to_thread(redis.start)
            async with asyncio.timeout(30):
                while "available again" not in caplog.text:  # noqa: ASYNC110 - a log line sets no event
                    await asyncio.sleep(0.02)
            await reach(50)
            done.set()
            await asyncio.gather(*callers)
            shared = [await transcribe(served) for _ in range(5)]
    assert set(outcomes) == {"OK"}
    assert n_passed(alone) == 3
    assert n_passed(shared) == 3
    assert caplog.text.count("unavailable; retrying") == 1
    assert caplog.text.count("available again") == 1


async def test_an_operator_can_refuse_calls_but_not_probes_while_redis_is_unavailable():
    unreachable = f"redis://127.0.0.1:{servers.free_port()}/0"
    async with limited(redis_url=unreachable, redis_fallback="refuse") as served:
        failed = await outcome(served, INFO)
        assert await outcome(served, CHECK) is None
        watch = served.channel.unary_stream(WATCH)(b"")
        assert await watch.read() is not grpc.aio.EOF
    assert failed is not None
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "RATE_LIMITS_UNAVAILABLE")
    assert failed.retry_after_s == 1.0
