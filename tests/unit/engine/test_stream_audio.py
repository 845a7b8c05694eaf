from __future__ import annotations

import asyncio

import pytest

from tests.unit.idle import steps, until_idle
from typeless_grpc.engine.admission import Admission, AdmissionOptions
from typeless_grpc.engine.stream_audio import BYTES_PER_S, Holding, StreamAudio
from typeless_grpc.errors import Overloaded


def shared(max_audio_s: float = 10.0) -> tuple[Admission, StreamAudio]:
    admission = Admission(AdmissionOptions(max_audio_s=max_audio_s))
    return admission, StreamAudio(admission)


def growing(holding: Holding, seconds: float) -> asyncio.Task[None]:
    return asyncio.create_task(holding.grow(round(seconds * BYTES_PER_S)))


async def test_recordings_and_streams_share_what_may_be_held():
    admission, audio = shared()
    stream = Holding(audio)
    await stream.grow(6 * BYTES_PER_S)
    with admission.audio(3.0, "one"), pytest.raises(Overloaded), admission.audio(2.0, "another"):
        pytest.fail("let in")
    stream.close()
    with admission.audio(3.0, "one"), admission.audio(7.0, "another"):
        assert admission.room_s == 0.0


async def test_one_recording_alone_is_let_in_beside_streams():
    admission, audio = shared()
    await Holding(audio).grow(9 * BYTES_PER_S)
    with admission.audio(5.0, "one"):
        assert admission.room_s == -4.0


@pytest.mark.parametrize("holder", ["a recording", "a stream"])
async def test_a_stream_waits_for_room_and_continues_once_there_is_some(holder: str):
    admission, audio = shared()
    first, second, third = Holding(audio), Holding(audio), Holding(audio)
    await first.grow(2 * BYTES_PER_S)
    if holder == "a recording":
        with admission.audio(8.0, "one"):
            passing, waiting = growing(second, 1.0), growing(third, 2.0)
            await until_idle()
            assert third.is_waiting
    else:
        await first.grow(8 * BYTES_PER_S)
        passing, waiting = growing(second, 1.0), growing(third, 2.0)
        await until_idle()
        assert third.is_waiting
        first.shrink(3 * BYTES_PER_S)
    await asyncio.wait_for(asyncio.gather(passing, waiting), 30)
    assert not third.is_waiting


async def test_streams_that_all_wait_take_turns_and_none_waits_for_ever():
    """Each needs 4 s before it can let go of anything: without the pass, three of them would hold 9 s for good."""
    _, audio = shared(9.0)
    most = 0

    async def stream() -> None:
        nonlocal most
        holding = Holding(audio)
        for _ in range(5):
            for _ in range(4):
                await holding.grow(BYTES_PER_S)
                most = max(most, audio.n_bytes)
                await steps(1)
            holding.shrink(4 * BYTES_PER_S)

    await asyncio.wait_for(asyncio.gather(*(stream() for _ in range(6))), 30)
    assert audio.n_bytes == 0
    assert most <= (9 + 4) * BYTES_PER_S


async def test_a_stream_that_is_closed_while_it_waits_leaves_its_turn_and_its_pass_to_others():
    _, audio = shared(1.0)
    first, with_pass, closed, last = (Holding(audio) for _ in range(4))
    await first.grow(BYTES_PER_S)
    await with_pass.grow(BYTES_PER_S)
    cancelled, waiting = growing(closed, 1.0), growing(last, 1.0)
    await until_idle()
    cancelled.cancel()
    closed.close()
    await until_idle()
    assert last.is_waiting
    with_pass.close()
    await asyncio.wait_for(waiting, 30)


async def test_a_new_stream_is_refused_where_those_that_are_here_find_no_room():
    _, audio = shared()
    audio.check()
    holding = Holding(audio)
    holding.count(10 * BYTES_PER_S)
    with pytest.raises(Overloaded) as caught:
        audio.check()
    assert caught.value.retry_after_s
    holding.close()
    audio.check()
