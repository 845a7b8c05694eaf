"""The cost of observing: the time that the metrics and the log take for each call, batch, interim and final.

python -m benchmarks.observing
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextvars import copy_context

from prometheus_client import generate_latest

from typeless_grpc.account import CallAccount
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.observer import BatchReport, Stage, WindowReport
from typeless_grpc.telemetry import logs
from typeless_grpc.telemetry.call_log import CallLog
from typeless_grpc.telemetry.calls import CallRecord, Method
from typeless_grpc.telemetry.metrics import Metrics

METHOD = Method("typeless.v1.TranscriptionService", "Transcribe", "unary")
ROUNDS = 20


def microseconds(work: Callable[[], object], n: int) -> float:
    """The median over rounds of the time of one run, after a first one."""
    work()
    took = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        for _ in range(n):
            work()
        took.append((time.perf_counter() - began_s) / n * 1e6)
    return statistics.median(took)


def main(n: int) -> None:
    """Print a line for each kind of event. n: events in a round."""
    logs.configure("info", "json")
    metrics, log = Metrics(), CallLog()
    windows = [WindowReport(Lane.UNARY, 0.0, copy_context(), is_done=True)] * 4
    batch = BatchReport(windows, 1.0, 2.0, [Stage("encode", 1.0, 0.5), Stage("decode", 1.5, 0.5)])
    account = CallAccount(caller="key:1", audio_s=5.0, queue_s=0.1, processing_s=0.2)
    record = CallRecord(METHOD, "OK", 0.3, account, "id")

    def call() -> None:
        mine = CallAccount()
        metrics.calls.call_started(METHOD, mine)
        mine.add_audio(5.0)
        mine.processing_s = 0.2
        metrics.calls.call_ended(CallRecord(METHOD, "OK", 0.3, mine, "id"))

    for name, work in {
        "the metrics of a call": call,
        "the log line of a call": lambda: log.call_ended(record),
        "a batch of 4 windows": lambda: metrics.engine.batch_ended(batch),
        "an interim": lambda: metrics.streams.interim("sent"),
        "a final": lambda: metrics.streams.final("live", 0.5, copy_context()),
    }.items():
        print(f"{name:24} {microseconds(work, n):6.1f} µs")
    print(f"{'a scrape':24} {microseconds(lambda: generate_latest(metrics.registry), max(1, n // 100)):6.0f} µs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    main(parser.parse_args().events)
