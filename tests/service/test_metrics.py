"""What Prometheus reads after calls that ended in every way."""

from __future__ import annotations

import asyncio
import urllib.request
from contextlib import nullcontext

import grpc
import pytest

from tests import servers
from tests.harness import request
from tests.service.access import USER, guarded, outcome
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.errors import InvalidInput, SourceUnavailable
from typeless_grpc.telemetry.call_metrics import ALERTED_CODES
from typeless_grpc.telemetry.metrics import Metrics
from typeless_grpc.telemetry.metrics_port import MetricsPort

TRANSCRIBE = 'grpc_method="Transcribe",grpc_service="typeless.v1.TranscriptionService",grpc_type="unary"'
WATCH = 'grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"'


async def scrape(port: int) -> dict[str, float]:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(read)).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


async def test_calls_are_counted_by_their_status():
    port = servers.free_port()
    engine = ScriptedEngine(lambda call: InvalidInput("audio", "is odd") if len(call.audio) > 20_000 else "text")
    limits = {"rate_limit_enabled": True, "rate_limit_transcribe": "4/hour", "rate_limit_anonymous_percent": 100}
    async with guarded(engine, metrics_port=port, **limits) as served:
        for seconds in (1.0, 1.0, 2.0):
            call = served.transcription.Transcribe(request(seconds))
            with pytest.raises(grpc.aio.AioRpcError) if seconds > 1 else nullcontext():
                await call
        engine.gate.clear()
        cancelled = served.transcription.Transcribe(request())
        await engine.until(n_calls=4)
        cancelled.cancel()
        await engine.until(n_cancelled=1)
        await outcome(served, "/typeless.v1.TranscriptionService/Transcribe")
        await outcome(served, "/typeless.v1.TranscriptionService/Transcribe", ("x-api-key", "wrong"))
        await outcome(served, "/grpc.health.v1.Health/Check", ("x-api-key", USER))
        watch = served.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        await watch.read()
        seen = await scrape(port)
        watch.cancel()
    ended = {
        name.split('grpc_code="')[1].split('"')[0]: count
        for name, count in seen.items()
        if name.startswith("grpc_server_handled_total") and "Transcribe" in name
    }
    assert {code: ended.pop(code) for code in ALERTED_CODES} == dict.fromkeys(ALERTED_CODES, 0)
    assert ended == {"OK": 2, "INVALID_ARGUMENT": 1, "CANCELLED": 1, "RESOURCE_EXHAUSTED": 1, "UNAUTHENTICATED": 1}
    assert seen[f"grpc_server_started_total{{{TRANSCRIBE}}}"] == 6
    assert seen[f"grpc_server_handling_seconds_count{{{TRANSCRIBE}}}"] == 6
    assert seen[f"grpc_server_started_total{{{WATCH}}}"] == 1
    assert seen['typeless_rate_limited_total{group="transcribe"}'] == 1
    assert seen['typeless_auth_failures_total{reason="KEY_INVALID"}'] == 1
    assert seen["typeless_key_store_up"] == 1
    assert not [name for name in seen if "wrong" in name or USER in name]


def test_a_port_in_use_is_an_error_that_names_the_setting():
    port = MetricsPort.open(Metrics(), "127.0.0.1", 0)
    with pytest.raises(SourceUnavailable, match="TYPELESS_METRICS_PORT"):
        MetricsPort.open(Metrics(), "127.0.0.1", port.port)
    port.close()
