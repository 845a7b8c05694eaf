"""Streams that go on from what another server stored: as if nothing had happened, whenever that server was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.speech import cut, silence, speech, tone
from tests.unit.idle import run_until_complete
from tests.unit.streaming.durable_bench import (
    Caller,
    interrupted,
    send,
    servers,
    uninterrupted,
    update,
    words,
)
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.scripted import EngineCall
from typeless_grpc.errors import InvalidInput, NotFound, RateLimited, WrongState
from typeless_grpc.speech.transcript import OutputFormat
from typeless_grpc.streaming.durable_store import Batch, Lease
from typeless_grpc.streaming.events import Started
from typeless_grpc.streaming.planner import PlanOptions
from typeless_grpc.streaming.requests import Control, Request

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
def test_a_live_stream_continues_as_if_nothing_had_happened(spoken, sizes, controls, kills, part):
    check(requests_of(spoken, sizes, controls), kills, part)


@PROPERTY
@given(spoken=SPOKEN, sizes=SIZES, kills=KILLS, part=st.integers(500, 60_000))
def test_words_that_interims_committed_stay(spoken, sizes, kills, part):
    check(requests_of(spoken, sizes, []), kills, part, interim_interval_s=0.3)


@PROPERTY
@given(
    spoken=st.lists(st.floats(3.0, 20.0), min_size=2, max_size=8),
    sizes=st.lists(st.integers(5_001, 60_000), min_size=1, max_size=10),
    controls=controls_of(is_file=True),
    kills=KILLS,
)
def test_a_file_stream_continues_as_if_nothing_had_happened(spoken, sizes, controls, kills):
    check(requests_of(spoken, sizes, controls), kills, segmentation=PlanOptions())


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
            await send(first, caller.requests[:15])
            stream = await on.next(0)
            await send(stream, caller.from_byte(stream.acknowledged_bytes))
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
        async with asyncio.timeout(30):
            await reading
        assert len(caller.kept()["finals"]) == 1
        assert caller.got[-1].acknowledged_bytes == len(speech(1.0, 1.2))


async def test_a_stream_without_its_store_takes_no_more_than_it_may_hold():
    async with servers(part_bytes=8_000, max_waiting_bytes=16_000) as on:
        on.store.is_unavailable = True
        stream = on.first()
        sending = asyncio.create_task(send(stream, list(cut(silence(20.0), [3200]))))
        await asyncio.wait([sending], timeout=0.3)
        assert not sending.done()
        on.store.is_unavailable = False
        async with asyncio.timeout(30):
            await sending


async def test_the_server_that_lost_the_session_ends_its_copy():
    async with servers() as on:
        old = on.first()
        await old.put(tone(1.0))
        await on.next(1)
        await old.put(silence(1.2))
        with pytest.raises(WrongState) as caught:
            async with asyncio.timeout(30):
                await Caller([], []).read(old)
        assert caught.value.reason == "SESSION_TAKEN"
        assert isinstance(old.trouble, WrongState)
        assert not await old.is_owned()


async def test_a_call_that_comes_back_sends_again_what_is_not_acknowledged():
    requests = [*cut(silence(0.3) + speech(1.0, 1.2, 0.7, 0.9), [3200]), Control.END]
    async with servers() as on:
        caller, stream = Caller(requests, []), on.first()
        await send(stream, requests[:20])
        assert stream.acknowledged_bytes < 20 * 3200
        stream.detach()
        stream.attach()
        await send(stream, caller.from_byte(stream.acknowledged_bytes))
        async with asyncio.timeout(30):
            await caller.read(stream)
        assert caller.kept() == await uninterrupted(on, requests)


async def test_a_completed_event_that_was_not_received_keeps_its_number():
    requests = [*cut(silence(0.3) + speech(1.0, 1.2), [3200]), Control.END]
    async with servers() as on:
        first, stream = Caller(requests, []), on.first()
        await send(stream, requests)
        await first.read(stream)
        again = Caller(requests, first.got[:-1])
        await again.read(await on.next(again.last_sequence))
        assert again.last_sequence == first.last_sequence
        assert again.kept() == first.kept()


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
        async with asyncio.timeout(30):
            await caller.read(stream)
        assert stream.trouble is None
        assert len(caller.kept()["finals"]) == 1


async def test_a_stream_whose_stored_audio_is_too_much_is_in_trouble_at_once():
    async with servers() as on:
        stream = on.first()

        def append(lease: Lease, batch: Batch) -> None:
            raise RateLimited("It is too much.", reason="UPLOAD_QUOTA_EXCEEDED", retry_after_s=60.0)

        on.store.append = append  # type: ignore[method-assign]
        await stream.put(tone(1.0))
        async with asyncio.timeout(30):
            while stream.trouble is None:  # noqa: ASYNC110 - nothing notifies a caller of it but `tick`
                await asyncio.sleep(0.01)
        assert stream.trouble.reason == "UPLOAD_QUOTA_EXCEEDED"
        assert stream.acknowledged_bytes == 0


async def test_a_session_in_another_form_is_not_found():
    async with servers() as on:
        lease = on.store.create("s", "me", b"")
        on.store.append(lease, Batch(0, b"", b'{"format": 2}'))
        with pytest.raises(NotFound) as caught:
            await on.next(0)
        assert caught.value.reason == "SESSION_NOT_FOUND"
