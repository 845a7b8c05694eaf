"""Submits the requests of one call to the scheduler.

The three decoders of this package share it: `plan_decoder.py`, `code_switching.py` and `chunk_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from typeless_grpc import account
from typeless_grpc.audio.formats import Audio
from typeless_grpc.clock import SystemClock
from typeless_grpc.engine.costs import decode_cost
from typeless_grpc.engine.decoding.inference import run
from typeless_grpc.engine.decoding.requests import DecodeResult, DetectRequest, Request, Window, batch_key
from typeless_grpc.engine.interface import DecodeOptions, Ticket
from typeless_grpc.engine.model import FULL_WINDOW_S, Model
from typeless_grpc.engine.observer import EngineObserver, NoObserver
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.planning.cuts import CutPolicy
from typeless_grpc.engine.scheduler import Scheduler, Timing, WorkItem
from typeless_grpc.engine.timed_model import TimedModel

CLOCK = SystemClock()


@dataclass(frozen=True)
class RecognizerOptions:
    """How the engine decodes.

    default_model, beam_size: for calls that set none. is_full_window: decode as faster-whisper does, 30 s at a time.
    cuts: see `CutPolicy`. max_parallel_chunks: of one call in the inference queue, so that a recording of an hour does
    not fill it.
    """

    default_model: str
    beam_size: int
    is_full_window: bool = False
    cuts: CutPolicy = field(default_factory=CutPolicy)
    max_parallel_chunks: int = 16

    def cost(self, encoded_s: float, beam_size: int = 1) -> float:
        """Return the cost of a window with so many seconds to encode; see `costs.py`."""
        return decode_cost(FULL_WINDOW_S if self.is_full_window else min(encoded_s, FULL_WINDOW_S), beam_size)


@dataclass(frozen=True)
class ModelRequest:
    """A request, and the model that runs it."""

    model: Model
    request: Request


WindowScheduler = Scheduler[ModelRequest, DecodeResult]


def run_batch(items: Sequence[WorkItem[ModelRequest, DecodeResult]]) -> Sequence[DecodeResult | Exception | None]:
    """Run a batch of the scheduler; all of it is for one model, because the model is part of the batch key."""
    model = TimedModel(items[0].work.model, CLOCK)
    try:
        return run(model, [item.work.request for item in items], [item.is_wanted for item in items])
    finally:
        stages = model.stages
        for item in items:
            item.stages = stages


@dataclass(frozen=True)
class DecodeContext:
    """What all windows of a call share.

    timings: of the windows that ran, in the order in which they ended. expected_language: of the recording, as far as
    it is known. has_hints: the caller gave a prompt or hotwords.
    """

    model: Model
    audio: Audio
    options: DecodeOptions
    ticket: Ticket
    timings: list[Timing]
    expected_language: str = ""
    has_hints: bool = False

    def window(self, chunk: Chunk) -> Window:
        """Return the window of a chunk."""
        return Window(chunk.window_audio(self.audio), chunk.window_speech())

    def in_language(self, language: str) -> DecodeContext:
        """The same with the language given."""
        return replace(self, options=replace(self.options, language=language))


class Submitter:
    """Submits requests, and records when they ran. observer: notified of chunks that are decoded again."""

    def __init__(
        self, scheduler: WindowScheduler, options: RecognizerOptions, observer: EngineObserver | None = None
    ) -> None:
        self._scheduler = scheduler
        self._options = options
        self.observer = observer or NoObserver()

    async def submit(self, context: DecodeContext, request: Request, encoded_s: float) -> DecodeResult:
        """Wait for the result of a request. encoded_s: how much audio and silence it encodes."""
        completed = await self._scheduler.submit(
            ModelRequest(context.model, request),
            key=batch_key(context.model, request),
            cost_s=self._options.cost(encoded_s, 1 if isinstance(request, DetectRequest) else request.beam_size),
            ticket=context.ticket,
            is_continuation=bool(context.timings),
        )
        context.timings.append(completed.timing)
        account.current().processing_s += completed.timing.model_s
        return completed.result
