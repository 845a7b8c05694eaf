"""A stream that survives its server: it stores what another server needs to continue it.

It stores the audio as it was sent, and every input of the session. Another server gives these inputs to a new session,
which makes the same decisions and has the same finals. It decodes the audio to samples again, but detects and
recognizes nothing up to the end of the inputs. Then it starts the decodes that were running, and continues.

- Interims and progress (`events.PASSING`) are not stored. Any other event is withheld until it is durable, and later
  events wait behind it, so that no server contradicts another.
- Audio is acknowledged once it is stored, in parts. The caller sends the rest again.
- Controls and updates before the stored position are ignored when they come again. At that position they apply again,
  which changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from typeless_grpc.audio.formats import Audio
from typeless_grpc.audio.live import LOST_AT_THE_END, LiveReader
from typeless_grpc.audio.vad import DetectorState
from typeless_grpc.clock import ends_within
from typeless_grpc.errors import InvalidInput, TypelessError, WrongState
from typeless_grpc.streaming import events
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.driver import Stream
from typeless_grpc.streaming.durable_inbox import DurableInbox
from typeless_grpc.streaming.durable_log import DurableDependencies, DurableLog
from typeless_grpc.streaming.durable_records import Checkpoint, Numbered, OwnWarning, Record, decode, decode_checkpoint
from typeless_grpc.streaming.durable_replay import Replay
from typeless_grpc.streaming.durable_store import Lease, StoredSession
from typeless_grpc.streaming.effects import Decode, Emit
from typeless_grpc.streaming.events import PASSING
from typeless_grpc.streaming.inputs import End, Frames, Input
from typeless_grpc.streaming.release import FinalDecoded
from typeless_grpc.streaming.requests import Control, Request, Update
from typeless_grpc.streaming.session import State

_OVER = (State.ENDING, State.DONE)
_REPLAYED_AT_ONCE = 100  # records, a few milliseconds
# Interims and progress are not stored, so only the caller knows how many came after the last write.
MAX_UNSTORED_EVENTS = 100_000


class DurableStream(Stream):
    """A stream with a log in the store. Call `start` or `restore` before a call uses it."""

    def __init__(
        self,
        dependencies: Dependencies,
        reader: LiveReader,
        options: StreamOptions,
        durable: DurableDependencies,
        lease: Lease,
    ) -> None:
        self._durable = durable
        self._log = DurableLog(durable, lease, self, dependencies.clock)
        self._is_ready = asyncio.Event()
        self._replay = Replay()
        self._detected = (0, 0, DetectorState())  # bytes, samples and state of the detector, of the last frames
        self._n_decoded = 0  # samples that the reader returned
        super().__init__(dependencies, reader, options)
        self._inbox = self._durable_inbox = DurableInbox(self._held, options.max_waiting_bytes, self._log)
        self._n_repeated = 0  # bytes that the current call will send again although this server has them
        self._is_paused = False  # takes no more requests
        self._leaving: tuple[TypelessError, float] | None = None  # as `hand_over` was given

    def start(self) -> None:
        """Begin a new session."""
        self._log.start()
        self._is_ready.set()

    async def restore(self, stored: StoredSession, after_sequence: int) -> None:
        """Continue a session of another server.

        after_sequence: sequence of the last event that the caller has. Raises InvalidInput if there is no such event.
        """
        loop = asyncio.get_running_loop()
        checkpoint = decode_checkpoint(stored.state) if stored.state else Checkpoint()
        replay = self._replay = Replay(stored.audio, stored.audio_bytes)
        if not 0 <= after_sequence <= checkpoint.last_sequence + MAX_UNSTORED_EVENTS:
            raise InvalidInput("config.resume_after_sequence", f"the session is at event {checkpoint.last_sequence}")
        for data in stored.records:
            records = await loop.run_in_executor(self._durable.threads, self._decoded_records, data)
            for start in range(0, len(records), _REPLAYED_AT_ONCE):
                for record in records[start : start + _REPLAYED_AT_ONCE]:
                    self._replay_record(record)
                await asyncio.sleep(0)
        last_sequence = checkpoint.last_sequence
        if replay.completed_sequence is not None:
            replay.has_completed = replay.completed_sequence <= after_sequence
            last_sequence = replay.completed_sequence - (not replay.has_completed)
        self.journal.restore(replay.entries, max(last_sequence, after_sequence))
        if checkpoint.detector is not None:
            self._detector.restore(checkpoint.detector)
        self._detected = (checkpoint.n_bytes, checkpoint.received, self._detector.state)
        replay.received = checkpoint.received
        self._samples.begin_at(self._session.needed_from)
        self.meter.resumed(checkpoint.received, charged_s=checkpoint.charged_s, elapsed_s=checkpoint.elapsed_s)
        self._progress.fraction = checkpoint.fraction
        if checkpoint.end_reason:
            self.end_reason = events.EndReason(checkpoint.end_reason)
        self._log.resume(stored.n_batches, stored.audio_bytes)
        self._durable_inbox.resume(stored.audio_bytes, ignored_before=checkpoint.n_bytes)
        self.start()

    @property
    def is_acknowledged(self) -> bool:
        """See `Stream`."""
        return self._durable_inbox.n_put == self.acknowledged_bytes

    def attach(self) -> None:
        """See `Stream`.

        The call sends all unacknowledged audio, including audio that this server has but has not stored.
        """
        self._n_repeated = self._durable_inbox.n_put - self.acknowledged_bytes
        super().attach()

    async def put(self, request: Request, *, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """See `Stream`. Audio is acknowledged once it is stored. Audio that is sent again is ignored."""
        if self._n_repeated and still_wanted() and request is not Control.END:
            if not isinstance(request, bytes):
                return
            n_repeated = min(self._n_repeated, len(request))
            self._n_repeated -= n_repeated
            request = request[n_repeated:]
            if not request:
                return
        await super().put(request, still_wanted=still_wanted)

    async def is_owned(self) -> bool:
        """Whether this server still has the session's lease."""
        return not isinstance(self.trouble, WrongState) and await self._log.is_owned()

    async def hand_over(self, error: TypelessError, within_s: float) -> None:
        """Stop, and store what another server needs to continue at once. A call gets error after its last event.

        While a call has the stream, the server first waits for a pause and for the finals before it, at most within_s.
        Then it waits as long again for the store. The caller still has what is not stored by then.
        """
        if self._is_attached:
            await ends_within(self._paused(), within_s)
        self._is_paused = True
        if self._work.done():
            await ends_within(self._log.flush(), within_s)
        else:
            self._leaving = (error, within_s)
            self._work.cancel()
            await asyncio.wait([self._work])

    async def close(self, *, forget: bool = False) -> None:
        """See `Stream`."""
        await super().close(forget=forget)
        await self._log.close(forget=forget)

    def emit(self, event: events.Event, cursors: events.Cursors | None = None) -> None:
        """See `Stream`. Events other than `PASSING` are withheld until they are durable, and later ones behind them."""
        if self.journal.is_closed:
            return
        super().emit(event, cursors)
        if isinstance(event, (*PASSING, events.Started)):
            return
        self.journal.hold()
        sequence = self.journal.last_sequence
        if cursors is None and isinstance(event, events.Warned):
            self._log.add(OwnWarning(sequence, event.error), is_due=True)
        else:
            self._log.add(Numbered(sequence), is_due=True)

    # ---- for the log ----------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """See `LogHost`."""
        n_bytes, received, detector = self._detected
        return Checkpoint(
            n_bytes=n_bytes,
            received=received,
            detector=detector,
            fraction=self._progress.fraction,
            charged_s=self.meter.charged_s,
            end_reason=self.end_reason.value if self.end_reason and self._session.state in _OVER else "",
            elapsed_s=self.meter.elapsed_s,
            last_sequence=self.journal.last_sequence,
        )

    def stored(self, last_sequence: int, audio_bytes: int) -> None:
        """See `LogHost`."""
        self._inbox.acknowledged_bytes = audio_bytes
        self.journal.release(last_sequence)
        self._changed.set()

    def set_trouble(self, error: TypelessError | None) -> None:
        """See `LogHost`."""
        self.trouble = error
        if isinstance(error, WrongState):
            self.journal.close(error, at_once=True)
            self._work.cancel()

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """See `Stream`. Without its log, the stream cannot go on."""
        super().task_ended(task)
        if self._crash is not None:
            self.journal.close(self._crash, at_once=True)

    # ---- the loop -------------------------------------------------------------------------------------------

    def _apply(self, input: Input) -> None:
        if isinstance(input, Frames):
            self._detected = (self._durable_inbox.n_begun, input.received, self._detector.state)
        self._log.add(input)
        super()._apply(input)
        if isinstance(input, End):
            self._log.end_audio()

    def _has_room(self) -> bool:
        return super()._has_room() and self._log.has_room and not self._is_paused

    async def _stop_decodes(self) -> None:
        await super()._stop_decodes()
        if self._leaving is not None:
            error, within_s = self._leaving
            self._log.end_audio()
            is_stored = await ends_within(self._log.flush(), within_s)
            self.journal.close(error, at_once=not is_stored)

    async def _paused(self) -> None:
        """Wait for a pause of the speaker, take no more from then on, and wait for the finals before it."""
        while self._session.is_speaking and self._is_attached and not self.journal.is_closed:
            await self._next_change()
        self._is_paused = True
        while self._finals and self._is_attached and not self.journal.is_closed:
            await self._next_change()

    async def _next_change(self) -> None:
        """Wait until the session or the journal has changed."""
        self._changed.clear()
        await self._changed.wait()

    async def _take_requests(self) -> None:
        await self._is_ready.wait()
        await self._decode_again()
        if self._session.state not in _OVER:
            await super()._take_requests()

    async def _finish_audio(self) -> None:
        if not self._replay.is_over:
            raise InvalidInput(
                "audio", f"must be sent again from byte {self.acknowledged_bytes} on", reason="STREAM_ORDER"
            )
        if self._session.state not in _OVER:
            await super()._finish_audio()

    async def _complete(self, completed: Emit) -> None:
        await self._log.flush()  # so that all audio is acknowledged
        if not self._replay.has_completed:
            await super()._complete(completed)

    # ---- resuming -------------------------------------------------------------------------------------------

    async def _decode_again(self) -> None:
        """Decode the stored audio to samples again, up to its end."""
        await self._start_pending_decodes()
        for name in self._replay.audio:
            data = await self._log.audio(name)
            self._durable_inbox.n_begun += len(data)
            async for block in self._reader.feed(data):
                await self._take_audio(block)
        if self._session.state in _OVER:
            try:
                async for block in self._reader.finish():
                    await self._take_audio(block)
            except InvalidInput as error:
                if error.reason not in LOST_AT_THE_END:  # of these the caller was warned
                    raise

    async def _take_audio(self, block: Audio) -> None:
        """See `Stream`. Samples that the replayed inputs cover are only kept, as far as they are needed."""
        n_missing = self._replay.received - self._n_decoded
        if n_missing > 0:
            known, block = block[:n_missing], block[n_missing:]
            wanted = known[max(0, self._samples.end - self._n_decoded) :]
            self._n_decoded += len(known)
            if len(wanted):
                await self._samples.append(wanted)
            await self._start_pending_decodes()
        if len(block) or not n_missing:
            await super()._take_audio(block)

    async def _start_pending_decodes(self) -> None:
        """Start the decodes that were running, once their audio is decoded to samples."""
        replay = self._replay
        if replay.is_over or self._n_decoded < replay.received:
            return
        replay.is_over = True
        for utterance in replay.pending.values():
            self._perform(Decode(utterance))
        for due in replay.due:
            self._perform(due)
        await self._decide_endpoints()

    def _decoded_records(self, data: bytes) -> list[Record]:
        return list(decode(data, self._durable.updates))

    def _replay_record(self, record: Record) -> None:
        """Apply a stored record to the new session."""
        replay = self._replay
        match record:
            case Numbered(sequence):
                if replay.emitted:
                    replay.add(sequence, replay.emitted.popleft())
                else:
                    replay.completed_sequence = sequence
                return
            case OwnWarning(sequence, error):
                replay.add(sequence, Emit(events.Warned(error), self._session.cursors))
                return
            case FinalDecoded(utterance_id, recognition):
                self._decoder.learn(replay.pending[utterance_id], recognition)
            case Update():
                self._decoder.reconfigure(record.options)
        replay.take(record, self._session.apply(record))
        self._completed = replay.completed
