from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace

import jsonschema
import pysubs2
import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import REPOSITORY
from tests.unit.text.build import segment, transcript
from typeless_grpc.speech.transcript import OutputFormat, Segment
from typeless_grpc.text.cues import MAX_CUE_MS, MAX_LINE_COLUMNS, MAX_LINES, MIN_CUE_MS, cues
from typeless_grpc.text.renditions import rendered

LONG = (
    "The old harbour wakes up slowly on a winter morning. The first boats come home before sunrise, and the fishermen "
    "carry their boxes across the wet stones."
)
SCHEMA = json.loads((REPOSITORY / "docs" / "transcript.schema.json").read_text("utf-8"))


def content(format: OutputFormat, *segments: Segment, audio_s: float | None = None) -> str:
    return rendered(transcript(*segments, audio_s=audio_s), format).content


def test_a_long_segment_is_cut_at_its_sentences_into_readable_cues():
    shown = cues([segment(LONG, end_s=10.0, words=True)], audio_s=10.0)
    assert [" ".join(cue.lines) for cue in shown] == [
        "The old harbour wakes up slowly on a winter morning.",
        "The first boats come home before sunrise,",
        "and the fishermen carry their boxes across the wet stones.",
    ]
    assert shown[1].start_ms == shown[0].end_ms


def test_two_lines_are_about_equally_long():
    (cue,) = cues([segment("The old harbour wakes up slowly on a winter morning.", end_s=4.0)], audio_s=4.0)
    assert cue.lines == ("The old harbour wakes up", "slowly on a winter morning.")


def test_a_short_cue_stays_on_the_screen_where_there_is_room():
    (cue, later) = cues([segment("Yes.", end_s=0.2), segment("So it is.", start_s=5.0)], audio_s=9.0)
    assert cue.end_ms - cue.start_ms == MIN_CUE_MS
    assert later.start_ms == 5000


def test_cues_too_short_to_be_read_share_the_screen():
    (cue,) = cues([segment("Yes.", end_s=0.2), segment("No.", start_s=0.3, end_s=0.6)], audio_s=9.0)
    assert cue.lines == ("Yes.", "No.")


def test_chinese_is_cut_between_characters_and_not_before_a_mark():
    text = "老港口在冬天的早晨慢慢醒来，第一批船在日出之前回家，渔民们把箱子搬过湿漉漉的石头，没有人说很多话。" * 2
    shown = cues([segment(text, "zh", end_s=20.0, words=True)], audio_s=20.0)
    assert "".join("".join(cue.lines) for cue in shown) == text
    assert all(len(line) <= MAX_LINE_COLUMNS // 2 + 1 for cue in shown for line in cue.lines)
    assert not any(line[0] in "，。" for cue in shown for line in cue.lines)


def test_two_people_who_speak_at_once_are_shown_one_after_the_other():
    left, right = segment("I am here.", end_s=4.0), replace(segment("So am I.", end_s=4.0), channel=1)
    first, second = cues([left, right], audio_s=6.0)
    assert first.end_ms == second.start_ms == MIN_CUE_MS


def test_srt():
    assert content(OutputFormat.SRT, segment("Hello.", start_s=1.0, end_s=3.5), audio_s=4.0) == (
        "1\n00:00:01,000 --> 00:00:03,500\nHello.\n"
    )


def test_webvtt_escapes_what_it_would_read_as_markup():
    file = content(OutputFormat.WEBVTT, segment("a <b> & c --> d", start_s=3601.0, end_s=3604.0), audio_s=3605.0)
    assert file == "WEBVTT\n\n01:00:01.000 --> 01:00:04.000\na &lt;b&gt; &amp; c --&gt; d\n"


def test_tsv_has_a_channel_only_where_there_are_several():
    one = segment("Hello\tyou", start_s=1.0, end_s=2.5)
    assert content(OutputFormat.TSV, one) == "start\tend\ttext\n1000\t2500\tHello you\n"
    assert content(OutputFormat.TSV, one, replace(one, channel=1)).splitlines()[2] == "1000\t2500\t1\tHello you"


def test_text_has_a_line_for_each_segment():
    assert content(OutputFormat.TEXT, segment("Hello."), segment("Bye.")) == "Hello.\nBye.\n"


@pytest.mark.parametrize("words", [False, True], ids=["without words", "with words"])
def test_json_follows_its_schema(words: bool):
    value = json.loads(content(OutputFormat.JSON, segment("Hällo you", words=words), segment("再见", "zh")))
    jsonschema.validate(value, SCHEMA)
    assert value["text"] == "Hällo you 再见"
    assert ("words" in value["segments"][0]) == words


@pytest.mark.parametrize(
    ("format", "empty"),
    [
        (OutputFormat.TEXT, ""),
        (OutputFormat.SRT, ""),
        (OutputFormat.WEBVTT, "WEBVTT\n"),
        (OutputFormat.TSV, "start\tend\ttext\n"),
    ],
)
def test_silence_is_a_file_with_nothing_in_it(format: OutputFormat, empty: str):
    assert content(format, audio_s=3.0) == empty


def test_silence_follows_the_schema_too():
    jsonschema.validate(json.loads(content(OutputFormat.JSON, audio_s=3.0)), SCHEMA)


@st.composite
def speech(draw: st.DrawFn) -> tuple[list[Segment], float]:
    """Segments of a recording in order of time, as an engine gives them."""
    now_s, segments = 0.0, []
    for _ in range(draw(st.integers(0, 6))):
        language = draw(st.sampled_from(["en", "zh", "th"]))
        letters = {"en": "abc <>&-{}\\N1.,\u00e9", "zh": "中文，。1a", "th": "กขค"}[language]
        raw = draw(st.text(alphabet=st.sampled_from(letters) | st.characters(exclude_categories=["C"]), max_size=120))
        text = " ".join(raw.split()).strip()
        start_s = now_s + draw(st.floats(0, 3))
        now_s = start_s + draw(st.floats(0.02, 29))
        if any(one.isalnum() for one in text):
            segments.append(segment(text, language, start_s=start_s, end_s=now_s, words=draw(st.booleans())))
    return segments, now_s + 1.0


@given(spoken=speech())
def test_cues_hold_all_text_and_are_readable_and_never_overlap(spoken: tuple[list[Segment], float]):
    segments, audio_s = spoken
    shown = cues(segments, audio_s=audio_s)
    together = "".join("".join(cue.lines) for cue in shown)
    assert "".join(together.split()) == "".join("".join(one.text for one in segments).split())
    for cue in shown:
        assert 0 <= cue.start_ms < cue.end_ms <= round(audio_s * 1000)
        assert 1 <= len(cue.lines) <= MAX_LINES
        assert cue.end_ms - cue.start_ms <= max(MAX_CUE_MS, 30_000 if len(cue.lines[0].split()) == 1 else 0) + 1
    for before, after in itertools.pairwise(shown):
        assert before.end_ms <= after.start_ms


@given(spoken=speech())
def test_webvtt_is_read_back_as_the_same_cues(spoken: tuple[list[Segment], float]):
    segments, audio_s = spoken
    file = content(OutputFormat.WEBVTT, *segments, audio_s=audio_s)
    expected = [(cue.start_ms, cue.end_ms, "\n".join(cue.lines)) for cue in cues(segments, audio_s=audio_s)]
    strict = webvtt.WebVTT.from_string(file, strict=True) if expected else []
    assert [(ms(one.start), ms(one.end), _unescaped(one.raw_text)) for one in strict] == expected
    assert [(one.start, one.end) for one in pysubs2.SSAFile.from_string(file, format_="vtt")] == [
        (start, end) for start, end, _ in expected
    ]


@given(spoken=speech())
def test_srt_is_read_back_as_the_same_cues(spoken: tuple[list[Segment], float]):
    segments, audio_s = spoken
    file = content(OutputFormat.SRT, *segments, audio_s=audio_s)
    expected = [
        (cue.start_ms, cue.end_ms, "\n".join(cue.lines).replace("-->", "→").replace("<", "‹").replace(">", "›"))
        for cue in cues(segments, audio_s=audio_s)
    ]
    read = webvtt.WebVTT.from_buffer(io.BytesIO(file.encode()), format="srt") if expected else []
    assert [(ms(one.start), ms(one.end), one.raw_text) for one in read] == expected
    assert [(one.start, one.end) for one in pysubs2.SSAFile.from_string(file, format_="srt")] == [
        (start, end) for start, end, _ in expected
    ]


def ms(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000)


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
