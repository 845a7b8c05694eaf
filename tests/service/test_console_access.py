"""Access to the console: keys, quotas, mutual TLS, and pages of other sites."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.harness import serving, serving_jobs
from tests.service.access import ADMIN, USER, guarded
from tests.service.console import END, HELLO, closed, config, reason, receive, with_console
from tests.service.test_tls import Authority
from typeless_grpc.engine.scripted import ScriptedEngine


async def test_keys_are_those_of_grpc():
    async with with_console(guarded, require_auth=True) as (_, site):
        calls = {
            "none": await site.call("ModelService", "ListModels"),
            "wrong": await site.call("ModelService", "ListModels", x_api_key="wrong"),
            "user": await site.call("AdminService", "ListApiKeys", authorization=f"Bearer {USER}"),
            "admin": await site.call("AdminService", "ListApiKeys", x_api_key=ADMIN),
        }
        assert {who: answer.status for who, answer in calls.items()} == {
            "none": 401,
            "wrong": 401,
            "user": 403,
            "admin": 200,
        }
        assert calls["user"].reason == "ADMIN_KEY_REQUIRED"
        for key, code in (("", 4016), ("wrong", 4016), (USER, 1000)):
            async with site.socket(key=key) as ws:
                await ws.send(config())
                await ws.send(END)
                assert (await closed(ws))[1] == code, key
        async with site.socket(key="", additional_headers={"x-api-key": USER}) as ws:
            await ws.send(config())
            assert "started" in await receive(ws)


async def test_a_stream_ends_when_its_key_is_revoked():
    async with with_console(guarded) as (_, site):
        made = await site.call("AdminService", "CreateApiKey", {"displayName": "a visitor"}, x_api_key=ADMIN)
        async with site.socket(key=made.json["secret"]) as ws:
            await ws.send(config())
            await receive(ws)
            key = {"keyId": made.json["apiKey"]["keyId"]}
            assert (await site.call("AdminService", "RevokeApiKey", key, x_api_key=ADMIN)).status == 200
            got, code = await closed(ws)
    assert (reason(got[-1]["error"]), code) == ("KEY_REVOKED", 4016)


async def test_a_quota_is_per_address_of_the_visitor_and_has_a_time_to_retry():
    limits = {"rate_limit_enabled": True, "rate_limit_config": "2/hour", "trusted_proxies": "127.0.0.1"}
    async with with_console(serving, ScriptedEngine(), **limits) as (_, site):

        async def call(address: str) -> Any:
            return await site.call("ServerService", "GetServerInfo", x_forwarded_for=address)

        assert [(await call("192.0.2.1")).status for _ in range(3)] == [200, 200, 429]
        assert (await call("192.0.2.2")).status == 200
        refused = await call("192.0.2.1")
    assert refused.reason == "RATE_LIMITED"
    assert int(refused.headers["retry-after"]) > 60


async def test_a_visitor_from_this_machine_sees_the_jobs_of_a_server_without_keys_and_one_behind_a_proxy_does_not(
    tmp_path: Path,
):
    async with with_console(serving_jobs, ScriptedEngine(), tmp_path) as (_, site):
        await site.call("JobsService", "SubmitJob", HELLO)
        here = await site.call("JobsService", "ListJobs")
        elsewhere = await site.call("JobsService", "ListJobs", x_forwarded_for="192.0.2.1")
    assert len(here.json["jobs"]) == 1
    assert elsewhere.json == {}


async def test_grpc_with_mutual_tls_has_a_console(tmp_path: Path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_client_ca_file": str(authority.ca)}
    async with with_console(serving, ScriptedEngine(), **files) as (_, site):
        assert (await site.call("ServerService", "GetServerInfo")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]"}, 200),
        ({"host": "192.0.2.1:80", "origin": "http://192.0.2.1:80"}, 200),
        ({"host": "speech.example.com", "origin": "https://speech.example.com"}, 200),
        ({"origin": "https://speech.example.com"}, 200),
        ({"host": "evil.example"}, 403),  # DNS rebinding
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another port of this machine
        ({"origin": "https://speech.example.com.evil.example"}, 403),
    ],
)
async def test_pages_of_other_sites_are_refused(headers: dict[str, str], status: int):
    async with with_console(serving, ScriptedEngine(), console_origins="https://speech.example.com") as (_, site):
        sent = {"content-type": "application/json"} | headers
        answer = await site.send("/v1/ServerService/GetServerInfo", b"{}", "POST", sent)
        assert answer.status == status
        assert (await site.send("/", headers=headers)).status == status
        if "host" not in headers:
            if status == 200:
                async with site.socket(additional_headers=headers) as ws:
                    await ws.send(config())
                    assert "started" in await receive(ws)
            else:
                with pytest.raises(InvalidStatus):
                    async with site.socket(additional_headers=headers):
                        pass


async def test_a_page_of_a_named_origin_may_read_answers():
    origin = {"origin": "https://speech.example.com"}
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}
    async with with_console(serving, ScriptedEngine(), console_origins=origin["origin"]) as (_, site):
        preflight = await site.send("/v1/ServerService/GetServerInfo", None, "OPTIONS", origin | ask)
        answer = await site.call("ServerService", "GetServerInfo", **origin)
    assert preflight.status == 200
    for one in (preflight, answer):
        assert one.headers["access-control-allow-origin"] == origin["origin"]
        assert "access-control-allow-credentials" not in one.headers


async def test_the_page_comes_with_a_strict_policy():
    async with with_console(serving, ScriptedEngine()) as (_, site):
        page = await site.send("/")
        script = await site.send("/app.js")
        lost = await site.send("/../bridge.py")
        hidden = await site.send("/%2e%2e/bridge.py")
    assert page.status == script.status == 200
    assert lost.status == hidden.status == 404
    for answer in (page, script, lost):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert b"<script>" not in page.body
    assert b" style=" not in page.body
    assert b"http://" not in page.body.replace(b"http://www.w3.org", b"")


async def test_no_key_is_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    async with with_console(guarded, require_auth=True) as (_, site):
        await site.call("ModelService", "ListModels", x_api_key=USER)
        async with site.socket(key=USER) as ws:
            await ws.send(config())
            await receive(ws)
    encoded = base64.urlsafe_b64encode(USER.encode()).decode().rstrip("=")
    from_us = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    assert not [record for record in from_us if USER in record.getMessage() or encoded in record.getMessage()]
