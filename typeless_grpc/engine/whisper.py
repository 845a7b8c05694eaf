"""The model itself: the only module that knows faster_whisper and ctranslate2.

Everything here blocks and holds no lock of ours; callers run it in threads. CTranslate2 releases the GIL.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import faster_whisper.utils
import numpy as np
import numpy.typing as npt
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from tqdm.auto import tqdm

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.catalog import Progress
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.languages import among, chosen, seem_mixed
from typeless_grpc.engine.sentences import SentencePolicy, TimedWord, sentences
from typeless_grpc.engine.transcript import Segment, Word
from typeless_grpc.engine.verification import Checks, Doubt, Result, compression_ratio, doubts
from typeless_grpc.engine.window import FULL_WINDOW_S
from typeless_grpc.errors import EngineFailed, InvalidInput, SourceUnavailable

Array = npt.NDArray[np.float32]
# faster_whisper.transcribe.WhisperModel.transcribe, default of `temperature`: tried in turn until the checks pass.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Likewise `no_speech_threshold`: above it, and below `log_prob_threshold`, a text is taken for silence.
NO_SPEECH_THRESHOLD = 0.6
# Bytes of one weight in memory, by CTranslate2's compute type; 2 for those not named.
BYTES_PER_WEIGHT = {"int8": 1, "int8_float32": 1, "int8_float16": 1, "int8_bfloat16": 1, "float32": 4}
# Defaults of `prepend_punctuations` and `append_punctuations`.
PREPENDED_PUNCTUATION = "\"'“¿([{-"
APPENDED_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"
# Whisper's text context (arXiv:2212.04356, section 2.3): prompt and text together.
MAX_LENGTH = 448
# A text that is less certain is searched for again with more beams, where that is asked for; as many as faster-whisper
# uses by default (docs/streaming.md has what it gains).
RECONSIDERED_CONFIDENCE = 0.7
RECONSIDERED_BEAM_SIZE = 5
# More tokens than speech of any language has, so that a loop ends early: measured, docs/encoder-window.md.
MOST_TOKENS_AT_ONCE = 24
MOST_TOKENS_PER_S = 14.0


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


@dataclass(frozen=True, eq=False)
class Window:
    """Audio to decode, and how.

    audio: float32 mono 16 kHz, at most shown_s long. speech: where someone speaks, in samples of audio. shown_s: what
    the encoder is shown, audio and then silence. thorough: as faster-whisper itself does it, window after window with
    its ladder of temperatures; else in one pass, together with others. is_bounded: cut a thorough text off where it
    has more tokens than speech can have, which faster-whisper itself does not. is_reconsidered: a text in one pass that
    fails a check, or is not certain, is searched for again with more beams. options.language: None detects it;
    expected is then the language it is taken to be in unless it clearly is not, "" for none. may_be_mixed: where it
    seems to be in two languages, say so (Doubt.MIXED) and decode nothing. detect_only: tell the language, and decode
    nothing.
    """

    audio: Audio
    speech: tuple[Span, ...]
    shown_s: float
    options: DecodeOptions
    beam_size: int
    thorough: bool = False
    is_bounded: bool = False
    is_reconsidered: bool = False
    checks: Checks | None = None
    expected: str = ""
    may_be_mixed: bool = False
    detect_only: bool = False

    @property
    def audio_s(self) -> float:
        """Its length in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ

    @property
    def speech_s(self) -> float:
        """How much speech there is in it, in seconds."""
        return sum(span.end - span.start for span in self.speech) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class HeardSegment:
    """A segment as the model gave it, before anything judges it. Times in seconds of the window."""

    segment: Segment
    avg_logprob: float
    compression_ratio: float


@dataclass(frozen=True)
class Heard:
    """What came out of a window. doubts: why not to trust it; segments then have no words."""

    segments: tuple[HeardSegment, ...]
    language: str
    language_probability: float
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class _Found:
    """The text that a search ended with. tokens: of the text alone. avg_logprob: over them and the end of text."""

    tokens: Sequence[int] = ()
    avg_logprob: float = 0.0
    no_speech_probability: float = 0.0
    text: str = ""

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return min(1.0, math.exp(self.avg_logprob))

    def is_likelier_than(self, other: _Found) -> bool:
        """By token, and as a whole: a text that says everything twice is likelier by token alone."""
        whole = self.avg_logprob * (len(self.tokens) + 1) > other.avg_logprob * (len(other.tokens) + 1)
        return whole and self.avg_logprob > other.avg_logprob


@dataclass(eq=False)
class _Passing:
    """A window on its way through `decode`."""

    window: Window
    wanted: Callable[[], bool]
    encoded: Array
    language: str
    language_probability: float
    found: _Found = _Found()
    doubts: tuple[Doubt, ...] = ()
    words: Sequence[TimedWord] = ()

    @property
    def is_to_be_decoded(self) -> bool:
        """Whether there is more to do for somebody than to tell the language."""
        return not self.window.detect_only and not self.doubts and self.wanted()

    @property
    def is_to_be_reconsidered(self) -> bool:
        """Whether another search may find a better text, for somebody who wants that."""
        is_doubtful = bool(self.doubts) or self.found.confidence < RECONSIDERED_CONFIDENCE
        has_fewer_beams = self.window.beam_size < RECONSIDERED_BEAM_SIZE
        return self.window.is_reconsidered and is_doubtful and has_fewer_beams and self.wanted()


class _NobodyWaits(Exception):
    """Ends faster-whisper's own decoding between two of its temperatures."""


class _FasterWhisper(faster_whisper.WhisperModel):  # type: ignore[misc]
    """faster-whisper's own, but what it takes for silence is not dropped; the recognizer does that, and reports it.

    It is also asked before each temperature whether somebody still waits, and writes no more than speech can have.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._of_thread = threading.local()

    @contextmanager
    def decoding(self, wanted: Callable[[], bool], most_tokens: int | None) -> Iterator[None]:
        """What is decoded in this thread meanwhile. most_tokens: of each window's text; None leaves it to Whisper."""
        self._of_thread.wanted, self._of_thread.most_tokens = wanted, most_tokens
        try:
            yield
        finally:
            del self._of_thread.wanted, self._of_thread.most_tokens

    def generate_with_fallback(self, encoder_output: Any, prompt: Any, tokenizer: Any, options: Any) -> Any:
        # Here the threshold only says that silence needs no other temperature; where it drops, it is given as None.
        ours = replace(options, no_speech_threshold=NO_SPEECH_THRESHOLD, temperatures=self._asked(options.temperatures))
        room = self.max_length - len(prompt)
        if self._of_thread.most_tokens is not None and room > 0:
            ours = replace(ours, max_new_tokens=min(self._of_thread.most_tokens, room))
        return super().generate_with_fallback(encoder_output, prompt, tokenizer, ours)

    def _asked(self, temperatures: Sequence[float]) -> Iterator[float]:
        for temperature in temperatures:
            if not self._of_thread.wanted():
                raise _NobodyWaits
            yield temperature


class WhisperModel:
    """One loaded model."""

    def __init__(self, name: str, directory: Path, device: Device, *, n_threads: int, n_workers: int = 1) -> None:
        """Load the model in directory; takes seconds.

        n_threads: for one inference on the CPU. n_workers: inferences side by side. Raises EngineFailed.
        """
        self.name = name
        self.device_name = device.name
        self.compute_type = device.compute_type
        try:
            self._whisper = _FasterWhisper(
                str(directory),
                device=device.name,
                compute_type=device.compute_type,
                cpu_threads=n_threads,
                num_workers=n_workers,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(f"Model '{name}' cannot be loaded.", reason="MODEL_LOAD_FAILED") from error
        self._model = self._whisper.model
        # Of this model, and without a reference to it: nothing outlives it, and it is freed when the last call is done.
        whisper, is_multilingual = self._whisper, bool(self._model.is_multilingual)

        @functools.lru_cache(maxsize=256)
        def tokenizer_of(language: str, task: str) -> Tokenizer:
            return Tokenizer(whisper.hf_tokenizer, is_multilingual, task=task, language=language)

        @functools.lru_cache(maxsize=256)
        def prompt_of(prompt: str, hotwords: str | None, language: str, task: str) -> list[int]:
            tokenizer = tokenizer_of(language, task)
            previous = tokenizer.encode(" " + prompt.strip()) if prompt else []
            return list(whisper.get_prompt(tokenizer, previous, without_timestamps=True, hotwords=hotwords))

        self._tokenizer_of, self._prompt_of = tokenizer_of, prompt_of
        # Converted models are stored as float16; nothing tells what CTranslate2 makes of it in memory.
        stored_bytes = (directory / "model.bin").stat().st_size
        self.memory_bytes = round(stored_bytes * BYTES_PER_WEIGHT.get(device.compute_type, 2) / 2)

    @functools.cached_property
    def languages(self) -> Sequence[str]:
        """Whisper's codes of the languages it knows: not all models have a token for the latest of them."""
        known = self._whisper.hf_tokenizer.token_to_id
        return [code for code in self._whisper.supported_languages if known(f"<|{code}|>") is not None]

    @property
    def is_multilingual(self) -> bool:
        """Whether it knows more than English."""
        return bool(self._model.is_multilingual)

    def batch_key(self, window: Window) -> Hashable:
        """Windows with equal keys can be decoded together, whatever else they ask for."""
        if window.thorough:
            return (self.name, object())
        if window.detect_only:
            return (self.name, "language")
        n_prompt_tokens = len(self._prompt(window, window.options.language or "en"))
        return (self.name, window.shown_s, window.beam_size, n_prompt_tokens)

    def decode(self, windows: Sequence[Window], wanted: Sequence[Callable[[], bool]]) -> list[Heard | None]:
        """Decode windows with equal batch keys.

        wanted: for each, whether somebody still waits for it; asked between the steps, and None is given for one that
        nobody does. Blocks for as long as it takes; safe to call from several threads.
        """
        if windows[0].thorough:
            return [self._thorough(window, is_wanted) for window, is_wanted in zip(windows, wanted, strict=True)]
        passing = [self._encode(window, is_wanted) for window, is_wanted in zip(windows, wanted, strict=True)]
        if going := [one for one in passing if one is not None and one.is_to_be_decoded]:
            self._generate(going)
            for one in going:
                if one.window.options.word_timestamps and one.found.text and not one.doubts and one.wanted():
                    self._align(one)
        return [_outcome(one, one in going) for one in passing]

    def detect_language(self, audio: Audio) -> list[tuple[str, float]]:
        """Every language and its probability in [0, 1], the likeliest first, from audio's first 30 s."""
        return self._languages(self._encoded(audio[: round(FULL_WINDOW_S * SAMPLE_RATE_HZ)], FULL_WINDOW_S))

    def warm_up(self) -> None:
        """Decode a second of silence, so that the first caller does not pay for lazy initialization."""
        quiet = np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
        options = DecodeOptions(language="en", word_timestamps=True)
        self.decode([Window(quiet, (), 15.0, options, beam_size=1)], [lambda: True])

    # ---- steps --------------------------------------------------------------------------------------------------

    def _encode(self, window: Window, wanted: Callable[[], bool]) -> _Passing | None:
        if not wanted():
            return None
        encoded = self._encoded(window.audio, window.shown_s)
        if window.options.language:
            return _Passing(window, wanted, encoded, window.options.language, 1.0)
        found = among(self._languages(encoded), window.options.allowed_languages)
        language, probability = chosen(found, window.expected, window.speech_s)
        mixed = (Doubt.MIXED,) if window.may_be_mixed and seem_mixed(found) else ()
        return _Passing(window, wanted, encoded, language, probability, doubts=mixed)

    def _encoded(self, audio: Audio, shown_s: float) -> Array:
        """The encoder's output, shape (1, frames / 2, d_model).

        One by one, because on a CPU a batch of encodes takes longer than the same encodes in turn (measured: caches).
        """
        frames = self._whisper.feature_extractor(audio)[:, :-1]
        shown = pad_or_trim(frames, round(shown_s * self._whisper.frames_per_second))
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(shown[None]))
        return np.array(self._model.encode(features, to_cpu=True))

    def _languages(self, encoded: Array) -> list[tuple[str, float]]:
        if not self.is_multilingual:
            return [("en", 1.0)]
        found = self._model.detect_language(ctranslate2.StorageView.from_array(encoded))[0]
        return [(token[2:-2], float(probability)) for token, probability in found]

    def _generate(self, going: list[_Passing]) -> None:
        for one, found in zip(going, self._searched(going, going[0].window.beam_size), strict=True):
            one.found, one.doubts = found, self._doubts(one.window, found)
        again = [one for one in going if one.is_to_be_reconsidered]
        for one, found in zip(again, self._searched(again, RECONSIDERED_BEAM_SIZE), strict=True):
            if not self._doubts(one.window, found) and (one.doubts or found.is_likelier_than(one.found)):
                one.found, one.doubts = found, ()

    def _searched(self, going: Sequence[_Passing], beam_size: int) -> list[_Found]:
        if not going:
            return []
        prompts = [self._prompt(one.window, one.language) for one in going]
        results = self._model.generate(
            _together(going),
            prompts,
            beam_size=beam_size,
            max_length=_max_length(max(one.window.audio_s for one in going), len(prompts[0])),
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [self._text_found(one, result) for one, result in zip(going, results, strict=True)]

    def _text_found(self, one: _Passing, result: Any) -> _Found:
        tokens, tokenizer = result.sequences_ids[0], self._tokenizer(one)
        text_tokens = [token for token in tokens if token < tokenizer.eot]
        # CTranslate2 gives the mean over the tokens without the end of text, Whisper counts it.
        avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        return _Found(text_tokens, avg_logprob, float(result.no_speech_prob), tokenizer.decode(text_tokens).strip())

    def _doubts(self, window: Window, found: _Found, words: Sequence[TimedWord] = ()) -> tuple[Doubt, ...]:
        if window.checks is None:
            return ()
        result = Result(
            text=found.text,
            avg_logprob=found.avg_logprob,
            speech_s=[(span.start / SAMPLE_RATE_HZ, span.end / SAMPLE_RATE_HZ) for span in window.speech],
            audio_s=window.audio_s,
            words_end_s=words[-1].end_s if words else None,
        )
        return tuple(doubts(result, window.checks))

    def _align(self, one: _Passing) -> None:
        """Find the words and their times. One by one: in a batch it takes as long (measured)."""
        tokens = list(one.found.tokens)
        part: dict[str, Any] = {"seek": 0, "start": 0.0, "end": one.window.audio_s, "tokens": tokens}
        self._whisper.add_word_timestamps(
            [[part]],
            self._tokenizer(one),
            ctranslate2.StorageView.from_array(one.encoded),
            # Fewer than two are less than one step of the encoder, which faster-whisper cannot align.
            max(2, math.ceil(one.window.audio_s * self._whisper.frames_per_second)),
            PREPENDED_PUNCTUATION,
            APPENDED_PUNCTUATION,
            0.0,
        )
        one.words = [
            TimedWord(word["word"], float(word["start"]), float(word["end"]), float(word["probability"]))
            for word in part["words"]
        ]
        one.doubts = self._doubts(one.window, one.found, one.words)

    def _thorough(self, window: Window, wanted: Callable[[], bool]) -> Heard | None:
        options = window.options
        language, probability = options.language, 1.0
        if language is None:
            found = among(self._languages(self._encoded(window.audio, FULL_WINDOW_S)), options.allowed_languages)
            language, probability = chosen(found, window.expected, window.speech_s)
        most_tokens = _most_tokens(window.audio_s) if window.is_bounded else None
        with self._whisper.decoding(wanted, most_tokens):
            try:
                heard = self._as_faster_whisper(window, language)
            except _NobodyWaits:
                return None
        return Heard(tuple(heard), language, probability)

    def _as_faster_whisper(self, window: Window, language: str) -> list[HeardSegment]:
        options = window.options
        segments, _ = self._whisper.transcribe(
            window.audio,
            language=language,
            task=options.task.value,
            beam_size=window.beam_size,
            temperature=list(options.temperatures or TEMPERATURES),
            initial_prompt=options.prompt or None,
            hotwords=_hotwords(options),
            word_timestamps=options.word_timestamps,
            no_speech_threshold=None,  # nothing is dropped: see _FasterWhisper
        )
        return [_heard_thoroughly(segment, language, window.audio_s) for segment in segments]

    # ---- prompts ------------------------------------------------------------------------------------------------

    def _tokenizer(self, one: _Passing) -> Tokenizer:
        return self._tokenizer_of(one.language, one.window.options.task.value)

    def _prompt(self, window: Window, language: str) -> list[int]:
        options = window.options
        return self._prompt_of(options.prompt, _hotwords(options), language, options.task.value)


def _hotwords(options: DecodeOptions) -> str | None:
    return ", ".join(options.hotwords) or None


def _together(going: Sequence[_Passing]) -> ctranslate2.StorageView:
    encoded = [one.encoded for one in going]
    return ctranslate2.StorageView.from_array(np.concatenate(encoded) if len(encoded) > 1 else encoded[0])


def _max_length(audio_s: float, n_prompt_tokens: int) -> int:
    """Where a text that will not end is cut off. CTranslate2 generates at most half of its `max_length`."""
    return min(MAX_LENGTH, 2 * max(_most_tokens(audio_s), n_prompt_tokens + 8))


def _most_tokens(audio_s: float) -> int:
    return MOST_TOKENS_AT_ONCE + math.ceil(MOST_TOKENS_PER_S * audio_s)


def _outcome(one: _Passing | None, is_decoded: bool) -> Heard | None:
    """What is told of a window; None where nobody waits for it."""
    if one is None or not (is_decoded or one.window.detect_only or Doubt.MIXED in one.doubts):
        return None
    return _heard(one) if is_decoded else Heard((), one.language, one.language_probability, one.doubts)


def _heard(one: _Passing) -> Heard:
    words = [word for word in one.words if word.text.strip()]
    groups = [(group[0].start_s, group[-1].end_s, group) for group in sentences(words, SentencePolicy())]
    found = one.found
    if not groups and found.text:
        groups = [(*_speech_s(one.window), [])]
    segments = tuple(
        HeardSegment(
            _segment(one, start_s, end_s, "".join(word.text for word in group).strip() if group else found.text, group),
            found.avg_logprob,
            compression_ratio(found.text),
        )
        for start_s, end_s, group in groups
    )
    return Heard(segments, one.language, one.language_probability, one.doubts)


def _segment(one: _Passing, start_s: float, end_s: float, text: str, words: Sequence[TimedWord]) -> Segment:
    audio_s = one.window.audio_s
    return Segment(
        start_s=min(start_s, audio_s),
        end_s=min(end_s, audio_s),
        text=text,
        language=one.language,
        confidence=one.found.confidence,
        no_speech_probability=one.found.no_speech_probability,
        words=tuple(_word(word, audio_s) for word in words),
    )


def _word(word: TimedWord, audio_s: float) -> Word:
    return Word(
        word.text.strip(), min(word.start_s, audio_s), min(word.end_s, audio_s), min(1.0, max(0.0, word.probability))
    )


def _speech_s(window: Window) -> tuple[float, float]:
    """From where to where someone speaks in a window, in seconds; all of it where nobody knows."""
    if not window.speech:
        return 0.0, window.audio_s
    return window.speech[0].start / SAMPLE_RATE_HZ, window.speech[-1].end / SAMPLE_RATE_HZ


def _heard_thoroughly(segment: Any, language: str, audio_s: float) -> HeardSegment:
    """From faster-whisper's own segment."""
    words = [
        TimedWord(word.word, float(word.start), float(word.end), float(word.probability))
        for word in segment.words or ()
    ]
    return HeardSegment(
        Segment(
            start_s=min(float(segment.start), audio_s),
            end_s=min(float(segment.end), audio_s),
            text=segment.text.strip(),
            language=language,
            confidence=min(1.0, math.exp(segment.avg_logprob)),
            no_speech_probability=float(segment.no_speech_prob),
            words=tuple(_word(word, audio_s) for word in words if word.text.strip()),
        ),
        float(segment.avg_logprob),
        float(segment.compression_ratio),
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
