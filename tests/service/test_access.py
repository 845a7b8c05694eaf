"""No call without its key: every method of every service, through the real chain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.harness import Served, request, serving
from tests.service.access import ADMIN, KEYS, USER, guarded, methods, outcome
from tests.service.test_transcribe import refused
from typeless_grpc.access.methods import RULES, Access
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, server_pb2

WRONG = (("x-api-key", "a-wrong-key"),)
AS_USER = (("x-api-key", USER),)
AS_ADMIN = (("authorization", f"Bearer {ADMIN}"),)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
OPEN = {method for method, rule in RULES.items() if rule.access is Access.OPEN}
ADMINS = {method for method, rule in RULES.items() if rule.access in (Access.ADMIN, Access.ADMIN_KEY)}
KEPT_OUT = (UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def admin(served: Served) -> admin_pb2_grpc.AdminServiceStub:
    return admin_pb2_grpc.AdminServiceStub(served.channel)


async def new_key(served: Served, **fields: Any) -> admin_pb2.CreateApiKeyResponse:
    answer: admin_pb2.CreateApiKeyResponse = await admin(served).CreateApiKey(
        admin_pb2.CreateApiKeyRequest(**fields), metadata=AS_ADMIN
    )
    return answer


async def revoke(served: Served, key_id: str) -> None:
    await admin(served).RevokeApiKey(admin_pb2.RevokeApiKeyRequest(key_id=key_id), metadata=AS_ADMIN)


async def ended_keys(served: Served) -> dict[str, str]:
    """Secret to the reason it is refused with: one that is revoked, one that has expired."""
    revoked = await new_key(served)
    await revoke(served, revoked.api_key.key_id)
    soon = Timestamp()
    soon.FromNanoseconds(time.time_ns() + 1_000_000_000)
    expired = await new_key(served, expire_time=soon)
    await asyncio.sleep(1.05)
    return {revoked.secret: "KEY_REVOKED", expired.secret: "KEY_EXPIRED"}


def test_every_call_of_the_contract_is_classified():
    # Health has List from one of its versions on.
    assert set(methods()) <= set(RULES) <= set(methods()) | {"/grpc.health.v1.Health/List"}


async def test_every_call_that_reflection_lists_is_classified():
    async with guarded() as served:

        def listed() -> set[str]:
            with grpc.insecure_channel(served.target) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                return {
                    f"/{name}/{method.name}"
                    for name in database.get_services()
                    for file in [database.FindFileContainingSymbol(name)]
                    for service in file.service
                    if f"{file.package}.{service.name}" == name
                    for method in service.method
                }

        found = await asyncio.get_running_loop().run_in_executor(None, listed)
    assert found == set(methods())


async def test_an_unclassified_call_needs_an_admin_key():
    class Stranger:
        NAME = "typeless.v1.StrangerService"

        def register(self, server: grpc.aio.Server) -> None:
            handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.NAME, {"Do": handler}),))

    async with serving(ScriptedEngine(), more=[Stranger()]) as served:
        call = served.channel.unary_unary("/typeless.v1.StrangerService/Do")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is UNAUTHENTICATED


async def test_without_a_key_only_open_calls_get_through():
    async with guarded(require_auth=True) as served:
        let_in = {m for m in methods() if (failed := await outcome(served, m)) is None or failed.code not in KEPT_OUT}
        reasons = {failed.reason for m in methods() if (failed := await outcome(served, m)) and m not in OPEN}
    assert let_in == OPEN & set(methods())
    assert reasons == {"KEY_REQUIRED"}


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
@pytest.mark.parametrize("is_required", [True, False], ids=["required", "not required"])
async def test_a_wrong_key_gets_through_nowhere(header: str, is_required: bool):
    value = "a-wrong-key" if header == "x-api-key" else "Bearer a-wrong-key"
    async with guarded(require_auth=is_required) as served:
        failures = {m: await outcome(served, m, (header, value)) for m in methods()}
    assert {m: (f.code, f.reason) for m, f in failures.items() if f} == dict.fromkeys(
        methods(), (UNAUTHENTICATED, "KEY_INVALID")
    )


async def test_a_key_that_has_ended_gets_through_nowhere():
    async with guarded(require_auth=True) as served:
        for secret, reason in (await ended_keys(served)).items():
            failures = {m: await outcome(served, m, ("x-api-key", secret)) for m in methods()}
            assert {m: (f.code, f.reason) for m, f in failures.items() if f} == dict.fromkeys(
                methods(), (UNAUTHENTICATED, reason)
            )


async def test_a_user_makes_every_call_but_an_admins():
    async with guarded(require_auth=True) as served:
        failures = {m: await outcome(served, m, *AS_USER) for m in methods()}
    kept_out = {m: (f.code, f.reason) for m, f in failures.items() if f and f.code in KEPT_OUT}
    assert kept_out == dict.fromkeys(ADMINS, (grpc.StatusCode.PERMISSION_DENIED, "ADMIN_KEY_REQUIRED"))


async def test_an_admin_makes_every_call():
    async with guarded(require_auth=True) as served:
        failures = {m: await outcome(served, m, *AS_ADMIN) for m in methods()}
    assert [m for m, f in failures.items() if f and f.code in KEPT_OUT] == []


async def test_admin_calls_need_a_key_if_keys_are_on_but_not_required():
    async with guarded() as served:
        failures = {m: await outcome(served, m) for m in methods()}
    assert {m for m, f in failures.items() if f and f.code in KEPT_OUT} == ADMINS


async def test_only_the_administration_of_keys_is_closed_if_keys_are_off():
    async with guarded(auth_enabled=False, api_keys="", admin_keys="") as served:
        failures = {m: await outcome(served, m, *WRONG) for m in methods()}
        info = await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())
    closed = {m for m, f in failures.items() if f and f.code in KEPT_OUT}
    assert closed == {m for m in ADMINS if "AdminService" in m}
    assert not info.requires_key


async def test_an_operator_can_close_what_is_open():
    async with guarded(require_auth=True, open_services="health") as served:
        failures = {m: await outcome(served, m) for m in OPEN & set(methods())}
    let_in = {m for m, f in failures.items() if f is None or f.code not in KEPT_OUT}
    assert let_in == {m for m in OPEN & set(methods()) if "health" in m}


async def test_the_server_reports_that_it_needs_a_key():
    async with guarded(require_auth=True) as served:
        assert (await served.info.GetServerInfo(server_pb2.GetServerInfoRequest())).requires_key


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((("x-api-key", USER), ("authorization", "Bearer wrong")), None),
        ((("x-api-key", "wrong"), ("authorization", f"Bearer {USER}")), "KEY_INVALID"),
        ((("authorization", f"bearer  {USER}"),), None),
        ((("authorization", f"Basic {USER}"),), "KEY_INVALID"),
        ((("authorization", "Bearer "),), "KEY_INVALID"),
        ((("x-api-key", ""),), "KEY_INVALID"),
        ((("x-api-key", "wrong"), ("x-api-key", USER)), "KEY_INVALID"),
    ],
    ids=["key first", "key first, wrong", "case and space", "other scheme", "empty bearer", "empty key", "two keys"],
)
async def test_how_a_key_may_be_sent(metadata: tuple[tuple[str, str], ...], reason: str | None):
    async with guarded(require_auth=True) as served:
        failed = await outcome(served, "/typeless.v1.ServerService/GetServerInfo", *metadata)
    assert (failed.reason if failed else None) == reason


async def test_the_engine_gets_the_caller_of_its_work():
    engine = ScriptedEngine()
    async with guarded(engine) as served:
        made = await new_key(served)
        await served.transcription.Transcribe(request(), metadata=(("x-api-key", made.secret),))
        await served.transcription.Transcribe(request())
    assert [call.ticket.caller for call in engine.calls] == [f"key:{made.api_key.key_id}", "address:127.0.0.1"]


async def test_revoking_a_key_ends_its_calls_and_no_others():
    engine = ScriptedEngine()
    engine.gate.clear()
    async with guarded(engine) as served:
        made = await new_key(served)
        running = served.transcription.Transcribe(request(), metadata=(("x-api-key", made.secret),))
        others = served.transcription.Transcribe(request(), metadata=AS_USER)
        await engine.until(n_calls=2)
        await revoke(served, made.api_key.key_id)
        failed = await refused(running)
        await engine.until(n_cancelled=1)
        engine.gate.set()
        await others
    assert (failed.code, failed.reason) == (UNAUTHENTICATED, "KEY_REVOKED")


async def test_a_stream_of_a_key_that_ends_is_ended_on_every_server_that_shares_the_store(tmp_path):
    shared = {"data_dir": str(tmp_path)}
    async with guarded(**shared) as one, guarded(**shared) as other:
        made = await new_key(one)
        watch = other.channel.unary_stream("/grpc.health.v1.Health/Watch")
        stream = watch(b"", metadata=(("x-api-key", made.secret),))
        await stream.read()
        await revoke(one, made.api_key.key_id)
        revoked_s = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert time.monotonic() - revoked_s < 10
        assert caught.value.code() is UNAUTHENTICATED
        failed = await outcome(other, "/grpc.health.v1.Health/Check", ("x-api-key", made.secret))
    assert failed is not None
    assert failed.reason == "KEY_REVOKED"


async def test_a_stream_ends_when_its_key_expires():
    async with guarded() as served:
        soon = Timestamp()
        soon.FromNanoseconds(time.time_ns() + 3_000_000_000)
        made = await new_key(served, expire_time=soon)
        stream = served.channel.unary_stream("/grpc.health.v1.Health/Watch")(
            b"", metadata=(("x-api-key", made.secret),)
        )
        await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert caught.value.code() is UNAUTHENTICATED
    assert "expired" in (caught.value.details() or "")


async def test_keys_survive_a_restart(tmp_path):
    async with guarded(data_dir=str(tmp_path)) as served:
        made = await new_key(served)
    async with guarded(data_dir=str(tmp_path), require_auth=True) as served:
        await served.transcription.Transcribe(request(), metadata=(("x-api-key", made.secret),))


async def test_a_key_of_the_settings_can_be_revoked_for_good(tmp_path):
    async with guarded(data_dir=str(tmp_path)) as served:
        keys = (await admin(served).ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=AS_ADMIN)).api_keys
        mine = next(key for key in keys if key.role == admin_pb2.API_KEY_ROLE_USER)
        await revoke(served, mine.key_id)
    async with guarded(data_dir=str(tmp_path)) as served:
        failed = await outcome(served, "/grpc.health.v1.Health/Check", *AS_USER)
    assert failed is not None
    assert failed.reason == "KEY_REVOKED"


async def test_a_key_taken_out_of_the_settings_is_wrong(tmp_path):
    async with guarded(data_dir=str(tmp_path)) as served:
        assert await outcome(served, "/grpc.health.v1.Health/Check", *AS_USER) is None
    async with guarded(data_dir=str(tmp_path), api_keys="another-key") as served:
        failed = await outcome(served, "/grpc.health.v1.Health/Check", *AS_USER)
    assert failed is not None
    assert failed.reason == "KEY_INVALID"


async def test_wrong_keys_are_limited_by_address_and_block_no_known_caller():
    limits = {"rate_limit_enabled": True, "rate_limit_wrong_keys": "1/minute:5"}
    check = "/grpc.health.v1.Health/Check"
    async with guarded(**limits) as served:
        made = await new_key(served)
        assert await outcome(served, check, *AS_USER) is None
        failures = [await outcome(served, check, *WRONG) for _ in range(7)]
        new = await outcome(served, check, ("x-api-key", made.secret))
        known = await outcome(served, check, *AS_USER)
        without = await outcome(served, check)
    codes = [f.code for f in failures if f]
    assert codes == [UNAUTHENTICATED] * 5 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    assert failures[-1] is not None
    assert failures[-1].retry_after_s == pytest.approx(60, abs=20)
    assert new is not None
    assert new.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert known is None
    assert without is None


async def test_no_secret_is_in_a_log_line_an_error_or_the_settings_that_are_shown(caplog, capfd):
    secret = "tl_a-secret-that-must-not-be-seen"
    caplog.set_level("DEBUG")
    async with guarded(api_keys=secret, database_url="", redis_url="") as served:
        made = await new_key(served)
        failures = [
            await outcome(served, "/typeless.v1.AdminService/GetConfig", ("x-api-key", value))
            for value in (secret, made.secret, f"{secret}!", "eyJhbGciOiJub25lIn0.e30.")
        ]
        shown = await admin(served).GetConfig(admin_pb2.GetConfigRequest(), metadata=AS_ADMIN)
        listed = await admin(served).ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=AS_ADMIN)
    assert all(failures)
    out = capfd.readouterr()
    seen = "\n".join([caplog.text, out.out, out.err, str(shown), str(listed), *map(str, failures)])
    for hidden in (secret, made.secret, ADMIN, KEYS["admin_keys"], "eyJhbGci"):
        assert hidden not in seen
    assert shown.settings["TYPELESS_AUTH_ENABLED"] == "true"
    assert not {"TYPELESS_API_KEYS", "TYPELESS_ADMIN_KEYS"} & set(shown.settings)
