"""AdminService as its callers see it: what it takes, what it refuses, and how it pages."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.harness import Served, request
from tests.service.access import ADMIN, KEYS, USER, guarded
from tests.service.test_transcribe import refused
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc
from typeless_grpc.version import VERSION

AS_ADMIN = (("x-api-key", ADMIN),)
CALLS, AUDIO, AT_ONCE = (
    admin_pb2.RATE_LIMIT_UNIT_CALLS,
    admin_pb2.RATE_LIMIT_UNIT_AUDIO_SECONDS,
    admin_pb2.RATE_LIMIT_UNIT_CONCURRENT_CALLS,
)


async def call(served: Served, name: str, message: Any) -> Any:
    return await getattr(admin_pb2_grpc.AdminServiceStub(served.channel), name)(message, metadata=AS_ADMIN)


async def listed(served: Served, **fields: Any) -> admin_pb2.ListApiKeysResponse:
    answer: admin_pb2.ListApiKeysResponse = await call(served, "ListApiKeys", admin_pb2.ListApiKeysRequest(**fields))
    return answer


def in_s(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() + round(seconds * 1e9))
    return moment


async def test_a_key_is_made_listed_used_and_revoked():
    expiry = in_s(3600)
    async with guarded() as served:
        made = await call(
            served,
            "CreateApiKey",
            admin_pb2.CreateApiKeyRequest(
                display_name="night shift", role=admin_pb2.API_KEY_ROLE_ADMIN, expire_time=expiry
            ),
        )
        await served.transcription.Transcribe(request(), metadata=(("x-api-key", made.secret),))
        after_use = next(key for key in (await listed(served)).api_keys if key.key_id == made.api_key.key_id)
        revoked = (
            await call(served, "RevokeApiKey", admin_pb2.RevokeApiKeyRequest(key_id=made.api_key.key_id))
        ).api_key
    key = made.api_key
    assert (key.display_name, key.role, key.revoked) == ("night shift", admin_pb2.API_KEY_ROLE_ADMIN, False)
    assert made.secret.startswith(key.prefix)
    assert len(key.prefix) < 12
    assert abs(key.create_time.ToSeconds() - time.time()) < 60
    assert abs(key.expire_time.ToMicroseconds() - expiry.ToMicroseconds()) <= 1
    assert not key.HasField("last_use_time")
    assert abs(after_use.last_use_time.ToSeconds() - time.time()) < 60
    assert revoked.revoked
    assert revoked.key_id == key.key_id


async def test_by_default_a_key_is_a_users_and_never_expires():
    async with guarded() as served:
        made = await call(served, "CreateApiKey", admin_pb2.CreateApiKeyRequest())
    assert made.api_key.role == admin_pb2.API_KEY_ROLE_USER
    assert not made.api_key.HasField("expire_time")


async def test_keys_come_in_pages_each_key_once():
    async with guarded() as served:
        for n in range(5):
            await call(served, "CreateApiKey", admin_pb2.CreateApiKeyRequest(display_name=str(n)))
        names, token = [], ""
        while True:
            page = await listed(served, page_size=2, page_token=token)
            assert len(page.api_keys) <= 2
            names += [key.display_name for key in page.api_keys]
            token = page.next_page_token
            if not token:
                break
        everything = await listed(served)
    assert names == ["TYPELESS_API_KEYS", "TYPELESS_ADMIN_KEYS", "0", "1", "2", "3", "4"]
    assert [key.display_name for key in everything.api_keys] == names


@pytest.mark.parametrize(
    ("name", "message", "field"),
    [
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(role=9), "role"),  # type: ignore[arg-type]
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(expire_time=in_s(-1)), "expire_time"),
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(expire_time=Timestamp()), "expire_time"),
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(expire_time=Timestamp(seconds=2**62)), "expire_time"),
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(display_name="x" * 257), "display_name"),
        ("CreateApiKey", admin_pb2.CreateApiKeyRequest(display_name="x\0"), "display_name"),
        ("RevokeApiKey", admin_pb2.RevokeApiKeyRequest(key_id="k\0"), "key_id"),
        ("ListApiKeys", admin_pb2.ListApiKeysRequest(page_size=-1), "page_size"),
        ("ListApiKeys", admin_pb2.ListApiKeysRequest(page_size=1001), "page_size"),
        ("ListApiKeys", admin_pb2.ListApiKeysRequest(page_token="next, please"), "page_token"),
        ("ListApiKeys", admin_pb2.ListApiKeysRequest(page_token="9" * 30), "page_token"),
        ("RevokeApiKey", admin_pb2.RevokeApiKeyRequest(), "key_id"),
    ],
)
async def test_a_request_that_is_wrong_is_refused_by_field(name: str, message: Any, field: str):
    async with guarded() as served:
        failed = await refused(call(served, name, message))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path, _ in failed.fields] == [field]


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        ({"group": "jobs"}, ["amount", "period_seconds"]),
        ({"group": "tea", "amount": 1, "period_seconds": 1}, ["group"]),
        ({"group": "", "unit": 9}, ["group", "unit", "amount", "period_seconds"]),
        ({"group": "jobs", "amount": -1, "period_seconds": 1}, ["amount"]),
        ({"group": "jobs", "amount": 1, "period_seconds": 1, "burst": -1}, ["burst"]),
        ({"group": "jobs", "unit": AT_ONCE}, ["burst"]),
        ({"group": "jobs", "amount": 1, "period_seconds": 1, "unit": AUDIO}, ["unit"]),
        ({"group": "long", "unit": AT_ONCE, "burst": 1}, ["unit"]),
        ({"group": "jobs", "unit": AT_ONCE, "burst": 2, "amount": 1}, ["amount"]),
    ],
)
async def test_a_limit_that_is_wrong_is_refused_by_field(limit: dict[str, Any], fields: list[str]):
    message = admin_pb2.UpdateRateLimitRequest(rate_limit=admin_pb2.RateLimit(**limit))
    async with guarded() as served:
        failed = await refused(call(served, "UpdateRateLimit", message))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path, _ in failed.fields] == [f"rate_limit.{field}" for field in fields]


@pytest.mark.parametrize(
    ("given", "answered"),
    [
        (
            {"group": "jobs", "amount": 5, "period_seconds": 10},
            {"group": "jobs", "amount": 5, "period_seconds": 10, "burst": 5, "unit": CALLS},
        ),
        (
            {"group": "stream", "amount": 60, "period_seconds": 60, "burst": 600, "unit": AUDIO},
            {"group": "stream", "amount": 60, "period_seconds": 60, "burst": 600, "unit": AUDIO},
        ),
        ({"group": "stream", "burst": 2, "unit": AT_ONCE}, {"group": "stream", "burst": 2, "unit": AT_ONCE}),
    ],
)
async def test_a_limit_is_answered_as_it_is_in_force(given: dict[str, Any], answered: dict[str, Any]):
    async with guarded() as served:
        message = admin_pb2.UpdateRateLimitRequest(rate_limit=admin_pb2.RateLimit(**given))
        answer = await call(served, "UpdateRateLimit", message)
        shown = await call(served, "GetConfig", admin_pb2.GetConfigRequest())
    assert answer.rate_limit == admin_pb2.RateLimit(**answered)
    of_its_kind = [
        limit for limit in shown.rate_limits if (limit.group, limit.unit) == (given["group"], answered["unit"])
    ]
    assert of_its_kind == [answer.rate_limit]


async def test_requests_for_an_unknown_key_are_not_found():
    update = admin_pb2.UpdateRateLimitRequest(
        key_id="k0", rate_limit=admin_pb2.RateLimit(group="jobs", amount=1, period_seconds=1)
    )
    async with guarded() as served:
        failures = [
            await refused(call(served, "RevokeApiKey", admin_pb2.RevokeApiKeyRequest(key_id="k0"))),
            await refused(call(served, "UpdateRateLimit", update)),
        ]
    assert {(failed.code, failed.reason) for failed in failures} == {(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")}


async def test_changes_are_logged_with_their_author(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    async with guarded() as served:
        made = await call(served, "CreateApiKey", admin_pb2.CreateApiKeyRequest(display_name="a name"))
        key_id = made.api_key.key_id
        limit = admin_pb2.RateLimit(group="jobs", amount=5, period_seconds=10)
        await call(served, "UpdateRateLimit", admin_pb2.UpdateRateLimitRequest(rate_limit=limit, key_id=key_id))
        await call(served, "RevokeApiKey", admin_pb2.RevokeApiKeyRequest(key_id=key_id))
    lines = [record.getMessage() for record in caplog.records if "servicers.admin" in record.name]
    assert [event for line in lines for event in ("key created", "limit set", "key revoked") if event in line] == [
        *("key created", "limit set", "key revoked")
    ]
    assert all(key_id in line and "by" in line for line in lines)
    assert made.secret not in caplog.text


async def test_the_number_of_keys_is_bounded():
    async with guarded(max_api_keys=3) as served:
        await call(served, "CreateApiKey", admin_pb2.CreateApiKeyRequest())
        failed = await refused(call(served, "CreateApiKey", admin_pb2.CreateApiKeyRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_KEYS")


async def test_the_settings_are_shown_without_their_secrets():
    urls = {"redis_url": "redis://user:a-password@127.0.0.1:1/0"}
    async with guarded(ScriptedEngine(), max_audio_s=60.0, trusted_proxies="10.0.0.0/8", **urls) as served:
        shown = await call(served, "GetConfig", admin_pb2.GetConfigRequest())
    assert shown.version == VERSION
    assert shown.settings["TYPELESS_MAX_AUDIO_S"] == "60.0"
    assert shown.settings["TYPELESS_TRUSTED_PROXIES"] == '["10.0.0.0/8"]'
    assert shown.settings["TYPELESS_HOST"] == "127.0.0.1"
    assert "TYPELESS_REDIS_URL" not in shown.settings
    for secret in (USER, ADMIN, KEYS["api_keys"], "a-password"):
        assert secret not in str(shown)
    assert {limit.group for limit in shown.rate_limits} == {
        *("transcribe", "long", "batch", "stream", "jobs", "config", "health", "google", "riva")
    }
