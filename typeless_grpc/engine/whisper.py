"""Whisper by CTranslate2: the `Model` that the engine uses.

It encodes the speech only and appends calibrated silence (`tail.py`); `runtime.py` does the computing.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine import tail, tail_files
from typeless_grpc.engine.device import Device, footprint
from typeless_grpc.engine.model import FULL_POSITIONS, DecodingTask, Encoded, Hypothesis, RawSegment, TimedWord
from typeless_grpc.engine.runtime import MAX_LENGTH, Cancelled, Runtime, hotword_text
from typeless_grpc.engine.tail import Tail
from typeless_grpc.speech.languages import Languages
from typeless_grpc.speech.transcript import Segment, Word

log = logging.getLogger(__name__)


def is_calibrated(directory: Path, device: Device, cache_dir: Path | None) -> bool:
    """Whether the silence of the model in directory is stored for this device, so that loading does not measure it."""
    return tail_files.is_stored(*_tail_files(directory, device, cache_dir))


def _tail_files(directory: Path, device: Device, cache_dir: Path | None) -> tuple[list[Path], str]:
    """Return the directories that may hold a model's silence, and the fingerprint that it must have."""
    fingerprint = tail_files.fingerprint_of(directory / "model.bin", device.name, device.compute_type)
    return [directory, *([cache_dir / "silence" / fingerprint[:16]] if cache_dir is not None else [])], fingerprint


class WhisperModel:
    """One loaded model; see `Model` in engine/model.py for its methods."""

    def __init__(
        self,
        name: str,
        directory: Path,
        device: Device,
        *,
        n_threads: int,
        n_workers: int = 1,
        is_calibrated: bool = True,
        cache_dir: Path | None = None,
    ) -> None:
        """Load the model in directory, and calibrate its silence the first time; takes seconds. Raises EngineFailed.

        n_threads: for one inference on the CPU. n_workers: inferences in parallel. is_calibrated: encode speech only,
        followed by calibrated silence; else all of Whisper's 30 s. cache_dir: where the silence is stored if directory
        is not writable.
        """
        self.name = name
        self.device_name = device.name
        self.compute_type = device.compute_type
        self.runtime = Runtime(name, directory, device, n_threads=n_threads, n_workers=n_workers)
        self.is_multilingual = self.runtime.is_multilingual
        self._tail = self._load_tail(directory, device, cache_dir, n_workers) if is_calibrated else None
        silence_bytes = self._tail.silence.nbytes if self._tail is not None else 0
        self.memory_bytes = footprint(directory, device).loaded + silence_bytes

    def _load_tail(self, directory: Path, device: Device, cache_dir: Path | None, n_workers: int) -> Tail | None:
        def calibrate() -> Tail | None:
            log.info("model %s: calibrating its silence, once for each machine", self.name)
            started_s = time.monotonic()
            calibrated = tail.calibrate(self.runtime, tail.calibration_samples(), n_workers=n_workers)
            log.info("model %s: calibrated in %.1f s", self.name, time.monotonic() - started_s)
            return calibrated.rounded() if calibrated is not None else None

        return tail_files.load_or_calibrate(*_tail_files(directory, device, cache_dir), calibrate)

    @functools.cached_property
    def languages(self) -> Sequence[str]:
        """Whisper's codes of the languages it knows; some models lack tokens for the latest ones."""
        whisper = self.runtime.whisper
        known = whisper.hf_tokenizer.token_to_id
        return [code for code in whisper.supported_languages if known(f"<|{code}|>") is not None]

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """See `Model`."""
        return FULL_POSITIONS if self._tail is None else tail.padded_length(tail.n_encoded(audio_s, silence_s))

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """See `Model`."""
        return len(self.runtime.prompt_of(task))

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """See `Model`."""
        audio_s = len(audio) / SAMPLE_RATE_HZ
        if self._tail is None:
            return Encoded(self.runtime.encode_positions(audio, FULL_POSITIONS), audio_s)
        positions = self.runtime.encode_positions(audio, tail.n_encoded(audio_s, silence_s))
        return Encoded(self._tail.append_to(positions), audio_s)

    def detect_language(self, encoded: Encoded) -> Languages:
        """See `Model`."""
        return self.runtime.detect_language(encoded.positions) if self.is_multilingual else [("en", 1.0)]

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Model`."""
        prompts = [self.runtime.prompt_of(task) for task in tasks]
        # CTranslate2 generates at most half of its max_length, and no more than the prompt leaves.
        max_length = min(MAX_LENGTH, 2 * max(max_tokens, len(prompts[0]) + 8))
        limit = min(max_tokens, max_length // 2, max_length - len(prompts[0]))
        results = self.runtime.generate(
            [one.positions for one in encoded], prompts, beam_size=beam_size, max_length=max_length
        )
        return [self._hypothesis(task, result, limit) for task, result in zip(tasks, results, strict=True)]

    def _hypothesis(self, task: DecodingTask, result: Any, limit: int) -> Hypothesis:
        tokens, tokenizer = result.sequences_ids[0], self.runtime.tokenizer_of(task.language, task.task)
        text_tokens = [token for token in tokens if token < tokenizer.eot]
        return Hypothesis(
            text=tokenizer.decode(text_tokens).strip(),
            tokens=tuple(text_tokens),
            # CTranslate2 returns the mean over the tokens without the end of text; Whisper counts the end.
            avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_probability=float(result.no_speech_prob),
            is_cut_off=len(tokens) >= limit,
        )

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """See `Model`."""
        tokenizer = self.runtime.tokenizer_of(task.language, task.task)
        return self.runtime.align(encoded.positions, tokenizer, tokens, encoded.audio_s)

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
        whisper = self.runtime.whisper
        with whisper.cancellable(is_wanted):
            try:
                segments, _ = whisper.transcribe(
                    audio,
                    language=task.language,
                    task=task.task.value,
                    beam_size=beam_size,
                    temperature=list(temperatures),
                    initial_prompt=whisper.text_tokens(task.prompt) or None,
                    hotwords=hotword_text(task),
                    word_timestamps=word_timestamps,
                    no_speech_threshold=None,  # our filter suppresses silence: see FasterWhisper
                )
                audio_s = len(audio) / SAMPLE_RATE_HZ
                return [_raw_segment(segment, task.language, audio_s) for segment in segments]
            except Cancelled:
                return None


def _raw_segment(segment: Any, language: str, audio_s: float) -> RawSegment:
    """Convert faster-whisper's segment."""
    words = tuple(
        Word(
            word.word.strip(),
            min(float(word.start), audio_s),
            min(float(word.end), audio_s),
            min(1.0, max(0.0, float(word.probability))),
        )
        for word in segment.words or ()
        if word.word.strip()
    )
    return RawSegment(
        Segment(
            start_s=min(float(segment.start), audio_s),
            end_s=min(float(segment.end), audio_s),
            text=segment.text.strip(),
            language=language,
            confidence=min(1.0, math.exp(segment.avg_logprob)),
            no_speech_probability=float(segment.no_speech_prob),
            words=words,
        ),
        float(segment.avg_logprob),
        float(segment.compression_ratio),
    )
