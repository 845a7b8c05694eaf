"""The texts of the real model: prompts and hotwords, repetition, temperatures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.harness import fixture
from tests.model.whisper_bench import (
    ENGLISH,
    SILENCE_S,
    Generated,
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
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.hallucinations import filter_hallucinations
from typeless_grpc.engine.decoding.inference import run
from typeless_grpc.engine.decoding.requests import (
    DecodeRequest,
    Window,
    task_of,
)
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.runtime import MAX_LENGTH
from typeless_grpc.engine.whisper import WhisperModel
from typeless_grpc.speech.transcript import SuppressionReason

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return load()


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
def test_special_tokens_in_a_prompt_are_text(name: str, text: str, monkeypatch: pytest.MonkeyPatch):
    model, prompts = load(name), list[list[int]]()
    tokenizer = model.runtime.whisper.hf_tokenizer
    options = replace(ENGLISH, prompt=text, hotwords=(text, f"about {text}"))

    def noting(encoded: Any, given: list[list[int]], **kwargs: Any) -> Any:
        prompts.extend(given)
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
def test_no_prompt_changes_the_task(hint: str, has_fallback: bool):
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
def test_half_of_the_context_is_reserved_for_the_text(
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


def test_hotwords_are_used_whole_or_not_at_all(model: WhisperModel):
    tokens = model.runtime.prompt_of(task_of(replace(ENGLISH, hotwords=MANY_HOTWORDS), "en"))
    hints = model.runtime.whisper.hf_tokenizer.decode(tokens)
    used = hints.strip().split(", ")
    assert 10 < len(used) < len(MANY_HOTWORDS)
    assert used == list(MANY_HOTWORDS[: len(used)])


# ---- repetition -------------------------------------------------------------------------------------------------


def test_a_phrase_that_is_spoken_twice_is_written_twice(model: WhisperModel):
    once = speech("en_numbers.ogg")
    (single,) = decoded(model, request("en_numbers.ogg"))
    (double,) = decoded(model, DecodeRequest(window(np.concatenate([once, once])), ENGLISH, 1, SILENCE_S))
    assert text(double).lower().count("chairs") == 2 * text(single).lower().count("chairs") == 2
    assert double.looped == ()


def test_a_loop_is_reduced_to_the_spoken_words(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
    tokens = model.runtime.whisper.hf_tokenizer.encode(" Please close the window.", add_special_tokens=False).ids
    with_generate(model, monkeypatch, lambda *_args, **_kwargs: [Generated([tokens * 9], [-0.1])])
    (result,) = decoded(model, request("en_short.flac"))
    assert text(result) == "Please close the window."
    assert sum(one.segment.text.count("window") for one in result.looped) == 8
    assert result.issues == frozenset()


def test_speech_that_a_text_leaves_out_is_found_by_time(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
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


def test_text_over_silence_is_decoded_once_and_left_to_the_filter(model: WhisperModel, monkeypatch: pytest.MonkeyPatch):
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
def test_decoding_stops_between_temperatures_when_it_is_not_wanted(
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
