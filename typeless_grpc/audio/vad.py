"""Detects speech with Silero's voice activity model, version 6, as faster-whisper ships it.

The model looks at 512 samples (32 ms) with the 64 before them, and carries a state from frame to frame. The frames of
one stream may go through it in one call or in many: with state, context and the incomplete last frame kept in
DetectorState, any cutting of the audio gives the same probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.errors import EngineFailed

FRAME_SAMPLES = 512
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (1, 1, 128)
MAX_FRAMES_A_CALL = 2048  # 65 s of audio: bounds the memory of a call to some tens of MB
_MIN_PAUSE_TO_CUT_MS = 98  # Silero's min_silence_samples_at_max_speech

Probabilities = npt.NDArray[np.float32]  # one per frame, in [0, 1]


def _zeros(*shape: int) -> Audio:
    return np.zeros(shape, dtype=np.float32)


@dataclass
class DetectorState:
    """The detector's state of one stream between two calls. Create one for each stream."""

    h: Audio = field(default_factory=lambda: _zeros(*_STATE_SHAPE))
    c: Audio = field(default_factory=lambda: _zeros(*_STATE_SHAPE))
    context: Audio = field(default_factory=lambda: _zeros(_CONTEXT_SAMPLES))
    pending: Audio = field(default_factory=lambda: _zeros(0))  # less than a frame


class VoiceActivityDetector(Protocol):
    """Estimates, frame by frame, how likely the audio is speech; any number of streams and threads may share one."""

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        """Return the probability of speech in each frame that is complete now; keeps an incomplete frame in state.

        audio: float32, shape (n_samples,), mono 16 kHz, any length; it continues the audio of earlier calls with state.
        """
        ...

    def finish(self, state: DetectorState) -> Probabilities:
        """Return the probability of the last, incomplete frame, padded with silence; empty if there is none."""
        ...


def recording_probabilities(detector: VoiceActivityDetector, audio: Audio) -> Probabilities:
    """Return the probability of each frame of a whole recording, the last one padded: ceil(n_samples / 512) values."""
    state = DetectorState()
    step = MAX_FRAMES_A_CALL * FRAME_SAMPLES
    parts = [detector.probabilities(audio[i : i + step], state) for i in range(0, len(audio), step)]
    return np.concatenate([*parts, detector.finish(state)])


class SileroDetector:
    """Silero's model as a `VoiceActivityDetector`."""

    def __init__(self, model_path: Path | None = None) -> None:
        """model_path: faster-whisper's own file unless given. Raises EngineFailed if it is absent or broken."""
        # From 1.29 on, onnxruntime reports to its makers on Linux too, unless this is set before it is imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        path = model_path or _shipped_model_path()
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1  # a frame is too small to share out
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"], sess_options=options
            )
        except Exception as error:  # onnxruntime's own classes derive from nothing narrower
            raise EngineFailed("the voice activity model cannot be loaded", reason="VAD_UNAVAILABLE") from error

    def probabilities(self, audio: Audio, state: DetectorState) -> Probabilities:
        """See `VoiceActivityDetector`."""
        waiting = np.concatenate([state.pending, audio])
        n_whole = len(waiting) - len(waiting) % FRAME_SAMPLES
        state.pending = waiting[n_whole:].copy()
        step = MAX_FRAMES_A_CALL * FRAME_SAMPLES
        parts = [self._run(waiting[i : min(i + step, n_whole)], state) for i in range(0, n_whole, step)]
        return np.concatenate(parts) if parts else _zeros(0)

    def finish(self, state: DetectorState) -> Probabilities:
        """See `VoiceActivityDetector`."""
        if not len(state.pending):
            return _zeros(0)
        return self.probabilities(_zeros(FRAME_SAMPLES - len(state.pending)), state)

    def _run(self, samples: Audio, state: DetectorState) -> Probabilities:
        frames = samples.reshape(-1, FRAME_SAMPLES)
        contexts = np.vstack([state.context, frames[:-1, -_CONTEXT_SAMPLES:]])
        inputs = {"input": np.hstack([contexts, frames]), "h": state.h, "c": state.c}
        output, state.h, state.c = self._session.run(None, inputs)
        state.context = frames[-1, -_CONTEXT_SAMPLES:].copy()
        return np.asarray(output, dtype=np.float32).reshape(-1)


@dataclass(frozen=True)
class SpeechSpanOptions:
    """How probabilities become spans. The defaults are those of faster-whisper for whole recordings.

    threshold: a frame at or above it starts speech, 0..1; a lower one finds fainter speech, and more noise.
    min_speech_ms: shorter sounds are dropped. min_silence_ms: shorter silences do not end speech. speech_pad_ms: added
    on both sides, so that soft onsets are not cut. max_speech_s: longer speech is cut.
    """

    threshold: float = 0.5
    min_speech_ms: int = 0
    min_silence_ms: int = 2000
    speech_pad_ms: int = 400
    max_speech_s: float = float("inf")

    @property
    def end_threshold(self) -> float:
        """Speech lasts until a frame is below this: Silero's hysteresis."""
        return max(self.threshold - 0.15, 0.01)


@dataclass(frozen=True)
class Span:
    """A stretch of audio, in samples, end exclusive."""

    start: int
    end: int


def speech_spans(probabilities: Probabilities, options: SpeechSpanOptions, n_samples: int) -> list[Span]:
    """Find where someone speaks, in order, without overlap and within the audio.

    probabilities: one per frame of 512 samples; n_samples: the audio's length. After Silero's get_speech_timestamps;
    other than there, speech over max_speech_s is cut at its longest pause, not its last, and no span is longer with
    its padding.
    """
    pad = _samples(options.speech_pad_ms)
    max_samples = options.max_speech_s * SAMPLE_RATE_HZ - 2 * pad
    spans: list[Span] = []
    for speech, pauses in _speech(probabilities, options, n_samples):
        if speech.end - speech.start > _samples(options.min_speech_ms):
            spans += _cut(speech, pauses, max_samples=max(FRAME_SAMPLES, max_samples))
    return _padded(spans, pad, n_samples)


def _samples(ms: float) -> int:
    return int(ms * SAMPLE_RATE_HZ / 1000)


def _speech(
    probabilities: Probabilities, options: SpeechSpanOptions, n_samples: int
) -> Iterator[tuple[Span, list[Span]]]:
    """Yield each stretch of speech, and the pauses inside that were too short to end it."""
    min_silence = _samples(options.min_silence_ms)
    start: int | None = None
    pause: int | None = None
    pauses: list[Span] = []
    for i, probability in enumerate(probabilities.tolist()):
        now = i * FRAME_SAMPLES
        if probability >= options.threshold:
            if start is None:
                start = now
            elif pause is not None:
                pauses.append(Span(pause, now))
            pause = None
        elif probability < options.end_threshold and start is not None:
            pause = now if pause is None else pause
            if now - pause >= min_silence:
                yield Span(start, pause), pauses
                start, pause, pauses = None, None, []
    if start is not None and start < n_samples:
        yield Span(start, n_samples), pauses


def _cut(speech: Span, pauses: list[Span], *, max_samples: float) -> Iterator[Span]:
    """Cut speech into spans of at most max_samples: at the longest pause within reach, or anywhere if there is none."""
    start = speech.start
    while speech.end - start > max_samples:
        limit = start + int(max_samples)
        within = [
            pause
            for pause in pauses
            if start < pause.start <= limit and pause.end - pause.start > _samples(_MIN_PAUSE_TO_CUT_MS)
        ]
        pause = max(within, key=lambda pause: pause.end - pause.start, default=Span(limit, limit))
        yield Span(start, pause.start)
        start = pause.end
    yield Span(start, speech.end)


def _padded(spans: list[Span], pad: int, n_samples: int) -> list[Span]:
    """Return spans grown by pad on both sides, by half the gap where two would meet."""
    padded = []
    for i, span in enumerate(spans):
        before = span.start - spans[i - 1].end if i else 2 * pad
        after = spans[i + 1].start - span.end if i + 1 < len(spans) else 2 * pad
        start = span.start - (pad if before >= 2 * pad else before // 2)
        end = span.end + (pad if after >= 2 * pad else after // 2)
        padded.append(Span(max(0, start), min(n_samples, end)))
    return padded


def _shipped_model_path() -> Path:
    """Return where faster-whisper keeps the model; the package is not imported, since that loads all of CTranslate2."""
    found = find_spec("faster_whisper")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "assets" / "silero_vad_v6.onnx"
        if path.is_file():
            return path
    message = "the voice activity model is missing: it comes with faster-whisper 1.2 or newer"
    raise EngineFailed(message, reason="VAD_UNAVAILABLE")
