"""Chinese: its two scripts (OpenCC), and its numbers as they are written (WeTextProcessing's grammar)."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

from typeless_grpc.engine.interface import Script
from typeless_grpc.speech.transcript import Segment
from typeless_grpc.text.edits import Edit, edited


def in_script(segment: Segment, script: Script) -> Segment:
    """Return the segment with text and words in one script, even if the model mixed both."""
    text = _converted(segment.text, script)
    if text == segment.text:
        return segment
    if len(text) == len(segment.text):
        pairs = enumerate(zip(segment.text, text, strict=True))
        return edited(segment, [Edit(i, i + 1, new) for i, (old, new) in pairs if old != new])
    words = tuple(replace(word, text=_converted(word.text, script)) for word in segment.words)
    whole = "".join(word.text for word in words)
    return replace(segment, text=whole if words and " " not in text else text, words=words)


def _converted(text: str, script: Script) -> str:
    if script is Script.SIMPLIFIED:
        return str(_opencc("t2s").convert(text))
    # By way of simplified characters, since the phrases that tell 后 from 後 are known for those; but text that is
    # traditional already is left alone, with the variants its writer chose.
    if all(_opencc("s2t").convert(character) == character for character in set(text)):
        return text
    return str(_opencc("s2t").convert(_opencc("t2s").convert(text)))


@functools.cache
def _opencc(config: str) -> Any:
    import opencc  # takes 0.3 s and 10 MB: only where Chinese is spoken

    return opencc.OpenCC(config)


def written_numbers(text: str) -> list[Edit]:
    """Return the edits that write numbers, amounts, dates, times and measures in figures; idioms (一样) keep words."""
    if not _NUMERALS.search(text):
        return []
    result = _itn().normalize_with_mapping(text.replace("〇", "零"))  # the grammar knows one of the two zeros
    return [
        Edit(one.input_start, one.input_end, _as_written(one.token_type, one.input_text, one.output_text))
        for one in result.mappings
        if one.kind == "replace" and not _stays(text, one.input_start, one.input_end, one.output_text)
    ]


def _stays(text: str, start: int, end: int, written: str) -> bool:
    """Whether a number stays in words in a case that the grammar does not know.

    These are approximate numbers (十几个, 十七八岁, 三四个), idioms (三三两两, 十分), quarters of an hour, days of the
    lunar calendar (八月十五), and counting (一二三).
    """
    words, before, after = text[start:end], text[max(0, start - 1) : start], text[end : end + 1]
    is_about = before == "几" or after in ("几", "来") or re.search(r"\d[~-]\d", written) is not None
    is_part = (before == "月" and not re.search("[号號日]", words)) or after == "刻" or words.endswith("刻")
    return is_about or is_part or words in _IDIOMS or _counted(words)


def _counted(words: str) -> bool:
    return len(words) > 2 and words in "一二三四五六七八九十"


_IDIOMS = frozenset({"十分", "三三两两", "二百五"})
_NUMERALS = re.compile(r"[零〇一二两兩三四五六七八九十百千万亿半]")


@functools.cache
def _itn() -> Any:
    import wetext  # 0.5 s and 30 MB, likewise

    return wetext.Normalizer(lang="zh", operator="itn")


def _as_written(kind: str, words: str, written: str) -> str:
    """Return dates and times with the characters that readers of Chinese expect: 2024年5月3号, not 2024/05/03."""
    figures = re.findall(r"\d+", written)
    if kind == "date":
        marks = re.findall(r"[年月日号號]", words)
        if len(marks) == len(figures):
            return "".join(f"{int(one)}{mark}" for one, mark in zip(figures, marks, strict=True))
    if kind == "time" and len(figures) >= 2:
        when = re.match(r"[^零〇一二两兩三四五六七八九十]*", words)
        hour, *rest = figures if "秒" in words else figures[:2]
        return (when[0] if when else "") + ":".join([str(int(hour)), *rest])
    return written
