"""The model itself: the only module that knows faster_whisper and ctranslate2.

Everything here blocks and holds no lock of ours; callers run it in threads. CTranslate2 releases the GIL.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import faster_whisper.utils
import numpy as np
from tqdm.auto import tqdm

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.engine.catalog import Progress
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.transcript import Segment, Word
from typeless_grpc.errors import EngineFailed, InvalidInput, SourceUnavailable

# What Whisper was trained on: the longest audio its encoder takes at once (arXiv:2212.04356, section 2.1).
WINDOW_S = 30.0
# faster_whisper.transcribe.WhisperModel.transcribe, default of `temperature`: tried in turn until the checks pass.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


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


@dataclass(frozen=True)
class Heard:
    """A segment as the model gave it, before anything judges it. Times in seconds of the window."""

    segment: Segment
    avg_logprob: float
    compression_ratio: float


class WhisperModel:
    """One loaded model."""

    def __init__(self, name: str, directory: Path, device: Device, *, n_threads: int) -> None:
        """Load the model in directory. n_threads: for one inference on the CPU, 0 for one a core. Takes seconds."""
        self.name = name
        self.device = device
        try:
            self._model = faster_whisper.WhisperModel(
                str(directory),
                device=device.name,
                compute_type=device.compute_type,
                cpu_threads=n_threads or os.cpu_count() or 4,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(f"Model '{name}' cannot be loaded.", reason="MODEL_LOAD_FAILED") from error

    @property
    def languages(self) -> Sequence[str]:
        """Whisper's codes of the languages it knows."""
        return list(self._model.supported_languages)

    @property
    def is_multilingual(self) -> bool:
        """Whether it knows more than English."""
        return bool(self._model.model.is_multilingual)

    def detect_language(self, audio: Audio) -> tuple[str, float]:
        """The language of audio's first 30 s and its probability in [0, 1]; ("en", 1) for an English model."""
        if not self.is_multilingual:
            return "en", 1.0
        language, probability, _ = self._model.detect_language(audio)
        return language, float(probability)

    def decode(
        self, audio: Audio, options: DecodeOptions, language: str, *, beam_size: int, cancelled: Callable[[], bool]
    ) -> Iterator[Heard]:
        """Transcribe a window, segment by segment, as faster-whisper does it.

        audio: float32 mono 16 kHz, at most 30 s. Ends early, without a word, once cancelled() is true.
        """
        segments, _ = self._model.transcribe(
            audio,
            language=language,
            task=options.task.value,
            beam_size=beam_size,
            temperature=list(options.temperatures or TEMPERATURES),
            initial_prompt=options.prompt or None,
            hotwords=", ".join(options.hotwords) or None,
            word_timestamps=options.word_timestamps,
            # Judged by the recognizer, which reports what it drops; faster-whisper would drop it silently.
            no_speech_threshold=None,
        )
        for segment in segments:
            if cancelled():
                return
            yield _heard(segment, language, len(audio) / SAMPLE_RATE_HZ)

    def warm_up(self) -> None:
        """Run once over a second of silence, so that the first caller does not pay for lazy initialization."""
        quiet = np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
        list(self.decode(quiet, DecodeOptions(temperatures=(0.0,)), "en", beam_size=1, cancelled=lambda: False))


def _heard(segment: Any, language: str, window_s: float) -> Heard:
    words = tuple(
        Word(word.word.strip(), min(word.start, window_s), min(word.end, window_s), float(word.probability))
        for word in segment.words or ()
    )
    return Heard(
        Segment(
            start_s=min(segment.start, window_s),
            end_s=min(segment.end, window_s),
            text=segment.text.strip(),
            language=language,
            confidence=min(1.0, math.exp(segment.avg_logprob)),
            no_speech_probability=float(segment.no_speech_prob),
            words=words,
        ),
        avg_logprob=float(segment.avg_logprob),
        compression_ratio=float(segment.compression_ratio),
    )


class HuggingFaceHub:
    """The hub, through faster-whisper's own download; its cache lies in our data directory."""

    _lock = threading.Lock()

    def names(self) -> Sequence[str]:
        """Every size faster-whisper knows."""
        return list(faster_whisper.available_models())

    def cached(self, name: str, cache_dir: Path) -> Path | None:
        """The directory of a model fetched before, without touching the network."""
        if not cache_dir.is_dir():
            return None
        try:
            found = Path(faster_whisper.download_model(name, local_files_only=True, cache_dir=str(cache_dir)))
        except Exception:  # huggingface_hub raises a family of its own, which changes between its versions
            return None
        return found if (found / "model.bin").is_file() else None

    def fetch(self, name: str, cache_dir: Path, progress: Progress) -> Path:
        """Fetch a model; raises SourceUnavailable where the hub cannot be reached or refuses."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock, _reporting(progress):
                return Path(faster_whisper.download_model(name, cache_dir=str(cache_dir)))
        except Exception as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SourceUnavailable(why, reason="MODEL_UNAVAILABLE") from error


class _Nowhere:
    """A file that keeps nothing: the bar counts, and is never drawn."""

    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...


@contextmanager
def _reporting(progress: Progress) -> Iterator[None]:
    """Hear of the bytes: faster-whisper passes a progress bar that is switched off to the hub, and takes no other."""

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.update(file=_Nowhere(), disable=False)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> Any:
            answer = super().update(n)
            if self.unit == "B":
                progress(int(self.n), int(self.total or 0))
            return answer

    silent = faster_whisper.utils.disabled_tqdm
    faster_whisper.utils.disabled_tqdm = Reporter
    try:
        yield
    finally:
        faster_whisper.utils.disabled_tqdm = silent
