from __future__ import annotations

import asyncio

from typeless_grpc import account
from typeless_grpc.account import MAX_TEXT_CHARACTERS, CallAccount


def test_outside_of_a_call_nothing_is_kept():
    account.current().add_audio(1.0)
    assert account.current().audio_s == 0.0


async def test_tasks_of_a_call_share_its_account():
    with account.opened(CallAccount()) as mine:

        async def work() -> None:
            account.current().add_audio(2.0)

        await asyncio.gather(work(), work())
        other = account.in_context(CallAccount())
        other.run(lambda: account.current().add_audio(50.0))
    assert mine.audio_s == 4.0


def test_listeners_get_each_addition_of_audio():
    got: list[float] = []
    mine = CallAccount(audio_listeners=[got.append])
    mine.add_audio(1.0)
    mine.add_audio(2.5)
    assert got == [1.0, 2.5]


def test_texts_are_kept_only_on_request_and_up_to_a_bound():
    silent, keeping = CallAccount(), CallAccount(keeps_text=True)
    for one in (silent, keeping):
        one.add_text("a" * MAX_TEXT_CHARACTERS)
        one.add_text("b")
    assert silent.texts == []
    assert keeping.texts == ["a" * MAX_TEXT_CHARACTERS]
