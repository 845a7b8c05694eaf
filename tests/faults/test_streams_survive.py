"""A stream goes on at another server when its server is killed, frozen or stopped, and has one owner at a time."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import grpc
import numpy as np
import pytest

from tests.faults.conftest import Cluster, Node
from tests.harness import AUDIO, serving
from tests.postgres import Postgres
from tests.speech import speech
from typeless_grpc.client import AsyncClient, CallFailed, Client, Options, RawFormat, StreamOptions
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import audio_pb2, transcription_pb2, transcription_pb2_grpc
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest, StreamTranscribeResponse

pytestmark = pytest.mark.timeout(200)

SPOKEN = AUDIO / "en_minute.ogg"
PART_S = 0.004  # of each tenth of a second of audio


def raw_samples() -> bytes:
    with av.open(str(SPOKEN)) as file:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
        frames = [one for frame in file.decode(audio=0) for one in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype("<i2").tobytes()[: 50 * 32_000]


def sent(data: bytes, n_parts: int = 780) -> Iterator[bytes]:
    """The recording, some twenty times as fast as it was spoken."""
    size = max(2, len(data) // n_parts // 2 * 2)
    for start in range(0, len(data), size):
        yield data[start : start + size]
        time.sleep(PART_S)


POSTGRESQL = pytest.mark.parametrize("cluster", ["postgresql"], indirect=True)
CONTENTS = {
    "raw": (raw_samples, StreamOptions(Options(language="en"), RawFormat("pcm_s16le", 16_000))),
    "container": (SPOKEN.read_bytes, StreamOptions(Options(language="en"))),
}


@pytest.fixture(params=sorted(CONTENTS))
def content(request: pytest.FixtureRequest) -> tuple[bytes, StreamOptions]:
    read, options = CONTENTS[request.param]
    return read(), options


def kept(events: list[StreamTranscribeResponse]) -> dict[str, list[Any]]:
    """What must be the same with and without an interruption."""
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    completed = [event.completed for event in events if event.HasField("completed")]
    return {
        "activity": [event.speech_activity for event in events if event.HasField("speech_activity")],
        "segments": [event.segment for event in events if event.HasField("segment")],
        "transcripts": [one.transcript for one in completed],
    }


def streamed(
    nodes: list[Node], content: tuple[bytes, StreamOptions], on_segment: Callable[[int], None] = lambda n: None
) -> dict[str, list[Any]]:
    """Stream to the first of these servers that is there. on_segment: is called with the number of those so far."""
    data, options = content
    target = "ipv4:" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    events, n_segments = [], 0
    with Client(target) as client:
        for event in client.stream(sent(data), options):
            events.append(event)
            if event.HasField("segment"):
                n_segments += 1
                on_segment(n_segments)
    return kept(events)


def start(cluster: Cluster, **settings: Any) -> Node:
    return cluster.start(stream_store="database", max_concurrent_jobs=0, **settings)


def test_a_stream_survives_the_death_of_its_server(cluster: Cluster, content: tuple[bytes, StreamOptions]):
    nodes = [start(cluster), start(cluster)]

    def kill(n_segments: int) -> None:
        if n_segments == 4:
            nodes[0].kill()

    assert streamed(nodes, content, kill) == streamed(nodes[1:], content)


@POSTGRESQL
def test_a_stream_survives_servers_that_die_one_after_the_other(cluster: Cluster):
    read, options = CONTENTS["raw"]
    content = read(), options
    nodes = [start(cluster) for _ in range(3)]
    expected = streamed(nodes[2:], content)

    def kill(n_segments: int) -> None:
        if n_segments in (2, 7):
            nodes[n_segments == 7].kill()

    assert streamed(nodes, content, kill) == expected


@POSTGRESQL
def test_a_stream_goes_on_where_another_server_stops(cluster: Cluster):
    read, options = CONTENTS["raw"]
    data = read()
    nodes = [start(cluster), start(cluster)]

    def stop(n_segments: int) -> None:
        if n_segments == 3:
            nodes[0].signal(signal.SIGTERM)

    assert streamed(nodes, (data, options), stop) == streamed(nodes[1:], (data, options))
    assert nodes[0].wait(20.0) == 0


class Attempt:
    """One call of a session, by hand: what a client in any language does. It sends from the acknowledged byte on."""

    def __init__(self, node: Node, data: bytes, session_id: str = "", after: int = 0) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{node.port}")
        stub = transcription_pb2_grpc.TranscriptionServiceStub(self._channel)
        self._data, self._session_id, self._after = data, session_id, after
        self._from: int | None = None
        self._is_open = threading.Event()
        self._responses = stub.StreamTranscribe(self._requests())
        self.got: list[StreamTranscribeResponse] = []
        first = next(self._responses)
        self.session_id, self._from = first.started.session_id, first.acknowledged_bytes
        if not session_id:
            self.got.append(first)
        self._is_open.set()

    def _requests(self) -> Iterator[StreamTranscribeRequest]:
        if self._session_id:
            config = transcription_pb2.StreamConfig(
                resume_session_id=self._session_id, resume_after_sequence=self._after
            )
        else:
            raw = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=16_000)
            language = transcription_pb2.TranscriptionOptions(language="en")
            config = transcription_pb2.StreamConfig(format=raw, options=language)
        yield StreamTranscribeRequest(config=config)
        self._is_open.wait(30)
        for data in sent(self._data[self._from :]):
            yield StreamTranscribeRequest(audio=data)
        yield StreamTranscribeRequest(control=transcription_pb2.STREAM_CONTROL_END)

    def read(self, n_segments: int | None = None) -> list[StreamTranscribeResponse]:
        """Read until so many segments have come, or to the end."""
        for response in self._responses:
            self.got.append(response)
            n_segments = None if n_segments is None else n_segments - response.HasField("segment")
            if n_segments == 0:
                break
        return self.got

    def close(self) -> None:
        self._channel.close()


@POSTGRESQL
def test_a_frozen_server_does_not_contradict_its_successor(cluster: Cluster):
    data = raw_samples()
    expected = streamed([start(cluster)], (data, CONTENTS["raw"][1]))
    frozen, successor = start(cluster), start(cluster)
    old = Attempt(frozen, data)
    events = list(old.read(n_segments=3))
    frozen.signal(signal.SIGSTOP)
    new = Attempt(successor, data, old.session_id, events[-1].sequence)
    new.read(n_segments=2)
    frozen.signal(signal.SIGCONT)
    with pytest.raises(grpc.RpcError) as caught:
        old.read()
    assert CallFailed.of(caught.value).reason == "SESSION_TAKEN"
    late = [event for event in old.got[len(events) :] if event.WhichOneof("event") != "interim"]
    assert all(event in new.got for event in late)  # what was stored before it froze
    events += new.read()
    assert kept(events) == expected
    for one in (old, new):
        one.close()


@POSTGRESQL
def test_callers_that_fight_for_a_session_cannot_harm_it(cluster: Cluster):
    data = raw_samples()
    nodes = [start(cluster), start(cluster)]
    expected = streamed(nodes, (data, CONTENTS["raw"][1]))
    attempts = [Attempt(nodes[0], data)]
    events = list(attempts[0].read(n_segments=1))
    for node in itertools.islice(itertools.cycle(reversed(nodes)), 6):
        attempts.append(Attempt(node, data, attempts[0].session_id, events[-1].sequence))
        events += attempts[-1].read(n_segments=1)
    for older in attempts[:-1]:
        with contextlib.suppress(grpc.RpcError):
            older.read()
            pytest.fail("two calls had the session to its end")
    last = Attempt(nodes[0], data, attempts[0].session_id, events[-1].sequence)
    events += last.read()
    assert kept(events) == expected
    for one in [*attempts, last]:
        one.close()


@POSTGRESQL
def test_a_session_is_its_owners_on_every_server(cluster: Cluster):
    keys = {"auth_enabled": True, "api_keys": ["a" * 32, "b" * 32]}
    first, second = start(cluster, **keys), start(cluster, **keys)
    raw = CONTENTS["raw"][1]
    with Client(f"127.0.0.1:{first.port}", api_key="a" * 32) as client:
        session = next(iter(client.stream(sent(bytes(320_000)), raw))).started.session_id
    resumed = StreamTranscribeRequest(config=transcription_pb2.StreamConfig(resume_session_id=session))
    outcomes = {}
    for key in ("b" * 32, "a" * 32):
        with grpc.insecure_channel(f"127.0.0.1:{second.port}") as channel:
            stub = transcription_pb2_grpc.TranscriptionServiceStub(channel)
            call = stub.StreamTranscribe(iter([resumed]), metadata=(("x-api-key", key),))
            try:
                outcomes[key[0]] = next(call).started.resumed
            except grpc.RpcError as error:
                outcomes[key[0]] = CallFailed.of(error).reason
    assert outcomes == {"b": "SESSION_NOT_FOUND", "a": True}


async def test_without_the_store_a_new_stream_is_in_memory_only(postgres: Postgres):
    url = postgres.empty_database()
    async with serving(ScriptedEngine(), stream_store="database", database_url=url) as served:
        postgres.stop()
        try:
            options = StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000))
            async with AsyncClient(served.target) as client:
                events = [event async for event in client.stream([speech(1.0, 1.0)], options)]
            assert [event.warning.reason for event in events if event.HasField("warning")] == ["SESSION_NOT_DURABLE"]
            assert events[-1].HasField("completed")
            assert events[-1].acknowledged_bytes == len(speech(1.0, 1.0))
            call = served.transcription.StreamTranscribe()
            await call.write(StreamTranscribeRequest(config=transcription_pb2.StreamConfig(resume_session_id="x")))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert CallFailed.of(caught.value).reason == "STORE_UNAVAILABLE"
        finally:
            postgres.start()
