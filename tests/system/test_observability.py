"""Mixed traffic over a whole installation: every call is in the metrics and in the log."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.dashboards import dashboard_queries
from tests.system.stack import Stack, running, wait_until
from tests.system.traffic import Tally, Traffic

SERVER = 2  # opentelemetry.proto.trace.v1.Span.SpanKind.SPAN_KIND_SERVER
SECONDS = float(os.environ.get("TRAFFIC_S", "120"))

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), {"groups": []}) as started:
        yield started


@pytest.fixture(scope="module")
def tally(stack: Stack) -> Tally:
    """What the callers saw in two minutes."""

    async def run() -> Tally:
        async with grpc.aio.secure_channel(stack.target, stack.credentials) as channel:
            traffic = Traffic(channel, SECONDS, seed=1)
            await traffic.run()
            return traffic.tally

    done = asyncio.run(run())
    wait_until(lambda: n_ended(stack) == sum(done.calls.values()), 10.0, "all calls have ended")
    return done


def n_ended(stack: Stack) -> float:
    return sum(value for (service, _, _), value in handled(stack).items() if service.startswith("typeless."))


def call_lines(stack: Stack) -> list[dict[str, Any]]:
    """The lines of the calls of our contract."""
    lines = [line for line in stack.server.lines() if line["event"] == "call ended"]
    return [line for line in lines if line["method"].startswith("/typeless.")]


def handled(stack: Stack) -> Counter[tuple[str, str, str]]:
    """The calls that have ended, by service, method and code."""
    return Counter(
        {
            (labels["grpc_service"], labels["grpc_method"], labels["grpc_code"]): int(value)
            for name, labels, value in stack.scrape("server")
            if name == "grpc_server_handled_total" and value
        }
    )


def total(stack: Stack, where: str, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    found = [value for one, its, value in stack.scrape(where) if one == name and labels.items() <= its.items()]
    assert found, f"{where} has no {name} with {labels}"
    return sum(found)


def test_every_call_is_in_the_metrics_by_method_and_code(stack: Stack, tally: Tally):
    ended = {
        (f"/{service}/{method}", code): n
        for (service, method, code), n in handled(stack).items()
        if service.startswith("typeless.")
    }
    assert ended == dict(tally.calls)
    assert {code for _, code in ended} >= {
        *("OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND"),
        *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"),
    }
    started = {
        f"/{labels['grpc_service']}/{labels['grpc_method']}": value
        for name, labels, value in stack.scrape("server")
        if name == "grpc_server_started_total" and labels["grpc_service"].startswith("typeless.")
    }
    assert started == Counter(method for method, _ in tally.calls.elements())


def test_every_call_has_a_line_in_the_log(stack: Stack, tally: Tally):
    ours = call_lines(stack)
    assert Counter((line["method"], line["code"]) for line in ours) == tally.calls
    assert len({line["request_id"] for line in ours}) == len(ours)
    failed = [line for line in ours if line["code"] not in ("OK", "CANCELLED")]
    assert [line for line in failed if not line.get("reason")] == []


def test_all_audio_is_counted_by_its_kind_of_call(stack: Stack, tally: Tally):
    for kind, where in (("transcribe", "server"), ("batch", "server"), ("job", "worker")):
        counted = total(stack, where, "typeless_audio_seconds_total", kind=kind)
        assert counted == pytest.approx(tally.audio_s[kind], abs=0.001), kind
    logged = sum(line.get("audio_s", 0.0) for line in stack.server.lines() if line["event"] == "call ended")
    streamed = total(stack, "server", "typeless_audio_seconds_total", kind="stream")
    assert streamed == pytest.approx(tally.audio_s["stream"], abs=0.1)
    counted = sum(total(stack, "server", "typeless_audio_seconds_total", kind=kind) for kind in ("transcribe", "batch"))
    assert logged == pytest.approx(counted + streamed, abs=0.001 * len(tally.calls) + 0.5)


def test_jobs_and_uploads_are_counted(stack: Stack, tally: Tally):
    ok = tally.calls[("/typeless.v1.JobsService/SubmitJob", "OK")]
    assert total(stack, "server", "typeless_jobs_submitted_total") == ok
    assert total(stack, "worker", "typeless_job_runs_total", outcome="completed") >= tally.n_jobs_run > 0
    n_uploads = tally.calls["/typeless.v1.UploadService/UploadAudio", "OK"]
    assert total(stack, "server", "typeless_uploads_total") == n_uploads > 0
    assert total(stack, "server", "typeless_uploaded_bytes_total") == tally.audio_s["uploaded bytes"]


def test_every_query_of_the_dashboard_has_values(stack: Stack, tally: Tally):
    empty = [
        f"{query}: {query.expression}"
        for query in dashboard_queries(window="3m")
        if all(math.isnan(value) for _, value in stack.prometheus.query(query.expression))
    ]
    assert empty == []


def test_every_call_has_a_trace(stack: Stack, tally: Tally):
    n_calls = sum(tally.calls.values())
    spans = stack.collector.until(lambda found: sum(span.kind == SERVER for span in found) >= n_calls)
    calls = [span for span in spans if span.kind == SERVER]
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    seen = Counter((f"/{span.name}", codes[span.attributes["rpc.grpc.status_code"]]) for span in calls)
    assert seen == tally.calls
    lines = {line["request_id"]: line["trace_id"] for line in call_lines(stack)}
    assert {span.attributes["typeless.request_id"]: span.trace_id for span in calls} == lines


def test_every_batch_is_linked_to_its_calls_and_every_job_to_its_submission(stack: Stack, tally: Tally):
    n_batches = sum(total(stack, where, "typeless_batch_seconds_count") for where in ("server", "worker"))
    spans = stack.collector.until(lambda found: sum(span.name == "batch" for span in found) >= n_batches)
    by_id = {span.id: span for span in spans}
    batches = [span for span in spans if span.name == "batch"]
    assert len(batches) == n_batches
    assert [span for span in batches if not span.links] == []
    assert [link for span in batches for link in span.links if link not in by_id] == []
    submissions = {span.id for span in spans if span.name == "typeless.v1.JobsService/SubmitJob"}
    runs = [span for span in spans if span.name == "job"]
    assert len(runs) >= tally.n_jobs_run > 0
    assert [span for span in runs if not set(span.links) & submissions] == []


def test_nothing_is_left_open(stack: Stack, tally: Tally):
    assert total(stack, "server", "typeless_streams_open") == 0
    assert total(stack, "server", "typeless_queue_depth") == 0
    wait_until(lambda: total(stack, "server", "typeless_held_audio_seconds") == 0, 10.0, "no audio is held")
