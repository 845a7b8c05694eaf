"""What the journal keeps of a session's events."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tests.unit.idle import until_idle
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.streaming.events import Configured, Cursors, Entry, Event, Interim, SpeechStart
from typeless_grpc.streaming.journal import Journal


def passing(n: int) -> Interim:
    return Interim("", str(n), 0.0, 1.0)


def nothing() -> BaseException | None:
    return None


async def read(journal: Journal, n: int, after: int = 0) -> list[Entry]:
    async with aclosing(journal.after(after, nothing)) as entries:
        return [await anext(entries) for _ in range(n)]


def written(*events: Event, keep_passing: int = 256) -> Journal:
    journal = Journal(keep_passing)
    for event in events:
        journal.add(event, Cursors(), 0)
    return journal


async def test_entries_are_numbered_and_read_from_anywhere():
    journal = written(SpeechStart(0), SpeechStart(1), SpeechStart(2))
    assert [entry.sequence for entry in await read(journal, 3)] == [1, 2, 3]
    assert [entry.event for entry in await read(journal, 1, after=2)] == [SpeechStart(2)]


async def test_a_reader_waits_for_new_events():
    journal = written()
    reading = asyncio.create_task(read(journal, 1))
    await until_idle()
    journal.add(SpeechStart(1), Cursors(), 7)
    assert (await reading)[0].acknowledged_bytes == 7


async def test_an_event_counts_as_sent_once_the_next_is_requested():
    journal = written(SpeechStart(0), SpeechStart(1))
    async with aclosing(journal.after(0, nothing)) as entries:
        await anext(entries)
        assert journal.n_unsent == 2
        await anext(entries)
        assert journal.n_unsent == 1


async def test_old_interims_that_were_sent_are_dropped_and_finals_are_not():
    journal = written(SpeechStart(0), *map(passing, range(7)), keep_passing=4)
    await read(journal, 8)
    for n in range(7, 12):
        journal.add(passing(n), Cursors(), 0)
    journal.close()
    kept = [entry.event async for entry in journal.after(0, nothing)]
    assert kept[0] == SpeechStart(0)
    assert kept[-1] == passing(11)
    assert 4 <= len(kept) - 1 < 9


async def test_old_answers_to_updates_are_dropped_too():
    answers = [Configured(DecodeOptions(prompt=str(n))) for n in range(20)]
    journal = written(*answers, keep_passing=4)
    await read(journal, 20)
    journal.add(answers[0], Cursors(), 0)
    journal.close()
    assert len([entry async for entry in journal.after(0, nothing)]) == 4


async def test_interims_that_nobody_has_read_stay():
    journal = written(*map(passing, range(20)), keep_passing=4)
    assert len(await read(journal, 20)) == 20


async def test_a_closed_journal_ends_with_its_failure():
    journal = written(SpeechStart(0))
    journal.close(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await read(journal, 2)


async def test_an_error_of_the_reader_ends_it_at_once():
    journal = written(SpeechStart(0))
    broken: list[BaseException] = []
    entries = journal.after(0, lambda: broken[0] if broken else None)
    await anext(entries)
    waiting = asyncio.ensure_future(anext(entries))
    await until_idle()
    broken.append(OSError("taken"))
    journal.wake()
    with pytest.raises(OSError, match="taken"):
        await waiting
