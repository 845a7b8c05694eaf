"""Settings that are reloaded: each of them takes effect on a running server, and a bad one changes nothing."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness import Served, request, serving, serving_jobs
from tests.service.access import KEYS, USER, outcome
from tests.service.reload_probes import (
    AS_ADMIN,
    AS_USER,
    INFO,
    TRANSCRIBE,
    World,
    called,
    code,
)
from tests.service.reload_rows import ANY, BLOCKED, ELSEWHERE, LIMITED, ONE, ROWS, Row
from tests.service.test_tokens import jwks_url
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.config import Settings, is_reloadable, load
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import EngineFailed
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, server_pb2
from typeless_grpc.telemetry.metrics import Metrics

__all__ = ["jwks_url"]  # the fixture


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


async def test_metrics_show_whether_the_last_reload_succeeded_and_how_old_the_settings_are():
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
