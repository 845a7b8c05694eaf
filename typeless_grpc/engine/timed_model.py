"""Measures how long a model spends in each operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from typeless_grpc.audio.formats import Audio
from typeless_grpc.clock import Clock
from typeless_grpc.engine.model import DecodingTask, Encoded, Hypothesis, Model, RawSegment, TimedWord
from typeless_grpc.engine.observer import Stage
from typeless_grpc.speech.languages import Languages


class TimedModel:
    """A `Model` that passes everything on to another, for one batch. Used by one thread."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self._model, self._clock = model, clock
        self._stages: dict[str, Stage] = {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the time of each operation so far, in the order in which they began."""
        return tuple(self._stages.values())

    @property
    def name(self) -> str:
        """See `Model`."""
        return self._model.name

    @property
    def memory_bytes(self) -> int:
        """See `Model`."""
        return self._model.memory_bytes

    @property
    def device_name(self) -> str:
        """See `Model`."""
        return self._model.device_name

    @property
    def compute_type(self) -> str:
        """See `Model`."""
        return self._model.compute_type

    @property
    def is_multilingual(self) -> bool:
        """See `Model`."""
        return self._model.is_multilingual

    @property
    def languages(self) -> Sequence[str]:
        """See `Model`."""
        return self._model.languages

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """See `Model`."""
        return self._model.n_positions(audio_s, silence_s)

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """See `Model`."""
        return self._model.n_prompt_tokens(task)

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """See `Model`."""
        with self._timing("encode"):
            return self._model.encode(audio, silence_s)

    def detect_language(self, encoded: Encoded) -> Languages:
        """See `Model`."""
        with self._timing("detect_language"):
            return self._model.detect_language(encoded)

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Model`."""
        with self._timing("decode"):
            return self._model.decode(encoded, tasks, beam_size=beam_size, max_tokens=max_tokens)

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """See `Model`."""
        with self._timing("align"):
            return self._model.align(encoded, task, tokens)

    def decode_with_fallback(
        self,
        audio: Audio,
        task: DecodingTask,
        *,
        beam_size: int,
        temperatures: Sequence[float],
        word_timestamps: bool,
        is_wanted: Callable[[], bool],
    ) -> list[RawSegment] | None:
        """See `Model`."""
        with self._timing("decode_with_fallback"):
            return self._model.decode_with_fallback(
                audio,
                task,
                beam_size=beam_size,
                temperatures=temperatures,
                word_timestamps=word_timestamps,
                is_wanted=is_wanted,
            )

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        started_s = self._clock.now_s()
        try:
            yield
        finally:
            seconds = self._clock.now_s() - started_s
            before = self._stages.get(name)
            if before is not None:
                started_s, seconds = before.started_s, before.seconds + seconds
            self._stages[name] = Stage(name, started_s, seconds)
