"""Metrics of calls: their number, status and time, and the audio that they transcribe."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Histogram

from typeless_grpc.account import CallAccount
from typeless_grpc.telemetry.calls import CallRecord, Method

METHOD = ("grpc_type", "grpc_service", "grpc_method")
# Seconds, from calls of a few milliseconds to recordings of an hour.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# The kinds of call that transcribe audio; jobs are counted where they run.
KINDS = {
    "Transcribe": "transcribe",
    "BatchTranscribe": "batch",
    "StreamTranscribe": "stream",
    "Recognize": "transcribe",
    "StreamingRecognize": "stream",  # of Riva and Google, as Recognize
}
JOB = "job"
# Prometheus sees no increase in the first value of a series. So these exist from a method's first call on, at 0, and an
# alert sees the first errors.
ALERTED_CODES = ("INTERNAL", "UNAVAILABLE")


class AudioMetrics:
    """The audio that is transcribed, by kind of call: "transcribe", "batch", "stream" or "job"."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Counter(
            "typeless_audio_seconds_total",
            "Audio that was transcribed, or received by a stream, by kind of call.",
            ("kind",),
            registry=registry,
        )
        self.factor = Histogram(
            "typeless_real_time_factor",
            "Time of the model for each second of audio, by kind of call; one value for each call or chunk of a job.",
            ("kind",),
            buckets=FACTORS,
            registry=registry,
        )
        for kind in {*KINDS.values(), JOB}:
            self.seconds.labels(kind)
            self.factor.labels(kind)


class CallMetrics:
    """A `CallObserver` that counts and times calls."""

    def __init__(self, registry: CollectorRegistry, audio: AudioMetrics) -> None:
        self.started = Counter("grpc_server_started_total", "Calls begun.", METHOD, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "Calls ended, by status.", (*METHOD, "grpc_code"), registry=registry
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds", "How long calls took.", METHOD, buckets=BUCKETS_S, registry=registry
        )
        self.uploads = Counter("typeless_uploads_total", "Uploads completed.", registry=registry)
        self.uploaded_bytes = Counter("typeless_uploaded_bytes_total", "Bytes of uploads stored.", registry=registry)
        self.submitted = Counter("typeless_jobs_submitted_total", "Jobs submitted.", registry=registry)
        self._audio = audio
        # Looking a metric up by its labels takes longer than counting.
        self._labelled = functools.cache(self._find)

    def call_started(self, method: Method, account: CallAccount) -> None:
        """See `CallObserver`."""
        self._labelled(method, "OK")[0].inc()
        if method.is_ours and (kind := KINDS.get(method.name)):
            account.audio_listeners.append(self._audio.seconds.labels(kind).inc)

    def call_ended(self, record: CallRecord) -> None:
        """See `CallObserver`."""
        _, seconds, handled = self._labelled(record.method, record.code)
        handled.inc()
        seconds.observe(record.duration_s)
        account = record.account
        kind = KINDS.get(record.method.name)
        if kind and account.audio_s and account.processing_s:
            self._audio.factor.labels(kind).observe(account.processing_s / account.audio_s)
        if account.uploaded_bytes or account.n_uploads:
            self.uploads.inc(account.n_uploads)
            self.uploaded_bytes.inc(account.uploaded_bytes)
        if account.n_jobs:
            self.submitted.inc(account.n_jobs)

    def _find(self, method: Method, code: str) -> tuple[Counter, Histogram, Counter]:
        labels = (method.type, method.service, method.name)
        for alerted in ALERTED_CODES:
            self.handled.labels(*labels, alerted)
        return self.started.labels(*labels), self.seconds.labels(*labels), self.handled.labels(*labels, code)
