"""The faults that alerts report, made in a running installation and mended at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc

from tests.harness import AUDIO
from tests.system.stack import KEY, Stack, wait_until
from tests.system.traffic import samples
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.pb.v1 import (
    audio_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    transcription_pb2,
    transcription_pb2_grpc,
)

AS_CALLER = (("x-api-key", KEY),)
STORAGE_MIB = 32
SERVER_START = 'process_start_time_seconds{job="typeless-server"}'
Fault = Callable[[Stack], AbstractContextManager[None]]


@contextlib.contextmanager
def repeated(work: Callable[[], object], pause_s: float = 0.3) -> Iterator[None]:
    """Do something again and again in a thread; errors of calls are what it is for."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            with contextlib.suppress(grpc.RpcError):
                work()
            stop.wait(pause_s)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def channel(stack: Stack) -> grpc.Channel:
    return grpc.secure_channel(stack.target, stack.credentials)


def info(stack: Stack) -> None:
    with channel(stack) as to:
        server_pb2_grpc.ServerServiceStub(to).GetServerInfo(
            server_pb2.GetServerInfoRequest(), metadata=AS_CALLER, timeout=10
        )


def transcribe(stack: Stack, file: str = "en_short.wav", timeout_s: float = 60.0, **options: Any) -> Any:
    request = transcription_pb2.TranscribeRequest(
        audio=audio_pb2.AudioSource(content=(AUDIO / file).read_bytes()),
        options=transcription_pb2.TranscriptionOptions(**options),
    )
    with channel(stack) as to:
        stub = transcription_pb2_grpc.TranscriptionServiceStub(to)
        return stub.Transcribe(request, metadata=AS_CALLER, timeout=timeout_s)


def submit(stack: Stack, content: bytes) -> Any:
    with channel(stack) as to:
        raw = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
        request = jobs_pb2.SubmitJobRequest(audio=audio_pb2.AudioSource(content=content, format=raw))
        return jobs_pb2_grpc.JobsServiceStub(to).SubmitJob(request, metadata=AS_CALLER, timeout=10)


@contextlib.contextmanager
def stopped(stack: Stack) -> Iterator[None]:
    stack.server.stop()
    try:
        yield
    finally:
        stack.start_server()


@contextlib.contextmanager
def restarting(stack: Stack) -> Iterator[None]:
    seen: set[float] = set()  # when processes were started

    def is_seen() -> bool:
        found = {started_s for _, started_s in stack.prometheus.query(SERVER_START)}
        is_new = bool(found - seen)
        seen.update(found)
        return is_new

    wait_until(is_seen, 60.0, "the server is scraped")
    for _ in range(3):
        stack.server.stop(signal.SIGKILL)
        stack.start_server()
        wait_until(is_seen, 60.0, "it is scraped")
    yield


@contextlib.contextmanager
def busy(stack: Stack) -> Iterator[None]:
    """All workers of the engine are busy with searches that take many seconds."""
    # Speech that is played backwards passes no check, so that all temperatures are tried.
    backwards = (samples("en_minute.ogg")[: 29 * SAMPLE_RATE_HZ][::-1] * 32767).astype("<i2").tobytes()
    raw = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
    decoding = transcription_pb2.DecodingOptions(beam_size=10, temperatures=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    request = transcription_pb2.TranscribeRequest(
        audio=audio_pb2.AudioSource(content=backwards, format=raw),
        options=transcription_pb2.TranscriptionOptions(
            model="base",  # which takes several times as long as the default model
            language="en",
            decoding=decoding,
            chunking=transcription_pb2.CHUNKING_STRATEGY_WHOLE,
        ),
    )

    def search() -> None:
        with channel(stack) as to:
            stub = transcription_pb2_grpc.TranscriptionServiceStub(to)
            stub.Transcribe(request, metadata=AS_CALLER, timeout=30)

    with contextlib.ExitStack() as exits:
        for _ in range(2):
            exits.enter_context(repeated(search, 0.0))
        yield


@contextlib.contextmanager
def crowded(stack: Stack) -> Iterator[None]:
    """More recordings than the engine can decode in time."""
    with contextlib.ExitStack() as exits:
        for _ in range(12):
            # A deadline that a slow machine could not meet would be refused at once, and hold no audio.
            exits.enter_context(repeated(lambda: transcribe(stack, "en_minute.ogg", timeout_s=240.0), 0.0))
        yield


def speak(stack: Stack) -> None:
    data = (AUDIO / "en_short.wav").read_bytes()
    requests = [
        transcription_pb2.StreamTranscribeRequest(config=transcription_pb2.StreamConfig()),
        transcription_pb2.StreamTranscribeRequest(audio=data),
    ]
    with channel(stack) as to:
        stub = transcription_pb2_grpc.TranscriptionServiceStub(to)
        for _ in stub.StreamTranscribe(iter(requests), metadata=AS_CALLER, timeout=60):
            pass


@contextlib.contextmanager
def freezing(stack: Stack) -> Iterator[None]:
    """The server's process stands still again and again, as on a machine without memory or CPU."""

    def freeze() -> None:
        stack.server.send(signal.SIGSTOP)
        time.sleep(1.5)
        stack.server.send(signal.SIGCONT)

    with repeated(freeze, 0.5), repeated(lambda: speak(stack), 0.0):
        yield


@contextlib.contextmanager
def broken_model(stack: Stack) -> Iterator[None]:
    with repeated(lambda: transcribe(stack, model="tiny")):
        yield


@contextlib.contextmanager
def no_database(stack: Stack) -> Iterator[None]:
    stack.postgres.stop()
    try:
        with repeated(lambda: submit(stack, bytes(3200))):
            yield
    finally:
        stack.postgres.start()


@contextlib.contextmanager
def no_redis(stack: Stack) -> Iterator[None]:
    stack.redis.kill()
    try:
        with repeated(lambda: info(stack)):
            yield
    finally:
        stack.redis.start()
        info(stack)


@contextlib.contextmanager
def no_worker(stack: Stack) -> Iterator[None]:
    stack.worker.stop()
    submit(stack, bytes(3200))
    try:
        yield
    finally:
        stack.worker.start()


@contextlib.contextmanager
def failing_jobs(stack: Stack) -> Iterator[None]:
    """Recordings that are damaged in the middle."""
    whole = (AUDIO / "en_two_sentences.flac").read_bytes()
    damaged = jobs_pb2.SubmitJobRequest(audio=audio_pb2.AudioSource(content=whole[: len(whole) // 2]))

    def submit_damaged() -> None:
        with channel(stack) as to:
            jobs_pb2_grpc.JobsServiceStub(to).SubmitJob(damaged, metadata=AS_CALLER, timeout=10)

    with repeated(submit_damaged, 0.5):
        yield


@contextlib.contextmanager
def full_storage(stack: Stack) -> Iterator[None]:
    filler = Path(str(stack.storage)) / "filler"
    try:
        filler.write_bytes(bytes(round((STORAGE_MIB - 2) * 2**20)))
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def old_certificate(stack: Stack) -> Iterator[None]:
    stack.issue(valid_h=24)
    try:
        with repeated(lambda: info(stack)):  # the server reads its files at handshakes
            yield
    finally:
        stack.issue(valid_h=30 * 24)
        info(stack)


@contextlib.contextmanager
def bad_settings(stack: Stack) -> Iterator[None]:
    stack.settings.write_text("max_audio_s = -1", "utf-8")
    stack.server.send(signal.SIGHUP)
    try:
        yield
    finally:
        stack.settings.write_text("", "utf-8")
        stack.server.send(signal.SIGHUP)


@contextlib.contextmanager
def killed_decoders(stack: Stack) -> Iterator[None]:
    """What kills processes, such as the out-of-memory killer, prefers those that decode audio."""

    def kill() -> None:
        for fork_server in children(stack.server.pid):
            for decoder in children(fork_server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(decoder, signal.SIGKILL)
        transcribe(stack)

    with repeated(kill):
        yield


def children(pid: int) -> list[int]:
    """The processes that this one has started and that have not ended."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in found for child in one.read_text("ascii").split()]


# By the alert.
FAULTS: dict[str, Fault] = {
    "TypelessDown": stopped,
    "TypelessProcessDown": stopped,
    "TypelessRestarting": restarting,
    "TypelessNotServing": busy,
    "TypelessReloadFailed": bad_settings,
    "TypelessCertificateExpires": old_certificate,
    "TypelessEventLoopSlow": freezing,
    "TypelessErrors": broken_model,
    "TypelessRefusesCalls": no_database,
    "TypelessDecodersFail": killed_decoders,
    "TypelessLiveFinalsSlow": freezing,
    "TypelessEngineStalled": busy,
    "TypelessQueueWaitLong": crowded,
    "TypelessHeldAudioNearLimit": crowded,
    "TypelessDatabaseUnavailable": no_database,
    "TypelessKeysStale": no_database,
    "TypelessRedisUnavailable": no_redis,
    "TypelessStorageAlmostFull": full_storage,
    "TypelessNoWorker": no_worker,
    "TypelessJobsWaitLong": no_worker,
    "TypelessJobsFail": failing_jobs,
}


def alerts_of(fault: Fault) -> set[str]:
    """The alerts that a fault makes fire."""
    return {name for name, its in FAULTS.items() if its is fault}
