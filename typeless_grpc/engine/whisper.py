"""Whisper by CTranslate2: with `engine/hub.py`, the only module that knows faster_whisper and ctranslate2.

`Runtime` holds a model's weights and computes; `WhisperModel` puts the calibrated silence behind what it encodes, and
is the `Model` that the engine sees. CTranslate2 releases the GIL.
"""

from __future__ import annotations

import bisect
import functools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
from faster_whisper.tokenizer import Tokenizer

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine import tail
from typeless_grpc.engine.decoding.sentences import TimedWord
from typeless_grpc.engine.interface import Task
from typeless_grpc.engine.model import (
    FULL_POSITIONS,
    NO_SPEECH_THRESHOLD,
    DecodingTask,
    Encoded,
    Hypothesis,
    RawSegment,
)
from typeless_grpc.engine.pool import Footprint
from typeless_grpc.engine.tail import Positions, Tail
from typeless_grpc.errors import EngineFailed, InvalidInput
from typeless_grpc.speech.languages import Languages
from typeless_grpc.speech.transcript import Segment, Word

log = logging.getLogger(__name__)

# Bytes of one weight in memory, by CTranslate2's compute type; 2 for those not named.
BYTES_PER_WEIGHT = {"int8": 1, "int8_float32": 1, "int8_float16": 1, "int8_bfloat16": 1, "float32": 4}
# Defaults of `prepend_punctuations` and `append_punctuations`.
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


@dataclass(frozen=True)
class Device:
    """Where a model runs: "cpu" or "cuda", and CTranslate2's compute type."""

    name: str
    compute_type: str


def choose_device(device: str, compute_type: str) -> Device:
    """Fill in "auto": a GPU with float16 where there is one, else the CPU with int8.

    Raises InvalidInput where the machine has no such device, or the device no such compute type.
    """
    has_gpu = ctranslate2.get_cuda_device_count() > 0
    name = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    if name == "cuda" and not has_gpu:
        raise InvalidInput("device", "CTranslate2 sees no CUDA device on this machine", reason="CONFIG_INVALID")
    supported = ctranslate2.get_supported_compute_types(name)
    if compute_type == "auto":
        preferred = ("float16", "int8_float16", "float32") if name == "cuda" else ("int8", "float32")
        return Device(name, next(kind for kind in preferred if kind in supported))
    if compute_type not in supported:
        known = ", ".join(sorted(supported))
        raise InvalidInput("compute_type", f"'{compute_type}' is none of {known} ({name})", reason="CONFIG_INVALID")
    return Device(name, compute_type)


def footprint(directory: Path, device: Device) -> Footprint:
    """The memory that the model in a directory takes."""
    # Converted models are stored as float16; nothing tells what CTranslate2 makes of it in memory. It reads all of the
    # file before it converts the weights.
    try:
        stored_bytes = (directory / "model.bin").stat().st_size
    except OSError:  # it cannot be loaded either, which says why
        return Footprint()
    loaded = round(stored_bytes * BYTES_PER_WEIGHT.get(device.compute_type, 2) / 2)
    return Footprint(loaded, loaded + stored_bytes if device.name == "cpu" else stored_bytes)


class _CallerGone(Exception):
    """Ends faster-whisper's own decoding between two of its temperatures."""


class _FasterWhisper(faster_whisper.WhisperModel):  # type: ignore[misc]
    """faster-whisper's own, but text that it takes for silence is not dropped: our filter does that, and reports it.

    It also stops between two temperatures once nobody waits for the result, reads callers' text as text only, and
    leaves half of the context to the text of the audio.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._of_thread = threading.local()
        self._of_text = _without_special_tokens(self.hf_tokenizer)

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of a caller's text, none of which is special to Whisper, whatever the text is; [] for none."""
        tokens: list[int] = (
            self._of_text.encode(" " + text.strip(), add_special_tokens=False).ids if text.strip() else []
        )
        return tokens

    def get_prompt(
        self,
        tokenizer: Tokenizer,
        previous_tokens: Sequence[int],
        without_timestamps: bool = False,
        prefix: str | None = None,
        hotwords: str | None = None,
    ) -> list[int]:
        """At most MAX_PROMPT tokens: the first hotwords that fit, as a whole each, then the end of previous_tokens."""
        assert not prefix, "nobody asks for it"
        start = [*tokenizer.sot_sequence, *([tokenizer.no_timestamps] if without_timestamps else ())]
        n_room = MAX_PROMPT - len(start) - 1
        hints = self._first_that_fit(hotwords.split(HOTWORD_SEPARATOR), n_room) if hotwords else []
        n_room -= len(hints)
        before = list(previous_tokens)[-n_room:] if n_room else []
        return [*([tokenizer.sot_prev] if hints or before else ()), *hints, *before, *start]

    def _first_that_fit(self, words: Sequence[str], n_room: int) -> list[int]:
        def of_first(n_words: int) -> list[int]:
            return self.text_tokens(HOTWORD_SEPARATOR.join(words[:n_words]))

        too_many = bisect.bisect_right(range(len(words) + 1), n_room, key=lambda n_words: len(of_first(n_words)))
        return of_first(too_many - 1)

    @contextmanager
    def decoding(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """What this thread decodes meanwhile is given up once it is not wanted."""
        self._of_thread.is_wanted = is_wanted
        try:
            yield
        finally:
            del self._of_thread.is_wanted

    def generate_with_fallback(self, encoder_output: Any, prompt: Any, tokenizer: Any, options: Any) -> Any:
        # Here the threshold only says that silence needs no other temperature; where it drops, it is given as None.
        temperatures = self._while_wanted(options.temperatures)
        ours = replace(options, no_speech_threshold=NO_SPEECH_THRESHOLD, temperatures=temperatures)
        return super().generate_with_fallback(encoder_output, prompt, tokenizer, ours)

    def _while_wanted(self, temperatures: Sequence[float]) -> Iterator[float]:
        for temperature in temperatures:
            if not self._of_thread.is_wanted():
                raise _CallerGone
            yield temperature


class Runtime:
    """A model's weights, and what CTranslate2 computes with them; also the `Encoder` that calibration asks."""

    def __init__(self, name: str, directory: Path, device: Device, *, n_threads: int, n_workers: int) -> None:
        """Raises EngineFailed where the directory holds no model that can be loaded."""
        try:
            self.whisper = _FasterWhisper(
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
        # Of this model, and without a reference to it: nothing outlives it, and it is freed when the last call is done.
        whisper, is_multilingual = self.whisper, self.is_multilingual

        @functools.lru_cache(maxsize=256)
        def tokenizer_of(language: str, task: Task) -> Tokenizer:
            return Tokenizer(whisper.hf_tokenizer, is_multilingual, task=task.value, language=language)

        @functools.lru_cache(maxsize=256)
        def prompt_of(task: DecodingTask) -> list[int]:
            tokenizer, previous = tokenizer_of(task.language, task.task), whisper.text_tokens(task.prompt)
            return whisper.get_prompt(tokenizer, previous, without_timestamps=True, hotwords=_hotwords(task))

        self.tokenizer_of, self.prompt_of = tokenizer_of, prompt_of

    def encode_positions(self, audio: Audio, n_positions: int) -> Positions:
        """Encoder output, shape (n_positions, d_model), for audio padded with zeros, as Whisper pads it."""
        n_frames = n_positions * FRAMES_PER_POSITION
        padded = np.zeros(n_frames * FRAME_SAMPLES, np.float32)
        n_samples = min(len(audio), len(padded))
        padded[:n_samples] = audio[:n_samples]
        frames = self.whisper.feature_extractor(padded)[:, :n_frames]
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(frames[None]))
        # One by one, because on a CPU a batch of encodes takes longer than the same encodes in turn (measured: caches).
        positions: Positions = np.array(self.model.encode(features, to_cpu=True))[0]
        return positions

    def generate(
        self, positions: Sequence[Positions], prompts: Sequence[list[int]], *, beam_size: int, max_length: int
    ) -> list[Any]:
        """CTranslate2's search over encoder outputs of one length."""
        found: list[Any] = self.model.generate(
            ctranslate2.StorageView.from_array(np.stack(positions)),
            list(prompts),
            beam_size=beam_size,
            max_length=max_length,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return found

    def align(
        self, positions: Positions, tokenizer: Tokenizer, tokens: Sequence[int], audio_s: float
    ) -> list[TimedWord]:
        """Words and their times, as faster-whisper finds them; it looks at the frames of the audio only."""
        part: dict[str, Any] = {"seek": 0, "start": 0.0, "end": audio_s, "tokens": list(tokens)}
        self.whisper.add_word_timestamps(
            [[part]],
            tokenizer,
            ctranslate2.StorageView.from_array(np.ascontiguousarray(positions[None])),
            # Fewer than two are less than one step of the encoder, which faster-whisper cannot align.
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

    def write(self, positions: Positions, language: str) -> list[int]:
        """The tokens of the greedy text of encoder output."""
        tokenizer, prompt = self._of(language)
        (found,) = self.generate([positions], [prompt], beam_size=1, max_length=MAX_LENGTH // 2)
        return [token for token in found.sequences_ids[0] if token < tokenizer.eot]

    def log_probability(self, positions: Positions, language: str, tokens: Sequence[int]) -> float:
        """The mean log probability of a text's tokens."""
        tokenizer, _ = self._of(language)
        (found,) = self.model.align(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(positions[None])),
            list(tokenizer.sot_sequence),
            [list(tokens)],
            [len(positions) * FRAMES_PER_POSITION],
        )
        return float(np.mean(np.log(np.maximum(found.text_token_probs, 1e-9))))

    def _of(self, language: str) -> tuple[Tokenizer, list[int]]:
        task = DecodingTask(language if self.is_multilingual else "en")
        return self.tokenizer_of(task.language, task.task), self.prompt_of(task)


def is_calibrated(directory: Path, device: Device, cache_dir: Path | None) -> bool:
    """Whether the silence of the model in directory was measured on this device, so that loading need not."""
    return tail.is_kept(*_kept_silence(directory, device, cache_dir))


def _kept_silence(directory: Path, device: Device, cache_dir: Path | None) -> tuple[list[Path], str]:
    """Return the directories that may hold a model's silence, and the fingerprint that it must have."""
    fingerprint = tail.fingerprint_of(directory / "model.bin", device.name, device.compute_type)
    return [directory, *([cache_dir / "silence" / fingerprint[:16]] if cache_dir is not None else [])], fingerprint


class WhisperModel:
    """One loaded model; see `Model` in engine/model.py for what its methods do."""

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

        n_threads: for one inference on the CPU. n_workers: inferences side by side. is_calibrated: encode speech only,
        with calibrated silence behind it; else all of Whisper's 30 s. cache_dir: where the silence is kept if
        directory cannot be written to.
        """
        self.name = name
        self.device_name = device.name
        self.compute_type = device.compute_type
        self._runtime = Runtime(name, directory, device, n_threads=n_threads, n_workers=n_workers)
        self.is_multilingual = self._runtime.is_multilingual
        self._tail = self._calibrated(directory, cache_dir, n_workers) if is_calibrated else None
        silence_bytes = self._tail.silence.nbytes if self._tail is not None else 0
        self.memory_bytes = footprint(directory, device).loaded + silence_bytes

    def _calibrated(self, directory: Path, cache_dir: Path | None, n_workers: int) -> Tail | None:
        def calibrate() -> Tail | None:
            log.info("model %s: its silence is measured, once for each machine", self.name)
            started_s = time.monotonic()
            found = tail.calibrated(self._runtime, tail.samples(), n_workers=n_workers)
            log.info("model %s: measured in %.1f s", self.name, time.monotonic() - started_s)
            return found.rounded() if found is not None else None

        device = Device(self.device_name, self.compute_type)
        return tail.kept_or_calibrated(*_kept_silence(directory, device, cache_dir), calibrate)

    @functools.cached_property
    def languages(self) -> Sequence[str]:
        """Whisper's codes of the languages it knows: not all models have a token for the latest of them."""
        whisper = self._runtime.whisper
        known = whisper.hf_tokenizer.token_to_id
        return [code for code in whisper.supported_languages if known(f"<|{code}|>") is not None]

    def n_positions(self, audio_s: float, silence_s: float) -> int:
        """See `Model`."""
        return FULL_POSITIONS if self._tail is None else tail.whole_length(tail.n_encoded(audio_s, silence_s))

    def n_prompt_tokens(self, task: DecodingTask) -> int:
        """See `Model`."""
        return len(self._runtime.prompt_of(task))

    def encode(self, audio: Audio, silence_s: float) -> Encoded:
        """See `Model`."""
        audio_s = len(audio) / SAMPLE_RATE_HZ
        if self._tail is None:
            return Encoded(self._runtime.encode_positions(audio, FULL_POSITIONS), audio_s)
        positions = self._runtime.encode_positions(audio, tail.n_encoded(audio_s, silence_s))
        return Encoded(self._tail.behind(positions), audio_s)

    def detect_language(self, encoded: Encoded) -> Languages:
        """See `Model`."""
        if not self.is_multilingual:
            return [("en", 1.0)]
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(encoded.positions[None]))
        found = self._runtime.model.detect_language(view)[0]
        return [(token[2:-2], float(probability)) for token, probability in found]

    def decode(
        self, encoded: Sequence[Encoded], tasks: Sequence[DecodingTask], *, beam_size: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Model`."""
        prompts = [self._runtime.prompt_of(task) for task in tasks]
        # CTranslate2 generates at most half of its max_length, and no more than the prompt leaves.
        max_length = min(MAX_LENGTH, 2 * max(max_tokens, len(prompts[0]) + 8))
        limit = min(max_tokens, max_length // 2, max_length - len(prompts[0]))
        results = self._runtime.generate(
            [one.positions for one in encoded], prompts, beam_size=beam_size, max_length=max_length
        )
        return [self._hypothesis(task, result, limit) for task, result in zip(tasks, results, strict=True)]

    def _hypothesis(self, task: DecodingTask, result: Any, limit: int) -> Hypothesis:
        tokens, tokenizer = result.sequences_ids[0], self._runtime.tokenizer_of(task.language, task.task)
        text_tokens = [token for token in tokens if token < tokenizer.eot]
        return Hypothesis(
            text=tokenizer.decode(text_tokens).strip(),
            tokens=tuple(text_tokens),
            # CTranslate2 gives the mean over the tokens without the end of text, Whisper counts it.
            avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_probability=float(result.no_speech_prob),
            is_cut_off=len(tokens) >= limit,
        )

    def align(self, encoded: Encoded, task: DecodingTask, tokens: Sequence[int]) -> list[TimedWord]:
        """See `Model`."""
        tokenizer = self._runtime.tokenizer_of(task.language, task.task)
        return self._runtime.align(encoded.positions, tokenizer, tokens, encoded.audio_s)

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
        whisper = self._runtime.whisper
        with whisper.decoding(is_wanted):
            try:
                segments, _ = whisper.transcribe(
                    audio,
                    language=task.language,
                    task=task.task.value,
                    beam_size=beam_size,
                    temperature=list(temperatures),
                    initial_prompt=whisper.text_tokens(task.prompt) or None,
                    hotwords=_hotwords(task),
                    word_timestamps=word_timestamps,
                    no_speech_threshold=None,  # nothing is dropped: see _FasterWhisper
                )
                audio_s = len(audio) / SAMPLE_RATE_HZ
                return [_raw_segment(segment, task.language, audio_s) for segment in segments]
            except _CallerGone:
                return None


def _without_special_tokens(tokenizer: Any) -> Any:
    """A tokenizer by which all text is text: "<|translate|>" is what it is written with, and so is "<|0.00|>".

    Its own option for that, `encode_special_tokens`, leaves out timestamps.
    """
    description = json.loads(tokenizer.to_str())
    return tokenizer.from_str(json.dumps({**description, "added_tokens": []}))


def _hotwords(task: DecodingTask) -> str | None:
    return HOTWORD_SEPARATOR.join(task.hotwords) or None


def _raw_segment(segment: Any, language: str, audio_s: float) -> RawSegment:
    """From faster-whisper's own segment."""
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
