"""Streams that go on from what another server stored: as if nothing had happened, whenever that server was lost."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.speech import cut, fingerprint, silence, speech, tone
from tests.unit.idle import run_until_complete
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.audio.live import live_reader
from typeless_grpc.audio.loudness import LoudnessDetector
from typeless_grpc.clock import FakeClock
from typeless_grpc.engine.interface import DecodeOptions, Lane
from typeless_grpc.engine.scripted import EngineCall, ScriptedEngine
from typeless_grpc.errors import InvalidInput, NotFound, SourceUnavailable, WrongState
from typeless_grpc.pb.v1 import transcription_pb2
from typeless_grpc.servicers.stream_messages import StreamDefaults, UpdateMessages
from typeless_grpc.speech.transcript import OutputFormat
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.durable_log import DurableDependencies
from typeless_grpc.streaming.durable_store import Batch, Lease
from typeless_grpc.streaming.durable_stream import DurableStream
from typeless_grpc.streaming.endpoint import EndpointOptions
from typeless_grpc.streaming.events import Completed, Entry, Final, SpeechEnd, SpeechStart, Started, Warned
from typeless_grpc.streaming.memory_sessions import MemorySessionStore
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.requests import Control, Request, Update

RAW = AudioFormat(Encoding.PCM_S16LE, 16_000)
DEFAULTS = StreamDefaults("tiny")
UPDATES = UpdateMessages(DEFAULTS)


def words(call: EngineCall) -> str:
    """A word for each half second, and what shows the audio and the options: "w0 w1 w2 4f3a en"."""
    known = " ".join(f"w{n}" for n in range(2 * len(call.audio) // 16_000))
    if call.ticket.lane is Lane.LIVE_INTERIM:
        return known
    return f"{known} {fingerprint(call.audio)} {call.options.language} {call.options.prompt}"


def update(prompt: str, *, is_file: bool = False, **fields: Any) -> Update:
    message = transcription_pb2.TranscriptionOptions(language="en", prompt=prompt, **fields)
    mode = b"F" if is_file else b"L"
    return UPDATES.decode(mode + message.SerializeToString())


@dataclass
class Caller:
    """Sends requests to one stream after the other, as the documentation says, and keeps the events."""

    requests: Sequence[Request]
    got: list[Entry]
    n_sent: int = 0

    @property
    def last_sequence(self) -> int:
        return max((entry.sequence for entry in self.got), default=0)

    def from_byte(self, acknowledged: int) -> list[Request]:
        """All requests from there on, the controls at that byte included."""
        at, left = 0, list[Request]()
        for request in self.requests:
            if isinstance(request, bytes):
                if at + len(request) > acknowledged:
                    left.append(request[max(0, acknowledged - at) :])
                at += len(request)
            elif at >= acknowledged:
                left.append(request)
        return left

    async def read(self, stream: Stream, limit: int | None = None) -> None:
        """Read events until the stream is over, or until so many more have come."""
        async for entry in stream.events_after(self.last_sequence):
            if not self.got or entry.sequence > self.last_sequence:
                self.got.append(entry)
            if limit is not None:
                limit -= 1
                if limit <= 0:
                    return

    def kept(self) -> dict[str, list[Any]]:
        """What must be the same, by kind: not sequences, nor what depends on the speed of the engine."""
        assert [entry.sequence for entry in self.got] == sorted({entry.sequence for entry in self.got})
        kinds: dict[str, list[Any]] = {"activity": [], "finals": [], "warnings": [], "completed": []}
        for entry in self.got:
            match entry.event:
                case SpeechStart() | SpeechEnd():
                    kinds["activity"].append(entry.event)
                case Final():
                    kinds["finals"].append(entry.event)
                case Warned(error):
                    kinds["warnings"].append((type(error), error.reason, error.message))
                case Completed():
                    kinds["completed"].append(replace(entry.event, processing_s=0.0, queue_s=0.0))
        return kinds


class UnreliableStore(MemorySessionStore):
    """Unavailable while is_unavailable."""

    is_unavailable = False

    def append(self, lease: Lease, batch: Batch) -> None:
        if self.is_unavailable:
            raise SourceUnavailable("It is unavailable.", reason="STORE_UNAVAILABLE")
        super().append(lease, batch)


@asynccontextmanager
async def servers(script: Any = words, part_bytes: int = 20_000, **given: Any) -> AsyncIterator[Servers]:
    with ThreadPoolExecutor(2) as threads:
        one = Servers(threads, script, part_bytes, given)
        try:
            yield one
        finally:
            for stream in one.streams:
                await stream.close()


class Servers:
    """Makes streams of one session, each as on a server of its own."""

    def __init__(self, threads: ThreadPoolExecutor, script: Any, part_bytes: int, given: dict[str, Any]) -> None:
        self.store = UnreliableStore()
        self.threads, self._script, self._part_bytes = threads, script, part_bytes
        self._format = given.pop("format", RAW)
        self.options = StreamOptions(
            **{"options": DecodeOptions(language="en"), "segmentation": EndpointOptions()} | given
        )
        self.streams: list[Stream] = []
        self.engines: list[ScriptedEngine] = []
        self.clock = FakeClock()

    def _dependencies(self) -> Dependencies:
        clock = self.clock = FakeClock(100.0)

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)

        self.engines.append(ScriptedEngine(self._script))
        return Dependencies(self.engines[-1], LoudnessDetector(), self.threads, clock, sleep=sleep)

    def _reader(self) -> Any:
        return live_reader(self._format, field="config", is_live=isinstance(self.options.segmentation, EndpointOptions))

    @property
    def durable(self) -> DurableDependencies:
        return DurableDependencies(self.store, self.threads, UPDATES, every_s=0.01, part_bytes=self._part_bytes)

    def _kept(self, stream: Any) -> Any:
        self.streams.append(stream)
        return stream

    def plain(self) -> Stream:
        stream = self._kept(Stream(self._dependencies(), self._reader(), self.options))
        stream.attach()
        return stream

    def first(self) -> DurableStream:
        lease = self.store.create("s", "me", b"")
        stream = self._kept(DurableStream(self._dependencies(), self._reader(), self.options, self.durable, lease))
        stream.start()
        stream.attach()
        return stream

    async def next(self, after: int) -> DurableStream:
        stored = self.store.take("s", "me")
        assert stored is not None
        made = DurableStream(self._dependencies(), self._reader(), self.options, self.durable, stored.lease)
        stream = self._kept(made)
        await stream.restore(stored, after)
        stream.attach()
        return stream


async def uninterrupted(on: Servers, requests: Sequence[Request]) -> dict[str, list[Any]]:
    caller = Caller(requests, [])
    stream = on.plain()
    for request in requests:
        await stream.put(request)
    await caller.read(stream)
    return caller.kept()


async def interrupted(
    on: Servers, requests: Sequence[Request], kills: Sequence[tuple[int, int, bool]]
) -> dict[str, list[Any]]:
    """kills: after so many requests, and so many steps of the event loop; and whether the caller had read all."""
    caller = Caller(requests, [])
    stream: DurableStream = on.first()
    for n_requests, n_steps, has_read in kills:
        reading = asyncio.create_task(caller.read(stream))
        sent = asyncio.create_task(_send(stream, caller.from_byte(stream.acknowledged_bytes)[:n_requests]))
        for _ in range(n_steps):
            await asyncio.sleep(0)
        if has_read:
            await asyncio.wait([sent], timeout=1.0)
            await asyncio.sleep(0.02)
        for task in (sent, reading):
            task.cancel()
        await asyncio.wait([sent, reading])
        stream = await on.next(caller.last_sequence)  # the old one is alive, and may not disturb
    sending = asyncio.create_task(_send(stream, caller.from_byte(stream.acknowledged_bytes)))
    async with asyncio.timeout(20):
        await caller.read(stream)
    await sending
    return caller.kept()


async def _send(stream: Stream, requests: Sequence[Request]) -> None:
    for request in requests:
        await stream.put(request)


KILLS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 400), st.booleans()), min_size=1, max_size=3)
SPOKEN = st.lists(st.floats(0.1, 1.6), min_size=2, max_size=9)
SIZES = st.lists(st.integers(333, 20_000), min_size=1, max_size=10)


def requests_of(
    spoken: Sequence[float], sizes: Sequence[int], controls: Sequence[tuple[int, Request]]
) -> list[Request]:
    requests: list[Request] = list(cut(silence(0.3) + speech(*spoken), sizes))
    for at, control in controls:
        requests.insert(at % (len(requests) + 1), control)
    return [*requests, Control.END]


def controls_of(*, is_file: bool) -> st.SearchStrategy[list[tuple[int, Request]]]:
    updates = st.sampled_from(["Zelvari", "Moon"]).map(lambda prompt: update(prompt, is_file=is_file))
    return st.lists(st.tuples(st.integers(0, 50), st.one_of(st.just(Control.FINALIZE), updates)), max_size=3)


def wav_of(data: bytes) -> bytes:
    return encoded(data, codec="pcm_s16le", container="wav")


def encoded(data: bytes, *, codec: str, container: str) -> bytes:
    """Raw samples in a container. Every encoder here takes 48 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        samples = np.repeat(np.frombuffer(data, "<i2"), 3).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000, frame_size=960)
        for one in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(one))
        output.mux(stream.encode(None))
    return file.getvalue()


# Shrinking a failure would take minutes: the interruptions take time.
PROPERTY = settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def check(
    requests: Sequence[Request], kills: Sequence[tuple[int, int, bool]], part_bytes: int = 20_000, **given: Any
) -> None:
    async def compare() -> None:
        async with servers(part_bytes=part_bytes, **given) as on:
            assert await interrupted(on, requests, kills) == await uninterrupted(on, requests)

    run_until_complete(compare())


@PROPERTY
@given(spoken=SPOKEN, sizes=SIZES, controls=controls_of(is_file=False), kills=KILLS, part=st.integers(500, 60_000))
def test_a_live_stream_goes_on_as_if_nothing_had_happened(spoken, sizes, controls, kills, part):
    check(requests_of(spoken, sizes, controls), kills, part)


@PROPERTY
@given(spoken=SPOKEN, sizes=SIZES, kills=KILLS, part=st.integers(500, 60_000))
def test_what_interims_committed_stays(spoken, sizes, kills, part):
    check(requests_of(spoken, sizes, []), kills, part, interim_interval_s=0.3)


@PROPERTY
@given(
    spoken=st.lists(st.floats(3.0, 20.0), min_size=2, max_size=8),
    sizes=st.lists(st.integers(5_001, 60_000), min_size=1, max_size=10),
    controls=controls_of(is_file=True),
    kills=KILLS,
)
def test_a_file_stream_goes_on_as_if_nothing_had_happened(spoken, sizes, controls, kills):
    check(requests_of(spoken, sizes, controls), kills, segmentation=PlanOptions())


@pytest.mark.parametrize(
    ("format", "converted"),
    [
        pytest.param(AudioFormat(Encoding.PCM_S16LE, 44_100), lambda data: data, id="raw at another rate"),
        pytest.param(AudioFormat(Encoding.PCM_S16LE, 16_000, 2), lambda data: data, id="raw in stereo"),
        pytest.param(AudioFormat(Encoding.CONTAINER), wav_of, id="wav"),
        pytest.param(AudioFormat(Encoding.CONTAINER), partial(encoded, codec="flac", container="flac"), id="flac"),
        pytest.param(AudioFormat(Encoding.CONTAINER), partial(encoded, codec="libopus", container="webm"), id="webm"),
    ],
)
@pytest.mark.parametrize("n_requests", [3, 17, 40])
def test_audio_of_any_format_is_decoded_again(format: AudioFormat, converted: Any, n_requests: int):
    data = converted(silence(0.3) + speech(1.0, 1.2, 0.7, 0.9, 1.5, 1.0))
    requests = [*cut(data, [max(500, len(data) // 50)]), Control.END]
    check(requests, [(n_requests, 300, True), (5, 100, False)], 4_000, format=format)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(DecodeOptions(word_timestamps=True, language="en"), id="words"),
        pytest.param(DecodeOptions(), id="a language to be detected"),
        pytest.param(DecodeOptions(language="de", prompt="Zelvari", hotwords=("a", "b")), id="another language"),
        pytest.param(DecodeOptions(language="en", output_formats=(OutputFormat.SRT,)), id="renditions"),
    ],
)
def test_options_stay(options: DecodeOptions):
    requests = [*cut(silence(0.3) + speech(1.0, 1.2, 0.7, 0.9, 1.5, 1.0), [3200]), Control.END]
    check(requests, [(30, 300, True)], options=options)


def test_an_utterance_that_cannot_be_decoded_is_reported_once():
    def fail(call: EngineCall) -> str:
        if len(call.audio) > 24_000:
            raise InvalidInput("options.language", "not with this model")
        return words(call)

    requests = [*cut(silence(0.3) + speech(1.0, 1.2, 2.0, 0.9, 0.5, 1.0), [3200]), Control.END]
    check(requests, [(20, 300, True), (12, 300, True)], script=fail)


def test_audio_that_is_too_long_fails_on_the_other_server_as_well():
    async def ends() -> None:
        async with servers(max_audio_s=2.5) as on:
            caller = Caller([*cut(speech(1.0, 1.2, 0.7, 0.9), [3200]), Control.END], [])
            first = on.first()
            await _send(first, caller.requests[:15])
            stream = await on.next(0)
            await _send(stream, caller.from_byte(stream.acknowledged_bytes))
            with pytest.raises(InvalidInput) as caught:
                await caller.read(stream)
            assert caught.value.reason == "AUDIO_TOO_LONG"
            assert len(caller.kept()["finals"]) == 2

    run_until_complete(ends())


async def test_nothing_that_is_not_stored_reaches_a_caller():
    async with servers() as on:
        on.store.is_unavailable = True
        stream, caller = on.first(), Caller([], [])
        for data in cut(speech(1.0, 1.2), [3200]):
            await stream.put(data)
        reading = asyncio.create_task(caller.read(stream))
        await asyncio.wait([reading], timeout=0.3)
        assert [type(entry.event) for entry in caller.got] == [Started]
        assert stream.acknowledged_bytes == 0
        on.store.is_unavailable = False
        await stream.put(Control.END)
        async with asyncio.timeout(10):
            await reading
        assert len(caller.kept()["finals"]) == 1
        assert caller.got[-1].acknowledged_bytes == len(speech(1.0, 1.2))


async def test_a_stream_without_its_store_takes_no_more_than_it_may_hold():
    async with servers(part_bytes=8_000, max_waiting_bytes=16_000) as on:
        on.store.is_unavailable = True
        stream = on.first()
        sending = asyncio.create_task(_send(stream, list(cut(silence(20.0), [3200]))))
        await asyncio.wait([sending], timeout=0.3)
        assert not sending.done()
        on.store.is_unavailable = False
        async with asyncio.timeout(10):
            await sending


async def test_the_server_that_lost_the_session_ends_its_copy():
    async with servers() as on:
        old = on.first()
        await old.put(tone(1.0))
        await on.next(1)
        await old.put(silence(1.2))
        with pytest.raises(WrongState) as caught:
            async with asyncio.timeout(10):
                await Caller([], []).read(old)
        assert caught.value.reason == "SESSION_TAKEN"
        assert isinstance(old.trouble, WrongState)
        assert not await old.is_owned()


async def test_a_call_that_comes_back_sends_again_what_is_not_acknowledged():
    requests = [*cut(silence(0.3) + speech(1.0, 1.2, 0.7, 0.9), [3200]), Control.END]
    async with servers() as on:
        caller, stream = Caller(requests, []), on.first()
        await _send(stream, requests[:20])
        assert stream.acknowledged_bytes < 20 * 3200
        stream.detach()
        stream.attach()
        await _send(stream, caller.from_byte(stream.acknowledged_bytes))
        async with asyncio.timeout(10):
            await caller.read(stream)
        assert caller.kept() == await uninterrupted(on, requests)


async def test_a_sequence_that_the_session_cannot_have_reached_is_refused():
    async with servers() as on:
        on.first()
        with pytest.raises(InvalidInput) as caught:
            await on.next(10_000_000)
        assert caught.value.violations[0].field == "config.resume_after_sequence"


async def test_a_store_that_is_unavailable_for_long_ends_calls_and_not_the_session():
    async with servers() as on:
        on.store.is_unavailable = True
        stream = on.first()
        await stream.put(tone(1.0))
        async with asyncio.timeout(20):
            while stream.trouble is None:
                on.clock.advance(20.0)
                await asyncio.sleep(0.1)
        assert stream.trouble.reason == "STORE_UNAVAILABLE"
        on.store.is_unavailable = False
        await stream.put(Control.END)
        caller = Caller([], [])
        async with asyncio.timeout(10):
            await caller.read(stream)
        assert stream.trouble is None
        assert len(caller.kept()["finals"]) == 1


async def test_a_session_in_another_form_is_not_found():
    async with servers() as on:
        lease = on.store.create("s", "me", b"")
        on.store.append(lease, Batch(0, b"", b'{"format": 2}'))
        with pytest.raises(NotFound) as caught:
            await on.next(0)
        assert caught.value.reason == "SESSION_NOT_FOUND"
