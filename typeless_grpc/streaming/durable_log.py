"""Writes a session to the store while the session runs.

One write is in progress at a time, with all new records. It begins at once if an event waits for it, otherwise every
few seconds. If the store does not answer, the log repeats the same batch until it does, and acknowledges nothing
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from typeless_grpc.clock import Clock
from typeless_grpc.errors import NotFound, RateLimited, SourceUnavailable, TypelessError, WrongState
from typeless_grpc.streaming.durable_records import Checkpoint, Record, UpdateCodec, encode, encode_checkpoint
from typeless_grpc.streaming.durable_store import Batch, DurableStore, Lease

T = TypeVar("T")

EVERY_S = 5.0
_MAX_PARTS = 4  # of audio that waits to be stored
RETRY_S = 1.0
GIVE_UP_S = 30.0  # without the store; then calls end, and their callers resume
ANSWER_S = 60.0  # longer than the timeouts of a database


@dataclass(frozen=True)
class DurableDependencies:
    """What all durable streams share.

    threads: run the store, which blocks. every_s: longest time between two writes of a session or renewals of its
    lease. part_bytes: audio that is stored at a time; the caller keeps the rest until then.
    """

    store: DurableStore
    threads: Executor
    updates: UpdateCodec
    every_s: float = EVERY_S
    part_bytes: int = 256 * 1024


class LogHost(Protocol):
    """The stream that a log belongs to."""

    def checkpoint(self) -> Checkpoint:
        """Return the state of the stream after all records so far."""
        ...

    def stored(self, last_sequence: int, audio_bytes: int) -> None:
        """Note that all events up to this sequence and the first audio_bytes are durable."""
        ...

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """Check the finished writer for an unexpected error."""
        ...

    def set_trouble(self, error: TypelessError | None) -> None:
        """Note that the store cannot be used. None: it answers again.

        error: SourceUnavailable after GIVE_UP_S, RateLimited for an owner without room, or WrongState for a lost lease.
        """
        ...


class DurableLog:
    """The log of one session."""

    def __init__(self, dependencies: DurableDependencies, lease: Lease, host: LogHost, clock: Clock) -> None:
        self._dependencies, self._lease, self._host, self._clock = dependencies, lease, host, clock
        self._records: list[Record] = []
        self._audio: list[bytes] = []
        self._n_waiting = self._n_batches = 0
        self.audio_bytes = 0  # stored
        self._is_last_audio = False
        self._n_added = self._n_stored = 0
        self._due, self._written = asyncio.Event(), asyncio.Event()
        self._is_lost = False  # the lease
        self._failing_since_s: float | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether more audio may wait to be stored."""
        return self._n_waiting < _MAX_PARTS * self._dependencies.part_bytes

    def resume(self, n_batches: int, audio_bytes: int) -> None:
        """Continue after this many batches and bytes."""
        self._n_batches, self.audio_bytes = n_batches, audio_bytes

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._run(), name="session log")
        self._writing.add_done_callback(self._host.task_ended)

    def add(self, record: Record, *, is_due: bool = False) -> None:
        """Append a record. is_due: write it now, because an event waits for it."""
        self._records.append(record)
        self._n_added += 1
        if is_due:
            self._due.set()

    def add_audio(self, data: bytes) -> None:
        """Append audio; it is stored once there is enough for a part."""
        self._audio.append(data)
        self._n_waiting += len(data)
        if self._n_waiting >= self._dependencies.part_bytes:
            self._due.set()

    def end_audio(self) -> None:
        """Store the rest of the audio, also if it is less than a part."""
        self._is_last_audio = True
        self._n_added += 1
        self._due.set()

    async def flush(self) -> None:
        """Wait until all that was added is durable, or the lease is lost."""
        wanted = self._n_added
        self._due.set()
        while self._n_stored < wanted and not self._is_lost:
            self._written.clear()
            await self._written.wait()

    async def is_owned(self) -> bool:
        """Whether no other server has taken the session, as far as the store can tell now."""
        try:
            await self._in_thread(lambda: self._dependencies.store.renew(self._lease))
        except WrongState:
            return False
        except TypelessError:
            return True  # if another one has, the next write fails
        return True

    async def audio(self, name: str) -> bytes:
        """Return a part of the stored audio. Raises NotFound if it is damaged."""
        found: list[bytes] = []
        await self._until_done(lambda: found.append(self._dependencies.store.audio(name)))
        return found[0]

    async def close(self, *, forget: bool) -> None:
        """Stop writing. forget: try to delete the session."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        if forget:
            try:
                await self._in_thread(lambda: self._dependencies.store.delete(self._lease))
            except TypelessError:
                return  # it expires

    async def _run(self) -> None:
        """Write what is due, until the session belongs to another server."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._dependencies.every_s):
                        await self._due.wait()
                except TimeoutError:
                    pass
                self._due.clear()
                await self._write()
        except WrongState as error:
            self._is_lost = True
            self._written.set()
            self._host.set_trouble(error)

    async def _write(self) -> None:
        """Write a batch; renew the lease if there is nothing to write."""
        n_added, (records, audio) = self._n_added, self._taken()
        checkpoint = self._host.checkpoint()
        if records or audio:
            number, self._n_batches = self._n_batches, self._n_batches + 1
            await self._until_done(lambda: self._append(number, records, checkpoint, audio))
            self.audio_bytes += sum(map(len, audio))
        else:
            await self._until_done(lambda: self._dependencies.store.renew(self._lease))
        self._host.stored(checkpoint.last_sequence, self.audio_bytes)
        self._n_stored = n_added
        self._written.set()

    def _taken(self) -> tuple[Sequence[Record], Sequence[bytes]]:
        """Remove and return what the next batch holds: all records, and the audio once there is enough for a part."""
        records, self._records = self._records, []
        audio: list[bytes] = []
        if self._n_waiting >= self._dependencies.part_bytes or self._is_last_audio:
            audio, self._audio, self._n_waiting = self._audio, [], 0
        return records, audio

    def _append(self, number: int, records: Sequence[Record], checkpoint: Checkpoint, audio: Sequence[bytes]) -> None:
        encoded = encode(records, self._dependencies.updates)
        batch = Batch(number, encoded, encode_checkpoint(checkpoint), b"".join(audio))
        self._dependencies.store.append(self._lease, batch)

    async def _until_done(self, write: Callable[[], None]) -> None:
        """Write or read, and retry while the store is unavailable. Raises WrongState and NotFound."""
        while True:
            try:
                await self._in_thread(write)
            except (NotFound, WrongState):
                raise
            except TypelessError as error:
                self._note_failure(error)
                if isinstance(error, RateLimited):  # the owner must free storage first: callers learn it at once
                    self._host.set_trouble(error)
                await asyncio.sleep(RETRY_S)
                continue
            self._failing_since_s = None
            self._host.set_trouble(None)
            return

    def _note_failure(self, error: TypelessError) -> None:
        """Report an error of the store that has lasted for GIVE_UP_S."""
        now_s = self._clock.now_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif now_s - self._failing_since_s > GIVE_UP_S:
            self._host.set_trouble(error)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run in a thread. Raises SourceUnavailable, also if there is no answer for long."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await loop.run_in_executor(self._dependencies.threads, work)
        except TimeoutError as error:
            message = "The store of sessions does not answer."
            raise SourceUnavailable(message, reason="STORE_UNAVAILABLE", retry_after_s=1.0) from error
