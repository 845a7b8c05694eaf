"""The last step of every transcription: writes Chinese in one script, edits the text, and makes the renditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

from typeless_grpc.audio.formats import Audio
from typeless_grpc.engine.interface import DecodeOptions, Engine, Recognition, Script, Task, Ticket
from typeless_grpc.speech.transcript import OutputFormat, Segment, Transcript
from typeless_grpc.text.chinese import in_script
from typeless_grpc.text.observer import TextObserver
from typeless_grpc.text.post_processing import PostProcessor
from typeless_grpc.text.profanity import Profanity
from typeless_grpc.text.renditions import rendered

TIMED_FORMATS = frozenset({OutputFormat.SRT, OutputFormat.WEBVTT, OutputFormat.TSV})


class FinishingEngine:
    """An engine that edits and renders the text of another engine, as the options request."""

    def __init__(
        self, engine: Engine, profanity: Profanity, executor: Executor, observer: TextObserver | None = None
    ) -> None:
        """executor: threads for the work on text, which takes about a millisecond a sentence."""
        self._engine = engine
        self._profanity = profanity
        self._executor = executor
        self._observer = observer

    def use(self, profanity: Profanity) -> None:
        """Mask these words from now on."""
        self._profanity = profanity

    @property
    def backlog_s(self) -> float:
        """See `Engine`."""
        return self._engine.backlog_s

    @property
    def stalled_s(self) -> float:
        """See `Engine`."""
        return self._engine.stalled_s

    async def transcribe(self, audio: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`; the transcript has its renditions."""
        # The times of cues come from words, also if the caller does not request words.
        words = options.word_timestamps or needs_words(options)
        inner = replace(options, word_timestamps=words, output_formats=())
        return await self._finished(await self._engine.transcribe(audio, inner, ticket), options)

    async def recognize(self, utterance: Audio, options: DecodeOptions, ticket: Ticket) -> Recognition:
        """See `Engine`. An utterance is only a part of a stream, so it has no renditions."""
        recognition = await self._engine.recognize(utterance, options, ticket)
        return await self._finished(recognition, replace(options, output_formats=()))

    async def _finished(self, recognition: Recognition, options: DecodeOptions) -> Recognition:
        if not needs_work(recognition.transcript, options):
            return recognition
        started_s = time.monotonic()
        transcript = await asyncio.get_running_loop().run_in_executor(
            self._executor, finished, recognition.transcript, options, self._profanity
        )
        if self._observer is not None:
            self._observer.text_finished(time.monotonic() - started_s)
        return replace(recognition, transcript=transcript)


def needs_words(options: DecodeOptions) -> bool:
    """Whether one of the formats has times."""
    return not TIMED_FORMATS.isdisjoint(options.output_formats)


def needs_work(transcript: Transcript, options: DecodeOptions) -> bool:
    """Whether finishing would change anything."""
    is_requested = options.post_processing.is_requested or bool(options.output_formats)
    return is_requested or any(_script(segment, options) for segment in transcript.segments)


def finished(transcript: Transcript, options: DecodeOptions, profanity: Profanity) -> Transcript:
    """Return the transcript as the options request it, with renditions."""
    segments = tuple(_in_its_script(segment, options) for segment in transcript.segments)
    suppressed = tuple(replace(one, segment=_in_its_script(one.segment, options)) for one in transcript.suppressed)
    transcript = replace(transcript, segments=segments, suppressed=suppressed)
    translated = options.task is Task.TRANSLATE
    post = PostProcessor(options.post_processing, profanity, translated=translated)
    transcript = with_renditions(post.transcript(transcript), options.output_formats, words=options.word_timestamps)
    return transcript if options.word_timestamps else without_words(transcript)


def with_renditions(transcript: Transcript, formats: Sequence[OutputFormat], *, words: bool) -> Transcript:
    """Return the transcript with a rendition of all of it for each format. words: whether JSON has them."""
    plain = transcript if words else without_words(transcript)
    renditions = (rendered(transcript if format in TIMED_FORMATS else plain, format) for format in formats)
    return replace(transcript, renditions=tuple(renditions))


def without_words(transcript: Transcript) -> Transcript:
    """Return the transcript without its words, for requests that do not want them."""
    segments = tuple(replace(segment, words=()) for segment in transcript.segments)
    suppressed = tuple(replace(one, segment=replace(one.segment, words=())) for one in transcript.suppressed)
    return replace(transcript, segments=segments, suppressed=suppressed)


def _in_its_script(segment: Segment, options: DecodeOptions) -> Segment:
    script = _script(segment, options)
    return segment if script is None else in_script(segment, script)


def _script(segment: Segment, options: DecodeOptions) -> Script | None:
    """Return the script to write Chinese in: simplified by default. None keeps the model's own, Cantonese's default."""
    if options.task is Task.TRANSLATE:
        return None
    if segment.language == "zh":
        return options.script or Script.SIMPLIFIED
    return options.script if segment.language == "yue" else None
