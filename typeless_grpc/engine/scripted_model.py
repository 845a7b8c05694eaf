"""A fake `Model` without weights, for tests of the engine. The test supplies its texts and languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.decoding.quality import compression_ratio
from typeless_grpc.engine.model import (
    DecodingTask,
    Encoded,
    Hypothesis,
    RawSegment,
    TimedWord,
)
from typeless_grpc.speech.languages import Languages
from typeless_grpc.speech.transcript import Segment


@dataclass(frozen=True, eq=False)
class RecordedDecode:
    """The arguments of one search. temperatures: empty except in `decode_with_fallback`, which has no max_tokens."""

    audio: Audio
    silence_s: float
    task: DecodingTask
    beam_size: int
    word_timestamps: bool = False
    temperatures: tuple[float, ...] = ()
    max_tokens: int = 0

    @property
    def audio_s(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ


ModelScript = Callable[[RecordedDecode], str | Hypothesis | Exception]


@dataclass(frozen=True, eq=False)
class _ScriptedEncoded(Encoded):
    audio: Audio = field(default_factory=lambda: np.zeros(0, np.float32))
    silence_s: float = 0.0


class ScriptedModel:
    """Returns the text that `script` returns, and the languages that `detects` returns.

    batches: all searches, batch by batch. n_encoded: how often audio was encoded. aligns: the words of a text with
    their times; equal shares of the audio unless set. on_decode: called before each batch.
    """

    name = "scripted"
    memory_bytes = 1
    device_name = "cpu"
    compute_type = "int8"

    def __init__(self, script: ModelScript = lambda decode: "hello") -> None:
        self.script = script
        self.detects: Callable[[Audio], Languages] = lambda audio: [("de", 0.8), ("nl", 0.2)]
        self.aligns: Callable[[str, float], list[TimedWord]] = evenly
        self.on_decode: Callable[[], None] = lambda: None
        self.is_multilingual = True
        self.languages: Sequence[str] = ("en", "de", "es", "zh")
        self.batches: list[list[RecordedDecode]] = []
        self.n_encoded = 0
        self._vocabulary: dict[str, int] = {}

    @property
    def decodes(self) -> list[RecordedDecode]:
        """All searches, in order."""
        return [decode for batch in self.batches for decode in batch]

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """See `Model`; here the same for all audio."""
        return 600

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """See `Model`."""
        return 4

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """See `Model`."""
        self.n_encoded += 1
        positions = np.zeros((1, 1), np.float32)
        return _ScriptedEncoded(positions, len(audio) / SAMPLE_RATE_HZ, audio=audio, silence_s=silence_s)

    def detect_language(self, encoded: Encoded) -> Languages:
        """See `Model`."""
        assert isinstance(encoded, _ScriptedEncoded)
        return self.detects(encoded.audio)

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Model`."""
        batch = []
        for one, task in zip(encoded, tasks, strict=True):
            assert isinstance(one, _ScriptedEncoded)
            batch.append(RecordedDecode(one.audio, one.silence_s, task, beam_size, max_tokens=max_tokens))
        self.batches.append(batch)
        self.on_decode()
        return [self._hypothesis(decode) for decode in batch]

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """See `Model`."""
        words = list(self._vocabulary)
        return self.aligns(" ".join(words[token] for token in tokens), encoded.audio_s)

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
        if not is_wanted():
            return None
        decode = RecordedDecode(audio, 0.0, task, beam_size, word_timestamps, tuple(temperatures))
        self.batches.append([decode])
        self.on_decode()
        hypothesis = self._hypothesis(decode)
        segment = Segment(
            start_s=0.0,
            end_s=decode.audio_s,
            text=hypothesis.text,
            language=task.language,
            confidence=hypothesis.confidence,
            no_speech_probability=hypothesis.no_speech_probability,
        )
        return [RawSegment(segment, hypothesis.avg_logprob, compression_ratio(hypothesis.text))]

    def _hypothesis(self, decode: RecordedDecode) -> Hypothesis:
        answer = self.script(decode)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            answer = hypothesis_of(answer)
        tokens = (self._vocabulary.setdefault(word, len(self._vocabulary)) for word in answer.text.split())
        return Hypothesis(
            answer.text, tuple(tokens), answer.avg_logprob, answer.no_speech_probability, answer.is_cut_off
        )


def hypothesis_of(text: str, *, avg_logprob: float = -0.2, no_speech_probability: float = 0.1) -> Hypothesis:
    """Return a hypothesis for `ModelScript`; the model fills in its tokens."""
    return Hypothesis(text, (), avg_logprob, no_speech_probability)


def evenly(text: str, audio_s: float) -> list[TimedWord]:
    """Return the words of a text with equal shares of the audio."""
    words = text.split()
    share_s = audio_s / max(1, len(words))
    return [TimedWord(f" {word}", i * share_s, (i + 1) * share_s, 0.9) for i, word in enumerate(words)]
