"""Callers of an installation behind its proxy, who count for themselves what they were promised and what they got.

Eight speakers at the pace of speech, callers who submit jobs, and callers of unary calls, with and without the client's
retries. `Load.check` compares what they got with what the engines did and with streams that nothing interrupted.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import grpc

from tests.cluster.installation import ADMIN_KEY, Installation, wait_until
from tests.faults.conftest import check_whole
from tests.faults.node import recording
from tests.faults.test_streams_survive import kept, raw_samples
from tests.harness import REPOSITORY
from typeless_grpc.client import CallFailed, Client, Options, RawFormat, StreamOptions

RAW = RawFormat("pcm_s16le", 16_000)
LIVE = StreamOptions(Options(language="en"), RAW)
N_STREAMS, N_JOBS, JOB_S = 8, 200, 8
STREAM_S, BLOCK_S = 20, 0.1
BYTES_PER_S = 32_000
RECOVERY_S = 90.0  # for the jobs, after the last stream
UNARY_TIMEOUT_S = 40.0
N_CALLERS = 3
PAUSE_S = 0.15  # of a caller between two calls
CUT_S = 0.6  # of silence between words, where a stream may be cut
MAX_NUMBER = 30_000  # a number is a sample, of 16 bits
RECORDING = 3 * raw_samples()
REASONS = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", (REPOSITORY / "docs" / "errors.md").read_text("utf-8"), re.M))


Expected = dict[int, dict[str, list[Any]]]


class Numbers:
    """Numbers of recordings, each given once."""

    def __init__(self) -> None:
        self._next, self._lock = 100, threading.Lock()

    def take(self) -> int:
        with self._lock:
            self._next += 1
            assert self._next < MAX_NUMBER
            return self._next


@dataclass
class Seen:
    """What callers saw.

    jobs: number to id, of those that were accepted. jobs_after_s: from the end of the last stream to that of the last
    job. failures: of callers without retries.
    """

    streams: dict[int, dict[str, list[Any]]] = field(default_factory=dict)
    lost_streams: dict[int, CallFailed] = field(default_factory=dict)
    lags_s: list[float] = field(default_factory=list)
    jobs: dict[int, str] = field(default_factory=dict)
    jobs_after_s: float = 0.0
    refused_jobs: list[CallFailed] = field(default_factory=list)
    wrong_texts: list[str] = field(default_factory=list)
    n_answers: int = 0
    longest_call_s: float = 0.0
    longest_gap_s: float = 0.0
    failures: list[CallFailed] = field(default_factory=list)
    failures_with_retries: list[CallFailed] = field(default_factory=list)


class Load:
    """Traffic for one fault. expected: of each stream, what it has without an interruption."""

    def __init__(
        self, installation: Installation, numbers: Numbers, expected: Expected, seconds: int = STREAM_S
    ) -> None:
        """seconds: of each stream."""
        self._installation, self._numbers, self._expected, self._seconds = installation, numbers, expected, seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.seen = Seen()
        self.began_s = time.monotonic()
        n_threads = N_STREAMS + 1 + N_CALLERS
        self._pool = ThreadPoolExecutor(n_threads)
        self._streams = [self._pool.submit(self._speak, i) for i in range(N_STREAMS)]
        self._jobs = self._pool.submit(self._submit)
        self._callers = [self._pool.submit(self._call, retry=i == 0) for i in range(N_CALLERS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all callers, if a test ends before them."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def finish(self) -> Seen:
        """Wait until all streams and jobs have ended; the other callers go on to the end of the streams."""
        for one in (*self._streams, self._jobs):
            one.result()
        self._stop.set()
        for one in self._callers:
            one.result()
        began_s = time.monotonic()
        with Client(self._installation.target("server-2"), api_key=ADMIN_KEY) as client:

            def have_ended() -> bool:
                stats = client.jobs.stats()
                return stats.pending + stats.processing == 0

            wait_until(have_ended, RECOVERY_S, "all jobs have ended")
        self.seen.jobs_after_s = time.monotonic() - began_s
        return self.seen

    # ---- callers ----

    def _client(self, *, retry: bool = True) -> Client:
        return Client(self._installation.target(), api_key=ADMIN_KEY, retry=retry)

    def _speak(self, number: int) -> None:
        began_s = time.monotonic()
        events = []
        try:
            with self._client() as client:
                for event in client.stream(self._live(content(number, self._seconds)), LIVE):
                    events.append(event)
                    if event.HasField("segment"):
                        spoken_s = began_s + event.segment.end_offset.ToTimedelta().total_seconds()
                        self.seen.lags_s.append(time.monotonic() - spoken_s)
        except CallFailed as failed:
            self.seen.lost_streams[number] = failed
        self.seen.streams[number] = kept(events)

    def _live(self, data: bytes) -> Iterator[bytes]:
        """Blocks at the pace of speech."""
        size, began_s = round(BLOCK_S * BYTES_PER_S), time.monotonic()
        for i, start in enumerate(range(0, len(data), size)):
            if self._stop.wait(max(0.0, began_s + i * BLOCK_S - time.monotonic())):
                return
            yield data[start : start + size]

    def _submit(self) -> None:
        """Submit all jobs, evenly over the time of the streams' middle half."""
        pause_s = self._seconds / 2 / N_JOBS
        with self._client() as client:
            for _ in range(N_JOBS):
                if self._stop.wait(pause_s):
                    return
                number = self._numbers.take()
                try:
                    job = client.jobs.submit(recording(number, JOB_S), raw_format=RAW, request_id=f"job {number}")
                    self.seen.jobs[number] = job.job_id
                except CallFailed as failed:
                    self.seen.refused_jobs.append(failed)

    def _call(self, *, retry: bool) -> None:
        answered_s = time.monotonic()
        with self._client(retry=retry) as client:
            while not self._stop.is_set():
                number, began_s = self._numbers.take(), time.monotonic()
                failure, text = None, f"{number}:0"
                try:
                    answer = client.transcribe(recording(number, 1), raw_format=RAW, timeout_s=UNARY_TIMEOUT_S)
                    text = answer.transcript.text
                except CallFailed as failed:
                    failure = failed
                now_s = time.monotonic()
                with self._lock:
                    self.seen.longest_call_s = max(self.seen.longest_call_s, now_s - began_s)
                    if failure:
                        (self.seen.failures_with_retries if retry else self.seen.failures).append(failure)
                    else:
                        self.seen.n_answers += 1
                        self.seen.longest_gap_s = max(self.seen.longest_gap_s, now_s - answered_s)
                        answered_s = now_s
                    if text != f"{number}:0":
                        self.seen.wrong_texts.append(f"{number}: {text}")
                self._stop.wait(PAUSE_S)

    # ---- accounts ----

    def check(self, *, n_repeats: int, may_cut: bool = False) -> None:
        """Nothing that was accepted is lost or done twice.

        n_repeats: chunks that engines may have begun again. may_cut: streams may have been cut where a server stopped.
        """
        seen = self.seen
        assert len(seen.streams) == N_STREAMS
        assert len(seen.jobs) + len(seen.refused_jobs) == N_JOBS
        assert not seen.lost_streams, {number: str(one) for number, one in seen.lost_streams.items()}
        for number, got in seen.streams.items():
            if may_cut:
                check_covered(got["segments"], self._expected[number]["segments"])
            else:
                assert got == self._expected[number], f"stream {number}"
        assert not seen.refused_jobs, [str(one) for one in seen.refused_jobs]
        assert not seen.wrong_texts
        assert seen.n_answers
        for failed in (*seen.failures, *seen.failures_with_retries):
            check_helpful(failed)
        self._check_jobs(n_repeats)

    def _check_jobs(self, n_repeats: int) -> None:
        with Client(self._installation.target("server-2"), api_key=ADMIN_KEY) as client:
            for number, job_id in self.seen.jobs.items():
                check_whole(client.jobs.get(job_id), number, JOB_S)
        lines = Counter(line for line in self._installation.journal() if int(line.split()[0]) in self.seen.jobs)
        begun = {line: n for line, n in lines.items() if not line.endswith("done")}
        assert sum(n - 1 for n in begun.values()) <= n_repeats, {line: n for line, n in begun.items() if n > 1}
        completed = self._installation.completed_jobs()
        assert {job_id: completed[job_id] for job_id in self.seen.jobs.values() if completed[job_id] != 1} == {}


def check_covered(segments: list[Any], expected: list[Any]) -> None:
    """All expected speech is in some segment, in order and once."""
    spans = [(one.start_offset.ToTimedelta(), one.end_offset.ToTimedelta()) for one in segments]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), spans
    for one in expected:
        start, end = one.start_offset.ToTimedelta(), one.end_offset.ToTimedelta()
        inside = [(max(start, first), min(end, last)) for first, last in spans if first < end and last > start]
        missing_s = (end - start - sum((last - first for first, last in inside), timedelta())).total_seconds()
        assert missing_s < CUT_S, (start, end, spans)


def check_helpful(failed: CallFailed) -> None:
    """The error says what to do: a documented reason, and when to repeat what may be repeated."""
    if failed.reason:
        assert failed.reason in REASONS, failed
        if failed.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            assert failed.retry_after_s is not None, failed
    else:  # of gRPC itself: docs/errors.md
        assert failed.code is grpc.StatusCode.UNAVAILABLE, f"{failed.code}: {failed}"


def content(number: int, seconds: int) -> bytes:
    """What the speaker of a stream says: another part of the recording for each."""
    start = number * 3 * BYTES_PER_S
    return RECORDING[start : start + seconds * BYTES_PER_S]


def uninterrupted(installation: Installation, seconds: int = STREAM_S) -> Expected:
    """Of each stream, what a caller gets when nothing happens; audio comes as fast as the server takes it."""

    def stream(number: int) -> dict[str, list[Any]]:
        data = content(number, seconds)
        blocks = [data[start : start + 16_000] for start in range(0, len(data), 16_000)]
        with Client(installation.target("server-1"), api_key=ADMIN_KEY) as client:
            return kept(list(client.stream(blocks, LIVE)))

    with ThreadPoolExecutor(N_STREAMS) as pool:
        found = dict(enumerate(pool.map(stream, range(N_STREAMS))))
    assert all(one["segments"] for one in found.values())
    return found
