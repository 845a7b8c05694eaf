"""A Whisper model in CTranslate2, and the computations on it.

`whisper.py` and the calibration in `tail.py` call it. CTranslate2 releases the GIL.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
from faster_whisper.tokenizer import Tokenizer

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.device import Device
from typeless_grpc.engine.interface import Task
from typeless_grpc.engine.model import NO_SPEECH_THRESHOLD, DecodingTask, TimedWord
from typeless_grpc.engine.tail import Positions
from typeless_grpc.errors import EngineFailed

# Defaults of `prepend_punctuations` and `append_punctuations` in faster_whisper.transcribe.WhisperModel.transcribe.
PREPENDED_PUNCTUATION = "\"'“¿([{-"
APPENDED_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"
# Whisper's text context (arXiv:2212.04356, section 2.3): prompt and text together. CTranslate2 writes at most half of
# it, so a prompt in the other half never shortens a text.
MAX_LENGTH = 448
MAX_PROMPT = MAX_LENGTH // 2
HOTWORD_SEPARATOR = ", "
# One frame of the log-mel spectrogram, in samples, and how many make a position of the encoder's output.
FRAME_SAMPLES = 160
FRAMES_PER_POSITION = 2


class Cancelled(Exception):
    """Ends faster-whisper's own decoding between two temperatures."""


class FasterWhisper(faster_whisper.WhisperModel):  # type: ignore[misc]
    """faster-whisper's model with four changes.

    It keeps text that it takes for silence, because our hallucination filter suppresses and reports it. It stops
    between two temperatures when the result is not wanted any more. It reads callers' text as text only. And it leaves
    half of the context to the text of the audio.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._thread_state = threading.local()
        self._plain_tokenizer = _without_special_tokens(self.hf_tokenizer)

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a caller's text as plain text, without special tokens; [] for blank text."""
        if not text.strip():
            return []
        tokens: list[int] = self._plain_tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        return tokens

    def get_prompt(
        self,
        tokenizer: Tokenizer,
        previous_tokens: Sequence[int],
        without_timestamps: bool = False,
        prefix: str | None = None,
        hotwords: str | None = None,
    ) -> list[int]:
        """Return up to MAX_PROMPT tokens: the first hotwords that fit, each whole, then the end of previous_tokens."""
        assert not prefix, "the engine passes none"
        start = [*tokenizer.sot_sequence, *([tokenizer.no_timestamps] if without_timestamps else ())]
        n_free = MAX_PROMPT - len(start) - 1
        hints = self._first_that_fit(hotwords.split(HOTWORD_SEPARATOR), n_free) if hotwords else []
        n_free -= len(hints)
        before = list(previous_tokens)[-n_free:] if n_free else []
        return [*([tokenizer.sot_prev] if hints or before else ()), *hints, *before, *start]

    def _first_that_fit(self, words: Sequence[str], n_free: int) -> list[int]:
        def of_first(n_words: int) -> list[int]:
            return self.text_tokens(HOTWORD_SEPARATOR.join(words[:n_words]))

        too_many = bisect.bisect_right(range(len(words) + 1), n_free, key=lambda n_words: len(of_first(n_words)))
        return of_first(too_many - 1)

    @contextmanager
    def cancellable(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """While this is open, decoding in this thread raises Cancelled once its result is not wanted any more."""
        self._thread_state.is_wanted = is_wanted
        try:
            yield
        finally:
            del self._thread_state.is_wanted

    def generate_with_fallback(self, encoder_output: Any, prompt: Any, tokenizer: Any, options: Any) -> Any:
        """See faster-whisper. Keeps silence, and stops between two temperatures if the result is not wanted."""
        # With this threshold, silence needs no other temperature. Where a threshold would drop text, it is None.
        temperatures = self._while_wanted(options.temperatures)
        ours = replace(options, no_speech_threshold=NO_SPEECH_THRESHOLD, temperatures=temperatures)
        return super().generate_with_fallback(encoder_output, prompt, tokenizer, ours)

    def _while_wanted(self, temperatures: Sequence[float]) -> Iterator[float]:
        for temperature in temperatures:
            if not self._thread_state.is_wanted():
                raise Cancelled
            yield temperature


class Runtime:
    """The computations on one model; also the `Encoder` of calibration."""

    def __init__(self, name: str, directory: Path, device: Device, *, n_threads: int, n_workers: int) -> None:
        """Raises EngineFailed if the directory holds no model that can be loaded."""
        try:
            self.whisper = FasterWhisper(
                str(directory),
                device=device.name,
                compute_type=device.compute_type,
                cpu_threads=n_threads,
                num_workers=n_workers,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(f"Model '{name}' cannot be loaded.", reason="MODEL_LOAD_FAILED") from error
        self.model = self.whisper.model
        self.is_multilingual = bool(self.model.is_multilingual)
        # The caches belong to this model and hold no reference to it, so it is freed when its last call is done.
        whisper, is_multilingual = self.whisper, self.is_multilingual

        @functools.lru_cache(maxsize=256)
        def tokenizer_of(language: str, task: Task) -> Tokenizer:
            return Tokenizer(whisper.hf_tokenizer, is_multilingual, task=task.value, language=language)

        @functools.lru_cache(maxsize=256)
        def prompt_of(task: DecodingTask) -> list[int]:
            tokenizer, previous = tokenizer_of(task.language, task.task), whisper.text_tokens(task.prompt)
            return whisper.get_prompt(tokenizer, previous, without_timestamps=True, hotwords=hotword_text(task))

        self.tokenizer_of, self.prompt_of = tokenizer_of, prompt_of

    def encode_positions(self, audio: Audio, n_positions: int) -> Positions:
        """Return encoder output, shape (n_positions, d_model), for audio padded with zeros, as Whisper pads it."""
        n_frames = n_positions * FRAMES_PER_POSITION
        padded = np.zeros(n_frames * FRAME_SAMPLES, np.float32)
        n_samples = min(len(audio), len(padded))
        padded[:n_samples] = audio[:n_samples]
        frames = self.whisper.feature_extractor(padded)[:, :n_frames]
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(frames[None]))
        # One by one: on a CPU a batch of encodes was measured to take longer than the same encodes in turn.
        positions: Positions = np.array(self.model.encode(features, to_cpu=True))[0]
        return positions

    def generate(
        self, positions: Sequence[Positions], prompts: Sequence[list[int]], *, beam_size: int, max_length: int
    ) -> list[Any]:
        """Search for texts with CTranslate2, over encoder outputs of one length; return its results."""
        results: list[Any] = self.model.generate(
            ctranslate2.StorageView.from_array(np.stack(positions)),
            list(prompts),
            beam_size=beam_size,
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return results

    def detect_language(self, positions: Positions) -> list[tuple[str, float]]:
        """Return every language and its probability, the likeliest first."""
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(positions[None]))
        return [(token[2:-2], float(probability)) for token, probability in self.model.detect_language(view)[0]]

    def align(
        self, positions: Positions, tokenizer: Tokenizer, tokens: Sequence[int], audio_s: float
    ) -> list[TimedWord]:
        """Return words and their times, as faster-whisper computes them, from the frames of the audio only."""
        part: dict[str, Any] = {"seek": 0, "start": 0.0, "end": audio_s, "tokens": list(tokens)}
        self.whisper.add_word_timestamps(
            [[part]],
            tokenizer,
            ctranslate2.StorageView.from_array(np.ascontiguousarray(positions[None])),
            # Fewer than two frames are less than one step of the encoder, which faster-whisper cannot align.
            max(2, math.ceil(audio_s * self.whisper.frames_per_second)),
            PREPENDED_PUNCTUATION,
            APPENDED_PUNCTUATION,
            0.0,
        )
        return [
            TimedWord(word["word"], float(word["start"]), float(word["end"]), float(word["probability"]))
            for word in part["words"]
        ]

    # ---- for calibration ------------------------------------------------------------------------------------

    def decode_greedily(self, positions: Positions, language: str) -> list[int]:
        """Return the tokens of the greedy text of encoder output."""
        tokenizer, prompt = self._prompt_in(language)
        (result,) = self.generate([positions], [prompt], beam_size=1, max_length=MAX_LENGTH // 2)
        return [token for token in result.sequences_ids[0] if token < tokenizer.eot]

    def log_probability(self, positions: Positions, language: str, tokens: Sequence[int]) -> float:
        """Return the mean log probability of a text's tokens."""
        tokenizer, _ = self._prompt_in(language)
        (result,) = self.model.align(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(positions[None])),
            list(tokenizer.sot_sequence),
            [list(tokens)],
            [len(positions) * FRAMES_PER_POSITION],
        )
        return float(np.mean(np.log(np.maximum(result.text_token_probs, 1e-9))))

    def _prompt_in(self, language: str) -> tuple[Tokenizer, list[int]]:
        task = DecodingTask(language if self.is_multilingual else "en")
        return self.tokenizer_of(task.language, task.task), self.prompt_of(task)


def hotword_text(task: DecodingTask) -> str | None:
    """Return a task's hotwords as `FasterWhisper.get_prompt` takes them."""
    return HOTWORD_SEPARATOR.join(task.hotwords) or None


def _without_special_tokens(tokenizer: Any) -> Any:
    """Return a copy of the tokenizer that reads "<|translate|>" and "<|0.00|>" as text.

    The tokenizer's own option for this, `encode_special_tokens`, does not cover timestamps.
    """
    description = json.loads(tokenizer.to_str())
    return tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
