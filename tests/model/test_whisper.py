"""The real model: batches, the silent tail, limits."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model.whisper_bench import (
    DEVICE,
    ENGLISH,
    MODEL,
    SENTENCES,
    SHORT,
    SILENCE_S,
    TIMED,
    decoded,
    load,
    plain,
    request,
    silence,
    speech,
    text,
    window,
    with_fallback,
    with_generate,
)
from typeless_grpc.app.models import catalog
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.config import Settings
from typeless_grpc.engine import tail_files
from typeless_grpc.engine.decoding.inference import run, warm_up
from typeless_grpc.engine.decoding.requests import (
    DetectRequest,
    Request,
    batch_key,
    task_of,
)
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.model import FULL_POSITIONS, Model
from typeless_grpc.engine.runtime import MAX_LENGTH
from typeless_grpc.engine.whisper import WhisperModel

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return load()


def test_the_model_implements_the_protocol(model: WhisperModel):
    seen: Model = model
    warm_up(seen)


# ---- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_mixed_batch_gives_the_texts_of_single_decodes(model: WhisperModel, beam_size: int):
    requests = [
        request(file, options, beam_size=beam_size)
        for file, options in zip(SENTENCES, itertools.cycle([ENGLISH, TIMED]), strict=False)
    ]
    together = {
        batch_key(model, one): [two for two in requests if batch_key(model, two) == batch_key(model, one)]
        for one in requests
    }
    assert max(len(batch) for batch in together.values()) > 1
    for batch in together.values():
        alone = [decoded(model, one)[0] for one in batch]
        results = decoded(model, *batch)
        assert [text(result) for result in results] == [text(result) for result in alone]
        for one, result in zip(batch, results, strict=True):
            assert text(result)
            assert any(raw.segment.words for raw in result.segments) is one.options.word_timestamps


def test_a_prompt_stays_with_its_call(model: WhisperModel):
    named = request("en_names.ogg", replace(ENGLISH, prompt="Kubrendo and Typlexa."))
    fillers = (replace(ENGLISH, prompt="Dinner" + " soon" * count) for count in range(40))
    others = (request("en_names.ogg", options) for options in fillers)
    other = next(one for one in others if batch_key(model, one) == batch_key(model, named))
    together = decoded(model, named, other)
    assert "Typlexa" in text(together[0])
    assert "Typlexa" not in text(together[1])


def test_hotwords_bring_names_that_are_missed_without_them(model: WhisperModel):
    names = ("Kubrendo", "Typlexa")
    plain = text(decoded(model, request("en_names.ogg"))[0])
    hinted = text(decoded(model, request("en_names.ogg", replace(ENGLISH, hotwords=names)))[0])
    assert not any(name in plain for name in names)
    assert any(name in hinted for name in names)


def test_words_lie_inside_their_audio_and_follow_one_another(model: WhisperModel):
    for file in SENTENCES:
        one = request(file, TIMED)
        (result,) = decoded(model, one)
        words = [word for raw in result.segments for word in raw.segment.words]
        assert len(words) > 2
        for word in words:
            assert 0.0 <= word.start_s <= word.end_s <= one.window.audio_s
            assert 0.0 <= word.confidence <= 1.0
        assert all(before.start_s <= after.start_s for before, after in itertools.pairwise(words))
        for raw in result.segments:
            assert "".join(word.text for word in raw.segment.words) == raw.segment.text.replace(" ", "")


def test_both_encoder_windows_write_the_sentence(model: WhisperModel):
    one = request("en_short.flac")
    assert plain(decoded(model, one)[0]) == plain(decoded(model, with_fallback(one))[0]) == SHORT


def test_work_that_is_not_wanted_any_more_is_skipped(model: WhisperModel):
    requests = [request("en_short.flac"), request("en_numbers.ogg")]
    unwanted, result = run(model, requests, [lambda: False, lambda: True])
    assert unwanted is None
    assert result is not None
    assert text(result)
    assert run(model, requests, [lambda: False] * 2) == [None, None]
    assert run(model, [with_fallback(requests[0])], [lambda: False]) == [None]


@pytest.mark.parametrize("n_samples", [0, 100, 400])
@pytest.mark.parametrize("has_fallback", [False, True])
def test_any_length_of_audio_can_be_decoded(model: WhisperModel, n_samples: int, has_fallback: bool):
    one = silence(n_samples, TIMED)
    (result,) = decoded(model, with_fallback(one, (0.0,)) if has_fallback and n_samples < 400 else one)
    for raw in result.segments:
        assert raw.segment.end_s <= one.window.audio_s


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(silence(12 * SAMPLE_RATE_HZ), id="more audio"),
        pytest.param(replace(silence(SAMPLE_RATE_HZ), beam_size=2), id="another beam"),
        pytest.param(silence(SAMPLE_RATE_HZ, replace(ENGLISH, prompt="Once upon a time")), id="a longer prompt"),
        pytest.param(with_fallback(silence(SAMPLE_RATE_HZ)), id="with fallback"),
        pytest.param(DetectRequest(silence(SAMPLE_RATE_HZ).window, ENGLISH, SILENCE_S), id="only the language"),
    ],
)
def test_requests_that_cannot_share_a_batch_have_different_keys(model: WhisperModel, other: Request):
    one = silence(SAMPLE_RATE_HZ)
    assert batch_key(model, one) == batch_key(model, silence(3 * SAMPLE_RATE_HZ))
    assert batch_key(model, other) != batch_key(model, one)
    assert batch_key(model, with_fallback(one)) != batch_key(model, with_fallback(one))


def test_a_model_that_nobody_uses_is_freed():
    model = load()
    decoded(model, silence(SAMPLE_RATE_HZ, replace(TIMED, hotwords=("Kubrendo",))))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# ---- calibrated silence -----------------------------------------------------------------------------------------


def test_encoder_output_has_the_length_of_its_batch_key(model: WhisperModel):
    for audio_s in (0.0, 0.4, 5.0, 5.3, 13.2, 29.0, 30.0):
        encoded = model.encode(np.zeros(round(audio_s * SAMPLE_RATE_HZ), np.float32), SILENCE_S)
        assert len(encoded.positions) == model.n_positions(audio_s, SILENCE_S) <= FULL_POSITIONS


def test_silence_is_calibrated_at_the_first_load_and_stored(tmp_path: Path):
    directory = catalog(Settings()).find(MODEL)
    if directory is None:
        pytest.skip(f"no model here: typeless models pull {MODEL}")
    copy = tmp_path / "model"
    copy.mkdir()
    for file in directory.iterdir():
        if file.name != tail_files.FILE_NAME:
            (copy / file.name).symlink_to(file)
    for _ in range(2):
        model = WhisperModel(MODEL, copy, DEVICE, n_threads=2)
        assert plain(decoded(model, request("en_short.flac"))[0]) == SHORT
        assert model.n_positions(1.0, SILENCE_S) < FULL_POSITIONS
    kept = (copy / tail_files.FILE_NAME).stat().st_mtime_ns
    WhisperModel(MODEL, copy, DEVICE, n_threads=2)
    assert (copy / tail_files.FILE_NAME).stat().st_mtime_ns == kept


def test_without_calibrated_silence_all_of_30_s_is_encoded():
    model = load(is_calibrated=False)
    assert model.n_positions(1.0, SILENCE_S) == FULL_POSITIONS
    assert plain(decoded(model, request("en_short.flac"))[0]) == SHORT


@pytest.mark.parametrize("cut_s", [0.5, 1.0, 1.5, 2.5, 4.0])
def test_texts_of_short_speech_end(model: WhisperModel, cut_s: float):
    """Without silence behind it, most of these are written again and again until the text is cut off.

    Cut within a word, a few are with 30 s of silence as well.
    """
    full = load(is_calibrated=False)
    for file in SENTENCES:
        samples = speech(file)[: round(cut_s * SAMPLE_RATE_HZ)]
        task = task_of(ENGLISH, "en")
        ours, theirs = (
            one.decode([one.encode(samples, SILENCE_S)], [task], beam_size=1, max_tokens=100)[0]
            for one in (model, full)
        )
        assert len(ours.tokens) <= max(8 + 8 * cut_s, len(theirs.tokens))


def test_words_have_the_same_times_as_with_30_s(model: WhisperModel):
    """The alignment looks at the frames of the audio only, whatever silence is behind them."""
    full = load(is_calibrated=False)
    apart = []
    for file in SENTENCES:
        one = request(file, TIMED)
        ours, theirs = ([w for raw in decoded(m, one)[0].segments for w in raw.segment.words] for m in (model, full))
        if [word.text for word in ours] == [word.text for word in theirs]:
            apart += [abs(a.start_s - b.start_s) for a, b in zip(ours, theirs, strict=True)]
    assert len(apart) > 20
    assert max(apart) < 0.25


@pytest.mark.parametrize(
    "file", ["de_sentence.ogg", "es_sentence.ogg", "fr_sentence.ogg", "zh_sentence.ogg", "en_short.flac"]
)
def test_the_language_is_detected_with_the_silent_tail(file: str):
    model = load("base")
    (result,) = decoded(model, DetectRequest(window(speech(file)), DecodeOptions(), SILENCE_S))
    assert result.language == file[:2]
    assert result.language_probability > 0.5


# ---- limits -----------------------------------------------------------------------------------------------------


def test_the_length_of_a_text_is_bounded_by_its_audio(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
    generate, longest = model.runtime.model.generate, list[int]()

    def noting(encoded: Any, prompts: list[list[int]], **kwargs: Any) -> Any:
        longest.append(min(kwargs["max_length"] // 2, kwargs["max_length"] - len(prompts[0])))
        return generate(encoded, prompts, **kwargs)

    with_generate(model, monkeypatch, noting)
    (result,) = decoded(model, request("en_short.flac"))
    assert plain(result) == SHORT
    assert longest == [16 + math.ceil(7 * request("en_short.flac").window.audio_s)]
    longest.clear()
    decoded(model, request("en_short.flac", replace(ENGLISH, prompt="word " * 400, hotwords=("another",) * 200)))
    assert all(0 < n <= MAX_LENGTH for n in longest)


def test_only_languages_with_a_token_are_known(model: WhisperModel):
    assert model.languages == ["en"]
