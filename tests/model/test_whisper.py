"""The real model, through the one pass that batches share."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tests.harness import AUDIO, fixture
from typeless_grpc.app.models import catalog
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.vad import Span
from typeless_grpc.config import Settings
from typeless_grpc.engine.cuts import Piece
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.judgement import judged
from typeless_grpc.engine.transcript import SuppressionReason
from typeless_grpc.engine.verification import Checks
from typeless_grpc.engine.whisper import (
    MAX_LENGTH,
    MOST_TOKENS_AT_ONCE,
    MOST_TOKENS_PER_S,
    RECONSIDERED_BEAM_SIZE,
    Device,
    Heard,
    WhisperModel,
    Window,
    choose_device,
)

pytestmark = pytest.mark.model

MODEL = "tiny.en"
DEVICE: Device = choose_device("cpu", "auto")
ENGLISH = DecodeOptions(language="en")
SENTENCES = ("en_short.flac", "en_numbers.ogg", "en_two_sentences.flac", "en_names.ogg")


def load() -> WhisperModel:
    directory = catalog(Settings()).find(MODEL)
    if directory is None:
        pytest.skip(f"no model here: typeless models pull {MODEL}")
    return WhisperModel(MODEL, directory, DEVICE, n_threads=2)


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return load()


def window(file: str, options: DecodeOptions = ENGLISH, *, beam_size: int = 1, shown_s: float = 15.0) -> Window:
    samples: Audio = decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(60.0)).samples
    return Window(samples, (Span(0, len(samples)),), shown_s, options, beam_size)


def silence(n_samples: int, options: DecodeOptions) -> Window:
    return Window(np.zeros(n_samples, np.float32), (), 15.0, options, 1)


def decoded(model: WhisperModel, *windows: Window) -> list[Heard]:
    heard = model.decode(windows, [lambda: True] * len(windows))
    assert None not in heard
    return [one for one in heard if one is not None]


def text(heard: Heard) -> str:
    return " ".join(one.segment.text for one in heard.segments)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_mixed_batch_gives_what_each_gives_alone(model: WhisperModel, beam_size: int):
    timed = replace(ENGLISH, word_timestamps=True)
    windows = [
        window(file, options, beam_size=beam_size)
        for file, options in zip(SENTENCES, itertools.cycle([ENGLISH, timed]), strict=False)
    ]
    assert len({model.batch_key(one) for one in windows}) == 1
    alone = [decoded(model, one)[0] for one in windows]
    together = decoded(model, *windows)
    assert [text(heard) for heard in together] == [text(heard) for heard in alone]
    assert all(text(heard) for heard in together)
    for one, heard in zip(windows, together, strict=True):
        assert any(segment.segment.words for segment in heard.segments) is one.options.word_timestamps


def test_a_prompt_stays_with_its_call(model: WhisperModel):
    named = window("en_names.ogg", replace(ENGLISH, prompt="Kubrendo and Typlexa."))
    fillers = (replace(ENGLISH, prompt="Dinner" + " soon" * count) for count in range(40))
    others = (window("en_names.ogg", options) for options in fillers)
    other = next(one for one in others if model.batch_key(one) == model.batch_key(named))
    together = decoded(model, named, other)
    assert "Typlexa" in text(together[0])
    assert "Typlexa" not in text(together[1])


def test_hotwords_bring_names_that_would_be_missed(model: WhisperModel):
    names = ("Kubrendo", "Typlexa")
    plain = text(decoded(model, window("en_names.ogg"))[0])
    hinted = text(decoded(model, window("en_names.ogg", replace(ENGLISH, hotwords=names)))[0])
    assert not any(name in plain for name in names)
    assert any(name in hinted for name in names)


def test_words_lie_inside_their_audio_and_follow_one_another(model: WhisperModel):
    timed = replace(ENGLISH, word_timestamps=True)
    windows = [window(file, timed) for file in SENTENCES]
    for one, heard in zip(windows, decoded(model, *windows), strict=True):
        words = [word for segment in heard.segments for word in segment.segment.words]
        assert len(words) > 2
        for word in words:
            assert 0.0 <= word.start_s <= word.end_s <= one.audio_s
            assert 0.0 <= word.confidence <= 1.0
        assert all(before.start_s <= after.start_s for before, after in itertools.pairwise(words))
        for segment in heard.segments:
            assert " ".join(word.text for word in segment.segment.words) == segment.segment.text


def test_both_ways_hear_the_sentence(model: WhisperModel):
    expected = fixture("en_short.flac")["text"]
    short, full = window("en_short.flac"), replace(window("en_short.flac"), shown_s=30.0, thorough=True)
    assert text(decoded(model, short)[0]) == text(decoded(model, full)[0]) == expected


def test_what_nobody_wants_any_more_is_left_out(model: WhisperModel):
    windows = [window("en_short.flac"), window("en_numbers.ogg")]
    gone, heard = model.decode(windows, [lambda: False, lambda: True])
    assert gone is None
    assert heard is not None
    assert text(heard)
    assert model.decode(windows, [lambda: False] * 2) == [None, None]
    assert model.decode([replace(windows[0], thorough=True)], [lambda: False]) == [None]


@pytest.mark.parametrize(("n_samples", "thorough"), [(0, False), (100, False), (400, False), (0, True), (100, True)])
def test_however_little_audio_there_is(model: WhisperModel, n_samples: int, thorough: bool):
    options = replace(ENGLISH, word_timestamps=True, temperatures=(0.0,))
    one = replace(silence(n_samples, options), thorough=thorough)
    (heard,) = decoded(model, one)
    for segment in heard.segments:
        assert segment.segment.end_s <= one.audio_s


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"shown_s": 20.0}, id="another window"),
        pytest.param({"beam_size": 2}, id="another beam"),
        pytest.param({"options": replace(ENGLISH, prompt="Once upon a time")}, id="a longer prompt"),
        pytest.param({"thorough": True}, id="thorough"),
    ],
)
def test_what_cannot_share_a_batch_has_another_key(model: WhisperModel, other: dict[str, object]):
    one = silence(SAMPLE_RATE_HZ, ENGLISH)
    assert model.batch_key(one) == model.batch_key(silence(5 * SAMPLE_RATE_HZ, ENGLISH))
    assert model.batch_key(replace(one, **other)) != model.batch_key(one)  # type: ignore[arg-type]
    assert model.batch_key(replace(one, thorough=True)) != model.batch_key(replace(one, thorough=True))


def test_a_model_that_nobody_uses_is_freed():
    model = load()
    decoded(model, silence(SAMPLE_RATE_HZ, replace(ENGLISH, word_timestamps=True, hotwords=("Kubrendo",))))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def with_generate(model: WhisperModel, monkeypatch: pytest.MonkeyPatch, generate: Callable[..., Any]) -> None:
    """Let this be called in place of the model's own, by faster-whisper, too."""
    real = model._model

    class Changed:
        def __getattr__(self, name: str) -> Any:
            return generate if name == "generate" else getattr(real, name)

    changed = Changed()
    monkeypatch.setattr(model, "_model", changed)
    monkeypatch.setattr(model._whisper, "model", changed)


def test_what_sounds_like_silence_is_tried_once_and_given_to_be_judged(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch
):
    generate, n_tries = model._model.generate, 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        return generate(*args, **kwargs)

    with_generate(model, monkeypatch, counting)
    (heard,) = decoded(model, replace(silence(5 * SAMPLE_RATE_HZ, ENGLISH), shown_s=30.0, thorough=True))
    assert n_tries == 1
    result = judged(heard, Piece(0, 5 * SAMPLE_RATE_HZ, (), most_pause=0))
    assert result.segments == ()
    assert [suppressed.reason for suppressed in result.suppressed] == [SuppressionReason.NO_SPEECH]


@dataclass(frozen=True)
class Generated:
    """What a search of the model gives: one text."""

    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float = 0.0


@pytest.mark.parametrize(("n_wanted", "n_expected"), [(1, 1), (2, 2), (100, 3)])
def test_nobody_waits_for_the_next_temperature(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch, n_wanted: int, n_expected: int
):
    word = model._whisper.hf_tokenizer.encode(" again", add_special_tokens=False).ids
    n_tries = 0

    def looping(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        return [Generated([word * 60], [-0.1])]

    with_generate(model, monkeypatch, looping)
    options = replace(ENGLISH, temperatures=(0.0, 0.2, 0.4))
    one = replace(silence(5 * SAMPLE_RATE_HZ, options), shown_s=30.0, thorough=True)
    (heard,) = model.decode([one], [lambda: n_tries < n_wanted])
    assert n_tries == n_expected
    assert (heard is None) == (n_wanted < 3)


def test_a_bounded_text_has_no_more_tokens_than_speech_can(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
    generate, longest = model._model.generate, list[int]()

    def noting(encoded: Any, prompts: list[list[int]], **kwargs: Any) -> Any:
        longest.append(kwargs["max_length"] - len(prompts[0]))
        return generate(encoded, prompts, **kwargs)

    with_generate(model, monkeypatch, noting)
    one = replace(window("en_short.flac"), shown_s=30.0, thorough=True, is_bounded=True)
    assert text(decoded(model, one)[0]) == fixture("en_short.flac")["text"]
    assert longest == [MOST_TOKENS_AT_ONCE + math.ceil(MOST_TOKENS_PER_S * one.audio_s)]
    longest.clear()
    crowded = replace(one, options=replace(ENGLISH, prompt="word " * 400, hotwords=("another",) * 200))
    decoded(model, crowded)
    assert all(n <= MAX_LENGTH for n in longest)


@dataclass(frozen=True)
class Searching:
    """Finds what it is told to, one search after the other: (text, mean log probability) of each."""

    tokenizer: Any
    script: list[tuple[str, float]]
    beam_sizes: list[int] = field(default_factory=list)

    def __call__(self, encoded: Any, prompts: list[list[int]], *, beam_size: int, **_: Any) -> list[Any]:
        said, logprob = self.script[len(self.beam_sizes)]
        self.beam_sizes.append(beam_size)
        tokens = self.tokenizer.encode(" " + said, add_special_tokens=False).ids
        return [Generated([tokens], [logprob]) for _ in prompts]


SURE, UNSURE = ("He turned to the left.", -0.1), ("He turned to the lift.", -0.6)
TWICE = ("He turned to the lift. He turned to the lift.", -0.5)
LIKELIER, LESS_LIKELY, LOOP = ("He turned to the loft.", -0.5), ("He turned to a raft.", -0.9), ("left " * 9, -0.01)


@pytest.mark.parametrize(
    ("script", "n_searches", "expected"),
    [
        pytest.param([SURE], 1, SURE, id="sure at once"),
        pytest.param([UNSURE, LIKELIER], 2, LIKELIER, id="the likelier of two"),
        pytest.param([UNSURE, LESS_LIKELY], 2, UNSURE, id="the first, where it is likelier"),
        pytest.param([UNSURE, TWICE], 2, UNSURE, id="the first, where the other says it twice"),
        pytest.param([LOOP, LESS_LIKELY], 2, LESS_LIKELY, id="the one that passes the checks"),
        pytest.param([UNSURE, LOOP], 2, UNSURE, id="not one that fails them"),
    ],
)
def test_a_doubtful_text_is_searched_for_again_with_more_beams(
    model: WhisperModel,
    monkeypatch: pytest.MonkeyPatch,
    script: list[tuple[str, float]],
    n_searches: int,
    expected: tuple[str, float],
):
    searching = Searching(model._whisper.hf_tokenizer, script)
    with_generate(model, monkeypatch, searching)
    (heard,) = decoded(model, replace(window("en_short.flac"), checks=Checks(), is_reconsidered=True))
    assert searching.beam_sizes == [1, RECONSIDERED_BEAM_SIZE][:n_searches]
    assert text(heard) == expected[0]
    assert heard.doubts == ()


@pytest.mark.parametrize(
    ("asked", "n_wanted"),
    [
        pytest.param({"is_reconsidered": False}, 9, id="nobody asks for it"),
        pytest.param({"is_reconsidered": True}, 1, id="nobody waits for it"),
        pytest.param({"is_reconsidered": True, "beam_size": 5}, 9, id="there were as many beams"),
    ],
)
def test_a_doubtful_text_is_left_at_that_where(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], n_wanted: int
):
    searching = Searching(model._whisper.hf_tokenizer, [UNSURE])
    with_generate(model, monkeypatch, searching)
    one = replace(window("en_short.flac"), checks=Checks(), **asked)
    model.decode([one], [lambda: len(searching.beam_sizes) < n_wanted])
    assert searching.beam_sizes == [one.beam_size]


def test_only_languages_that_have_a_token_are_known(model: WhisperModel):
    assert model.languages == ["en"]
