"""The clocks of servers and workers are set while they run, each by itself, ahead and back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.clocks import ClockOf
from tests.faults.conftest import PCM, Cluster, check_once, check_whole, ended, submit, wait_until
from tests.faults.node import recording
from typeless_grpc.client import Client, Options, StreamOptions
from typeless_grpc.pb.v1 import transcription_pb2

pytestmark = [pytest.mark.timeout(400), pytest.mark.hardening]

DAY_S = 86_400
CALLS = 500  # in their audio, the number of the first


def clock_of(directory: Path) -> ClockOf:
    directory.mkdir()
    return ClockOf(directory)


@pytest.mark.parametrize("cluster", ["postgresql"], indirect=True)
def test_calls_streams_and_jobs_go_on_when_clocks_are_set(cluster: Cluster):
    of_server, of_worker = (clock_of(cluster.directory / name) for name in ("server", "worker"))
    server = cluster.start(max_concurrent_jobs=0, job_ttl=3600, environment=of_server.environment)
    worker = cluster.start(max_concurrent_jobs=1, environment=of_worker.environment)
    ids = submit(server, range(1, 13))
    wait_until(lambda: cluster.n_done() > 2)
    waits_s = []
    with Client(f"127.0.0.1:{server.port}") as client:
        steps = iter([(DAY_S, -DAY_S), (-2 * DAY_S, DAY_S), (0, 0), (400 * DAY_S, 3600)])

        def spoken():  # type: ignore[no-untyped-def]
            for number in range(CALLS, CALLS + 4):
                yield b"".join([recording(CALLS, 1)] * 2)
                of_server_s, of_worker_s = next(steps)
                of_server.step_to(of_server_s)
                of_worker.step_to(of_worker_s)
                began_s = time.monotonic()
                answer = client.transcribe(recording(number, 2), raw_format=PCM, timeout_s=20.0)
                waits_s.append(time.monotonic() - began_s)
                assert answer.transcript.segments[0].text == f"{number}:0"

        events = list(client.stream(spoken(), StreamOptions(Options(language="en"), PCM)))
        assert events[-1].HasField("completed")
        assert events[-1].completed.end_reason == transcription_pb2.STREAM_END_REASON_CALLER
        jobs = ended(server, ids)
        for number, job in jobs.items():
            check_whole(job, number)
        check_once(cluster, ids, n_crashes=0)
        assert len(list(client.jobs.list())) == len(ids)
        made = client.jobs.get(ids[12]).create_time.ToSeconds()
        assert made == pytest.approx(time.time(), abs=600)
    assert max(waits_s) < 10
    assert not server.has_ended
    assert not worker.has_ended
