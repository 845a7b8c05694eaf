"""Groups words into sentences, by punctuation and pauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typeless_grpc.engine.model import TimedWord

SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")


@dataclass(frozen=True)
class SentencePolicy:
    """Where a sentence ends.

    pause_s: at a pause this long, whatever the text before it. end_pause_s: at a pause this long after a full stop, so
    that "Mr. Brown" stays together. longest_s: after this many seconds, at the first pause.
    """

    pause_s: float = 1.0
    end_pause_s: float = 0.15
    longest_s: float = 15.0


def sentences(words: Sequence[TimedWord], policy: SentencePolicy) -> list[list[TimedWord]]:
    """Group words into sentences, in order; every word is in exactly one."""
    groups: list[list[TimedWord]] = []
    for word in words:
        if groups and not _is_boundary(groups[-1], word, policy):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _is_boundary(group: Sequence[TimedWord], following: TimedWord, policy: SentencePolicy) -> bool:
    pause_s = following.start_s - group[-1].end_s
    if pause_s >= policy.pause_s:
        return True
    if group[-1].text.rstrip().endswith(SENTENCE_ENDS) and pause_s >= policy.end_pause_s:
        return True
    return pause_s > 0 and group[-1].end_s - group[0].start_s >= policy.longest_s
