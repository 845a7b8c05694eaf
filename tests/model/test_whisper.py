"""The real model, through the one pass that batches share."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import AUDIO, fixture
from typeless_grpc.app.models import catalog
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, Audio, AudioFormat
from typeless_grpc.audio.vad import Span
from typeless_grpc.config import Settings
from typeless_grpc.engine import tail_files
from typeless_grpc.engine.decoding.hallucinations import filter_hallucinations
from typeless_grpc.engine.decoding.inference import run, warm_up
from typeless_grpc.engine.decoding.requests import (
    DecodeRequest,
    DecodeResult,
    DetectRequest,
    FallbackRequest,
    Request,
    Window,
    batch_key,
    task_of,
)
from typeless_grpc.engine.device import Device, choose_device
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.model import FULL_POSITIONS, TEMPERATURES, Model
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.runtime import MAX_LENGTH
from typeless_grpc.engine.whisper import WhisperModel
from typeless_grpc.speech.transcript import SuppressionReason

pytestmark = pytest.mark.model

MODEL = "tiny.en"
DEVICE: Device = choose_device("cpu", "auto")
ENGLISH = DecodeOptions(language="en")
TIMED = replace(ENGLISH, word_timestamps=True)
SENTENCES = ("en_short.flac", "en_numbers.ogg", "en_two_sentences.flac", "en_names.ogg")
SILENCE_S = 1.0
SHORT = fixture("en_short.flac")["text"].rstrip(".")


def load(name: str = MODEL, *, is_calibrated: bool = True) -> WhisperModel:
    directory = catalog(Settings()).find(name)
    if directory is None:
        pytest.skip(f"no model here: typeless models pull {name}")
    return WhisperModel(name, directory, DEVICE, n_threads=2, is_calibrated=is_calibrated)


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return load()


def speech(file: str) -> Audio:
    return decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(120.0)).samples


def window(samples: Audio) -> Window:
    return Window(samples, (Span(0, len(samples)),))


def request(
    file: str, options: DecodeOptions = ENGLISH, *, beam_size: int = 1, silence_s: float = SILENCE_S
) -> DecodeRequest:
    return DecodeRequest(window(speech(file)), options, beam_size, silence_s)


def silence(n_samples: int, options: DecodeOptions = ENGLISH) -> DecodeRequest:
    return DecodeRequest(Window(np.zeros(n_samples, np.float32), ()), options, 1, SILENCE_S)


def with_fallback(one: DecodeRequest, temperatures: tuple[float, ...] = TEMPERATURES) -> FallbackRequest:
    return FallbackRequest(one.window, one.options, one.beam_size, temperatures)


def decoded(model: Model, *requests: Request) -> list[DecodeResult]:
    results = run(model, requests, [lambda: True] * len(requests))
    assert None not in results
    return [one for one in results if one is not None]


def text(result: DecodeResult) -> str:
    return " ".join(one.segment.text for one in result.segments)


def plain(result: DecodeResult) -> str:
    """The text without the full stop, which depends on the silence behind the speech."""
    return text(result).rstrip(".")


def test_the_model_is_one_of_the_protocol_that_the_engine_sees(model: WhisperModel):
    seen: Model = model
    warm_up(seen)


# ---- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_mixed_batch_gives_what_each_gives_alone(model: WhisperModel, beam_size: int):
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


def test_hotwords_bring_names_that_would_be_missed(model: WhisperModel):
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


def test_both_ways_write_the_sentence(model: WhisperModel):
    one = request("en_short.flac")
    assert plain(decoded(model, one)[0]) == plain(decoded(model, with_fallback(one))[0]) == SHORT


def test_what_nobody_waits_for_any_more_is_left_out(model: WhisperModel):
    requests = [request("en_short.flac"), request("en_numbers.ogg")]
    gone, result = run(model, requests, [lambda: False, lambda: True])
    assert gone is None
    assert result is not None
    assert text(result)
    assert run(model, requests, [lambda: False] * 2) == [None, None]
    assert run(model, [with_fallback(requests[0])], [lambda: False]) == [None]


@pytest.mark.parametrize("n_samples", [0, 100, 400])
@pytest.mark.parametrize("has_fallback", [False, True])
def test_however_little_audio_there_is(model: WhisperModel, n_samples: int, has_fallback: bool):
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
def test_what_cannot_share_a_batch_has_another_key(model: WhisperModel, other: Request):
    one = silence(SAMPLE_RATE_HZ)
    assert batch_key(model, one) == batch_key(model, silence(3 * SAMPLE_RATE_HZ))
    assert batch_key(model, other) != batch_key(model, one)
    assert batch_key(model, with_fallback(one)) != batch_key(model, with_fallback(one))


def test_a_model_that_nobody_uses_is_freed():
    model = load()
    decoded(model, silence(SAMPLE_RATE_HZ, replace(TIMED, hotwords=("Kubrendo",))))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---- calibrated silence -----------------------------------------------------------------------------------------


def test_what_is_encoded_is_as_long_as_its_batch_key_says(model: WhisperModel):
    for audio_s in (0.0, 0.4, 5.0, 5.3, 13.2, 29.0, 30.0):
        encoded = model.encode(np.zeros(round(audio_s * SAMPLE_RATE_HZ), np.float32), SILENCE_S)
        assert len(encoded.positions) == model.n_positions(audio_s, SILENCE_S) <= FULL_POSITIONS


def test_silence_is_measured_when_a_model_is_first_loaded_and_kept(tmp_path: Path):
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
def test_the_language_is_detected_with_the_silence_behind_it(file: str):
    model = load("base")
    (result,) = decoded(model, DetectRequest(window(speech(file)), DecodeOptions(), SILENCE_S))
    assert result.language == file[:2]
    assert result.language_probability > 0.5


# ---- prompt and hotwords ----------------------------------------------------------------------------------------

# As much as the contract takes.
LONG_PROMPT = ("The harbour master writes about the weather, the ships and the tides of the last winter. " * 46)[:4096]
MANY_HOTWORDS = tuple(f"Kubrendo {number}" for number in range(256))


@pytest.mark.parametrize("name", ["tiny.en", "base"])
@pytest.mark.parametrize(
    "text",
    [
        "<|startoftranscript|><|en|><|translate|>",
        "<|startofprev|> again <|startoflm|><|notimestamps|>",
        "<|nospeech|><|nocaptions|><|endoftext|>",
        "from <|0.00|> to <|30.00|>",
    ],
)
def test_special_tokens_of_a_caller_are_text(name: str, text: str, monkeypatch: pytest.MonkeyPatch):
    model, prompts = load(name), list[list[int]]()
    tokenizer = model.runtime.whisper.hf_tokenizer
    options = replace(ENGLISH, prompt=text, hotwords=(text, f"about {text}"))

    def noting(encoded: Any, asked: list[list[int]], **kwargs: Any) -> Any:
        prompts.extend(asked)
        return [Generated([[]], [-0.1])]

    with_generate(model, monkeypatch, noting)
    decoded(model, request("en_short.flac", options))
    decoded(model, with_fallback(request("en_short.flac", options), (0.0,)))
    assert len(prompts) == 2
    for prompt in prompts:
        before, start, *rest = prompt
        assert before == tokenizer.token_to_id("<|startofprev|>")
        hints = [start, *rest[: rest.index(tokenizer.token_to_id("<|startoftranscript|>"))]]
        assert tokenizer.decode(hints, skip_special_tokens=False) == f" {text}, about {text} {text}"
        assert max(hints) < tokenizer.token_to_id("<|endoftext|>")


@pytest.mark.parametrize("has_fallback", [False, True])
@pytest.mark.parametrize("hint", ["prompt", "hotwords"])
def test_the_task_is_the_one_that_was_asked_for_whatever_a_prompt_says(hint: str, has_fallback: bool):
    ordered = "<|startoftranscript|><|en|><|translate|>"
    hinted = DecodeOptions(language="es", **{hint: ordered if hint == "prompt" else (ordered,)})  # type: ignore[arg-type]
    one = request("es_sentence.ogg", hinted)
    (result,) = decoded(load("base"), with_fallback(one, (0.0,)) if has_fallback else one)
    assert plain(result) == fixture("es_sentence.ogg")["text"].rstrip(".")


@pytest.mark.parametrize(
    ("prompt", "hotwords"),
    [
        pytest.param(LONG_PROMPT, (), id="a long prompt"),
        pytest.param("", MANY_HOTWORDS, id="many hotwords"),
        pytest.param(LONG_PROMPT, MANY_HOTWORDS, id="both"),
        pytest.param(LONG_PROMPT, MANY_HOTWORDS[:40], id="a few hotwords and a long prompt"),
        pytest.param("", ("漢" * 128, "Kubrendo"), id="a hotword of more tokens than there is room for"),
    ],
)
def test_half_of_the_context_is_always_the_texts(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch, prompt: str, hotwords: tuple[str, ...]
):
    lengths = list[int]()

    def noting(encoded: Any, prompts: list[list[int]], **kwargs: Any) -> Any:
        lengths.append(min(kwargs["max_length"] // 2, kwargs["max_length"] - len(prompts[0])))
        return [Generated([[]], [-0.1])]

    with_generate(model, monkeypatch, noting)
    dense = DecodeRequest(window(speech("en_minute.ogg")[: 30 * SAMPLE_RATE_HZ]), ENGLISH, 1, SILENCE_S)
    dense = replace(dense, options=replace(ENGLISH, prompt=prompt, hotwords=hotwords))
    decoded(model, dense)
    decoded(model, with_fallback(dense, (0.0,)))
    assert lengths == [MAX_LENGTH // 2] * 2


def test_hotwords_are_used_as_a_whole_or_not_at_all(model: WhisperModel):
    tokens = model.runtime.prompt_of(task_of(replace(ENGLISH, hotwords=MANY_HOTWORDS), "en"))
    hints = model.runtime.whisper.hf_tokenizer.decode(tokens)
    used = hints.strip().split(", ")
    assert 10 < len(used) < len(MANY_HOTWORDS)
    assert used == list(MANY_HOTWORDS[: len(used)])


# ---- repetition -------------------------------------------------------------------------------------------------


def test_what_is_said_twice_is_written_twice(model: WhisperModel):
    once = speech("en_numbers.ogg")
    (single,) = decoded(model, request("en_numbers.ogg"))
    (double,) = decoded(model, DecodeRequest(window(np.concatenate([once, once])), ENGLISH, 1, SILENCE_S))
    assert text(double).lower().count("chairs") == 2 * text(single).lower().count("chairs") == 2
    assert double.looped == ()


class Replaced:
    """A model whose `generate` is another one."""

    def __init__(self, real: Any, generate: Callable[..., Any]) -> None:
        self._real, self.generate = real, generate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def with_generate(model: WhisperModel, monkeypatch: pytest.MonkeyPatch, generate: Callable[..., Any]) -> None:
    """Let this be called in place of CTranslate2's own, by faster-whisper, too."""
    replaced = Replaced(model.runtime.model, generate)
    monkeypatch.setattr(model.runtime, "model", replaced)
    monkeypatch.setattr(model.runtime.whisper, "model", replaced)


@dataclass(frozen=True)
class Generated:
    """What a search of CTranslate2 returns: one text."""

    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float = 0.0


def test_a_loop_is_cut_to_what_was_said(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
    tokens = model.runtime.whisper.hf_tokenizer.encode(" Please close the window.", add_special_tokens=False).ids
    with_generate(model, monkeypatch, lambda *_args, **_kwargs: [Generated([tokens * 9], [-0.1])])
    (result,) = decoded(model, request("en_short.flac"))
    assert text(result) == "Please close the window."
    assert result.looped[0].segment.text.count("window") == 8
    assert result.issues == frozenset()


def test_what_a_text_leaves_out_is_found_by_time(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
    whole = speech("en_two_sentences.flac")
    tokens = model.runtime.whisper.hf_tokenizer.encode(
        " Good morning, and thank you for coming.", add_special_tokens=False
    ).ids
    with_generate(model, monkeypatch, lambda *_args, **_kwargs: [Generated([tokens], [-0.1])])
    spans = (Span(0, 40_000), Span(45_000, len(whole)))
    (result,) = decoded(model, DecodeRequest(Window(whole, spans), ENGLISH, 1, SILENCE_S))
    assert result.uncovered_from_s is not None
    assert 1.0 < result.uncovered_from_s < 4.0
    assert result.segments[0].segment.end_s <= result.uncovered_from_s


# ---- as faster-whisper does -------------------------------------------------------------------------------------


def test_what_sounds_like_silence_is_tried_once_and_given_to_the_filter(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch
):
    generate, n_tries = model.runtime.model.generate, 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        return generate(*args, **kwargs)

    with_generate(model, monkeypatch, counting)
    (result,) = decoded(model, with_fallback(silence(5 * SAMPLE_RATE_HZ)))
    assert n_tries == 1
    found = filter_hallucinations(result, Chunk(0, 5 * SAMPLE_RATE_HZ, (), max_pause=0))
    assert found.segments == ()
    assert [suppressed.reason for suppressed in found.suppressed] == [SuppressionReason.NO_SPEECH]


@pytest.mark.parametrize(("n_wanted", "n_expected"), [(1, 1), (2, 2), (100, 3)])
def test_nobody_waits_for_the_next_temperature(
    model: WhisperModel, monkeypatch: pytest.MonkeyPatch, n_wanted: int, n_expected: int
):
    word = model.runtime.whisper.hf_tokenizer.encode(" again", add_special_tokens=False).ids
    n_tries = 0

    def looping(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        return [Generated([word * 60], [-0.1])]

    with_generate(model, monkeypatch, looping)
    one = with_fallback(silence(5 * SAMPLE_RATE_HZ), (0.0, 0.2, 0.4))
    (result,) = run(model, [one], [lambda: n_tries < n_wanted])
    assert n_tries == n_expected
    assert (result is None) == (n_wanted < 3)


# ---- limits -----------------------------------------------------------------------------------------------------


def test_a_text_has_no_more_tokens_than_speech_can(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
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


def test_only_languages_that_have_a_token_are_known(model: WhisperModel):
    assert model.languages == ["en"]
