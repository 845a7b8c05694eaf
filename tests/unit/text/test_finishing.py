from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from typeless_grpc.engine.interface import DecodeOptions, Mode, PostProcessing, Script, Task, Ticket
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.speech.transcript import OutputFormat, Transcript
from typeless_grpc.text import profanity
from typeless_grpc.text.finishing import FinishingEngine

SECOND = np.zeros(16_000, dtype=np.float32)


async def finish(text: str, options: DecodeOptions, *, utterance: bool = False) -> Transcript:
    with ThreadPoolExecutor(1) as threads:
        engine = FinishingEngine(ScriptedEngine(lambda _: text), profanity.load(), threads)
        call = engine.recognize if utterance else engine.transcribe
        return (await call(SECOND, options, Ticket())).transcript


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (DecodeOptions(language="zh"), "头发"),
        (DecodeOptions(language="zh", script=Script.TRADITIONAL), "頭髮"),
        (DecodeOptions(language="zh", task=Task.TRANSLATE), "頭髮"),
        (DecodeOptions(language="ja"), "頭髮"),
        (DecodeOptions(language="yue"), "頭髮"),
        (DecodeOptions(language="yue", script=Script.SIMPLIFIED), "头发"),
    ],
    ids=["zh", "zh-Hant", "translated", "ja", "yue", "yue-Hans"],
)
async def test_chinese_comes_in_the_requested_script(options: DecodeOptions, expected: str):
    assert (await finish("頭髮", options)).text == expected


async def test_renditions_are_of_the_processed_text_and_raw_text_is_not():
    options = DecodeOptions(
        post_processing=PostProcessing(Mode.STANDARD), output_formats=(OutputFormat.TEXT, OutputFormat.SRT)
    )
    transcript = await finish("Um, twenty dollars.", options)
    assert (transcript.text, transcript.raw_text) == ("$20.", "Um, twenty dollars.")
    assert [one.format for one in transcript.renditions] == [OutputFormat.TEXT, OutputFormat.SRT]
    assert transcript.renditions[0].content == "$20.\n"


async def test_an_utterance_is_processed_but_not_written_out():
    options = DecodeOptions(post_processing=PostProcessing(Mode.STANDARD), output_formats=(OutputFormat.TEXT,))
    transcript = await finish("twenty dollars", options, utterance=True)
    assert (transcript.text, transcript.renditions) == ("$20", ())


async def test_a_translation_is_tidied_as_english_whatever_was_spoken():
    options = DecodeOptions(language="de", task=Task.TRANSLATE, post_processing=PostProcessing(Mode.STANDARD))
    assert (await finish("um, er, twenty dollars", options)).text == "$20"


async def test_without_options_nothing_changes():
    transcript = await finish("Um, twenty  dollars", DecodeOptions(language="en"))
    assert (transcript.text, transcript.raw_text, transcript.renditions) == ("Um, twenty  dollars", "", ())


@pytest.mark.parametrize("words", [False, True], ids=["without words", "with words"])
async def test_words_time_the_cues_but_are_returned_only_if_requested(words: bool):
    options = DecodeOptions(output_formats=(OutputFormat.SRT, OutputFormat.JSON), word_timestamps=words)
    with ThreadPoolExecutor(1) as threads:
        inner = ScriptedEngine(lambda _: "One two three four.")
        engine = FinishingEngine(inner, profanity.load(), threads)
        transcript = (await engine.transcribe(SECOND, options, Ticket())).transcript
    assert inner.calls[0].options.word_timestamps
    assert bool(transcript.segments[0].words) is words
    assert ('"words"' in transcript.renditions[1].content) is words
