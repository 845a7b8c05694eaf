"""The events of a session, in order, kept for as long as a caller may request them again."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable

from typeless_grpc.streaming.events import PASSING, Cursors, Entry, Event


class Journal:
    """The events of one session.

    Events that the next one of their kind replaces (`events.PASSING`) are pruned once they are read, except the newest:
    keep_passing is how many of them stay at least. All others stay, so the memory grows with the text.
    """

    def __init__(self, keep_passing: int = 256) -> None:
        self._keep_passing = keep_passing
        self._entries: list[Entry] = []
        self._n_passing = 0
        self._last = 0
        self._sent = 0
        self._failure: BaseException | None = None
        self._is_closed = False
        self._is_cut = False  # closed so that readers get nothing more
        self._held_from: int | None = None  # sequence of the first event that is withheld
        self._news = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest event; 0 if there is none."""
        return self._last

    @property
    def n_unsent(self) -> int:
        """Events that no call has read yet."""
        return self._last - self._sent

    @property
    def is_closed(self) -> bool:
        """Whether no event will be added."""
        return self._is_closed

    def add(self, event: Event, cursors: Cursors, acknowledged_bytes: int) -> Entry:
        """Append an event."""
        assert not self._is_closed
        self._last += 1
        entry = Entry(self._last, event, cursors, acknowledged_bytes)
        self._entries.append(entry)
        self._n_passing += isinstance(event, PASSING)
        if self._n_passing >= 2 * self._keep_passing:
            self._prune()
        self._news.set()
        return entry

    def hold(self) -> None:
        """Withhold the newest event, and so all later ones, from readers until `release`."""
        if self._held_from is None:
            self._held_from = self._last

    def release(self, up_to: int) -> None:
        """Let readers have all events up to this sequence, and those after it up to the next one that must be held."""
        if self._held_from is not None and self._held_from <= up_to:
            start = bisect_right(self._entries, up_to, key=lambda entry: entry.sequence)
            later = (one.sequence for one in self._entries[start:] if not isinstance(one.event, PASSING))
            self._held_from = next(later, None)
            self._news.set()

    def restore(self, entries: list[Entry], last: int) -> None:
        """Begin with the events of an earlier server.

        last: sequence of the newest one, which may be missing in entries.
        """
        self._entries, self._last = entries, max([last, *(entry.sequence for entry in entries[-1:])])

    def close(self, failure: BaseException | None = None, *, at_once: bool = False) -> None:
        """End the journal: `after` ends once all is read, and raises failure if there is one.

        at_once: readers get nothing more, not even what they have not read.
        """
        if not self._is_closed or at_once:
            self._is_closed, self._is_cut, self._failure = True, at_once, failure
            self._news.set()

    def wake(self) -> None:
        """Make readers call their `broken` at once."""
        self._news.set()

    async def after(self, sequence: int, broken: Callable[[], BaseException | None]) -> AsyncGenerator[Entry, None]:
        """Yield every event later than sequence until the journal is closed. For one reader at a time.

        broken: returns the error that stops this reader, if there is one; called before each event and after `wake`.
        Raises that error at once, and the failure that the journal was closed with once all is read.
        """
        self._sent = min(max(self._sent, sequence), self._last)
        while True:
            if (error := broken()) is not None:
                raise error
            start = bisect_right(self._entries, sequence, key=lambda entry: entry.sequence)
            is_held = start < len(self._entries) and self._is_held(self._entries[start].sequence)
            if self._is_cut:
                break
            if start == len(self._entries) or is_held:
                if not is_held:
                    self._sent = max(self._sent, self._last)
                    if self._is_closed:
                        break
                self._news.clear()
                await self._news.wait()
                continue
            entry = self._entries[start]
            sequence = entry.sequence
            yield entry
            self._sent = max(self._sent, sequence)  # only once the reader asks for the next
        if self._failure is not None:
            raise self._failure

    def _is_held(self, sequence: int) -> bool:
        return self._held_from is not None and sequence >= self._held_from

    def _prune(self) -> None:
        """Drop the oldest passing events that were read."""
        excess = self._n_passing - self._keep_passing
        kept = []
        for entry in self._entries:
            if excess and isinstance(entry.event, PASSING) and entry.sequence <= self._sent:
                excess -= 1
                self._n_passing -= 1
            else:
                kept.append(entry)
        self._entries = kept
