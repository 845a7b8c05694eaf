"""What two servers share: keys, limits, jobs and uploads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.cluster.installation import ADMIN_KEY, SERVERS, Installation, wait_until
from tests.faults.conftest import check_whole
from tests.faults.node import recording
from typeless_grpc.client import CallFailed, Client, RawFormat
from typeless_grpc.client.channels import channel
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, audio_pb2, transcription_pb2, transcription_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.short, pytest.mark.timeout(300)]

RAW = RawFormat("pcm_s16le", 16_000)
ONE_SECOND = recording(1, 1)
WITHIN_S = 1.0  # in which a key that was made or revoked here is known there
N_CALLS, N_ALLOWED = 100, 30


def admin(installation: Installation, name: str) -> tuple[grpc.Channel, admin_pb2_grpc.AdminServiceStub]:
    to = channel(installation.target(name), api_key=ADMIN_KEY)
    return to, admin_pb2_grpc.AdminServiceStub(to)


def refused(client: Client) -> str:
    """The reason why a call is refused; "" if it is answered."""
    try:
        client.transcribe(ONE_SECOND, raw_format=RAW)
    except CallFailed as failed:
        return failed.reason
    return ""


def transcribed(target: str, uri: str) -> str:
    """The text of an upload."""
    raw = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
    request = transcription_pb2.TranscribeRequest(audio=audio_pb2.AudioSource(uri=uri, format=raw))
    with channel(target, api_key=ADMIN_KEY) as to:
        answer = transcription_pb2_grpc.TranscriptionServiceStub(to).Transcribe(request, timeout=30)
    return str(answer.transcript.text)


def test_a_key_works_and_is_revoked_on_the_other_server_within_a_second(installation: Installation):
    to, stub = admin(installation, "server-1")
    with to, Client(installation.target("server-2"), retry=False) as strangers:
        assert refused(strangers) == "KEY_REQUIRED"
        made = stub.CreateApiKey(admin_pb2.CreateApiKeyRequest())
        with Client(installation.target("server-2"), api_key=made.secret, retry=False) as client:
            wait_until(lambda: not refused(client), WITHIN_S, "the key works on the other server")
            stub.RevokeApiKey(admin_pb2.RevokeApiKeyRequest(key_id=made.api_key.key_id))
            wait_until(lambda: refused(client) == "KEY_REVOKED", WITHIN_S, "the key is revoked on the other server")


def test_a_limit_is_shared_to_the_call(installation: Installation):
    to, stub = admin(installation, "server-1")
    with to:
        made = stub.CreateApiKey(admin_pb2.CreateApiKeyRequest())
        limit = admin_pb2.RateLimit(group="transcribe", amount=1, period_seconds=3600, burst=N_ALLOWED)
        stub.UpdateRateLimit(admin_pb2.UpdateRateLimitRequest(key_id=made.api_key.key_id, rate_limit=limit))
        time.sleep(WITHIN_S)
    clients = [Client(installation.target(name), api_key=made.secret, retry=False) for name in SERVERS]
    with ThreadPoolExecutor(N_CALLS) as pool:
        reasons = list(pool.map(lambda i: refused(clients[i % 2]), range(N_CALLS)))
    for client in clients:
        client.close()
    assert reasons.count("") == N_ALLOWED
    assert set(reasons) == {"", "RATE_LIMITED"}


def test_jobs_and_uploads_cross_servers(installation: Installation):
    """A job that one server accepts is run by a worker and seen on the other; an upload is used on the other."""
    first, second = (Client(installation.target(name), api_key=ADMIN_KEY) for name in SERVERS)
    with first, second:
        job = first.jobs.submit(recording(2, 8), raw_format=RAW)
        upload = first.jobs.upload(recording(3, 8))
        check_whole(second.jobs.wait(job.job_id), 2)
        assert transcribed(installation.target("server-2"), upload.uri) == "3:0"
        check_whole(first.jobs.wait(second.jobs.submit(upload.uri, raw_format=RAW).job_id), 3)
