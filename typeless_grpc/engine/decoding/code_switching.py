"""Decodes chunks in which the language may change: cuts them where it does, and decodes each part in its language.

If the first decode shows signs of a second language, the language of each utterance of the chunk is detected. A few
seconds of unusual speech can be detected as a language that nobody speaks there, so another language is accepted only
if it also makes for the likelier text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.chunk_decoder import ChunkDecoder
from typeless_grpc.engine.decoding.requests import DecodeResult
from typeless_grpc.engine.decoding.submission import DecodeContext, RecognizerOptions
from typeless_grpc.engine.interface import Lane
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.tasks import gather
from typeless_grpc.speech.languages import CLEAR_SPEECH_S, seem_mixed

# Utterances are separated by a pause of this length; their language is detected on their first seconds.
PAUSE_S = 0.25
DETECTED_S = 4.5
# By how much the text in another language must be likelier than in the main one, as a mean log probability of tokens.
MIN_LOGPROB_GAIN = 0.1

ChunkResults = list[tuple[Chunk, DecodeResult]]  # the parts of a chunk, in order, and their results


@dataclass(frozen=True)
class Utterance:
    """A part of a chunk's speech, up to a pause or the end of the chunk."""

    spans: tuple[Span, ...]

    @property
    def speech_s(self) -> float:
        """How much speech it holds, in seconds."""
        return sum(span.end - span.start for span in self.spans) / SAMPLE_RATE_HZ

    def beginning(self) -> Chunk:
        """Return the part on which its language is detected."""
        start = self.spans[0].start
        end = min(self.spans[-1].end, start + round(DETECTED_S * SAMPLE_RATE_HZ))
        return Chunk(start, end, (Span(start, end),), max_pause=end - start)


@dataclass(frozen=True)
class DetectedUtterance:
    """An utterance, its language, and how probable that is."""

    utterance: Utterance
    language: str
    probability: float


@dataclass(frozen=True)
class LanguageRun:
    """The part of a chunk that is in one language. probability: the lowest of its utterances."""

    chunk: Chunk
    language: str
    probability: float


class CodeSwitchingDecoder:
    """Decodes chunks, each in one language or in several."""

    def __init__(self, chunks: ChunkDecoder, options: RecognizerOptions) -> None:
        self._chunks = chunks
        self._options = options

    async def decode(self, context: DecodeContext, chunk: Chunk) -> ChunkResults:
        """Return the result of a chunk, or of its parts where its language changes."""
        result = await self._chunks.decode(context, chunk)
        is_monolingual = context.options.language is not None or context.ticket.lane is Lane.LIVE_INTERIM
        if is_monolingual or self._options.is_full_window or not result.languages or not seem_mixed(result.languages):
            return [(chunk, result)]
        utterances = split_at_pauses(chunk)
        if len(utterances) < 2:
            return [(chunk, result)]
        detected = await self._detect(replace(context, expected_language=result.language), utterances)
        runs = language_runs(chunk, await self._verify(context, chunk, detected, result))
        if [run.language for run in runs] == [result.language]:
            return [(chunk, result)]
        self._chunks.observer.decoded_again("language")
        again = await gather([self._chunks.decode(context.in_language(run.language), run.chunk) for run in runs])
        return [
            (run.chunk, replace(one, language_probability=run.probability))
            for run, one in zip(runs, again, strict=True)
        ]

    async def _detect(self, context: DecodeContext, utterances: Sequence[Utterance]) -> list[DetectedUtterance]:
        languages = await gather(
            [self._chunks.detect_language(context, utterance.beginning()) for utterance in utterances]
        )
        return [DetectedUtterance(utterance, *one) for utterance, one in zip(utterances, languages, strict=True)]

    async def _verify(
        self, context: DecodeContext, chunk: Chunk, detected: Sequence[DetectedUtterance], main: DecodeResult
    ) -> list[DetectedUtterance]:
        """Return the utterances with the main language wherever the detected one does not give a likelier text."""
        others = [run for run in language_runs(chunk, detected) if run.language != main.language]
        in_main = await gather(
            [self._chunks.decode_once(context.in_language(main.language), run.chunk) for run in others]
        )
        in_other = await gather(
            [self._chunks.decode_once(context.in_language(run.language), run.chunk) for run in others]
        )
        refuted = [
            run.chunk.speech
            for run, one, other in zip(others, in_main, in_other, strict=True)
            if other.avg_logprob < one.avg_logprob + MIN_LOGPROB_GAIN
        ]
        return [
            DetectedUtterance(one.utterance, main.language, main.language_probability)
            if any(one.utterance.spans[0] in speech for speech in refuted)
            else one
            for one in detected
        ]


def split_at_pauses(chunk: Chunk) -> list[Utterance]:
    """Cut a chunk's speech at pauses into utterances that are long enough to detect their language."""
    parts: list[list[Span]] = []
    for span in chunk.speech:
        if parts:
            pause_s = (span.start - parts[-1][-1].end) / SAMPLE_RATE_HZ
            if pause_s < PAUSE_S or Utterance(tuple(parts[-1])).speech_s < CLEAR_SPEECH_S:
                parts[-1].append(span)
                continue
        parts.append([span])
    if len(parts) > 1 and Utterance(tuple(parts[-1])).speech_s < CLEAR_SPEECH_S:
        short = parts.pop()
        parts[-1] += short
    return [Utterance(tuple(part)) for part in parts]


def language_runs(chunk: Chunk, detected: Sequence[DetectedUtterance]) -> list[LanguageRun]:
    """Cut a chunk between utterances of different languages."""
    runs: list[tuple[list[Span], str, float]] = []
    for one in detected:
        if runs and runs[-1][1] == one.language:
            spans, language, probability = runs[-1]
            runs[-1] = ([*spans, *one.utterance.spans], language, min(probability, one.probability))
        else:
            runs.append(([*one.utterance.spans], one.language, one.probability))
    edges = [
        chunk.start,
        *((a[0][-1].end + b[0][0].start) // 2 for a, b in itertools.pairwise(runs)),
        chunk.end,
    ]
    return [
        LanguageRun(replace(chunk, start=start, end=end, speech=tuple(spans)), language, probability)
        for (spans, language, probability), (start, end) in zip(runs, itertools.pairwise(edges), strict=True)
    ]
