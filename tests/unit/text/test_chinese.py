from __future__ import annotations

import pytest

from tests.unit.text.build import segment
from typeless_grpc.engine.interface import Script
from typeless_grpc.text.chinese import in_script


@pytest.mark.parametrize(
    ("script", "recognized", "expected"),
    [
        (Script.SIMPLIFIED, "漢字後來乾杯,頭髮,這個", "汉字后来干杯,头发,这个"),
        (Script.SIMPLIFIED, "汉字", "汉字"),
        (Script.TRADITIONAL, "头发皇后干杯后来", "頭髮皇后乾杯後來"),
        (Script.TRADITIONAL, "這個頭髮", "這個頭髮"),
        (Script.TRADITIONAL, "這个头髮", "這個頭髮"),
        (Script.SIMPLIFIED, "Anna 說 OK 🙂", "Anna 说 OK 🙂"),
    ],
)
def test_one_script(script: Script, recognized: str, expected: str):
    assert in_script(segment(recognized, "zh"), script).text == expected


def test_words_follow_and_keep_their_times():
    before = segment("這個頭髮", "zh", words=True)
    after = in_script(before, Script.SIMPLIFIED)
    assert [word.text for word in after.words] == ["这", "个", "头", "发"]
    assert [(w.start_s, w.end_s) for w in after.words] == [(w.start_s, w.end_s) for w in before.words]
