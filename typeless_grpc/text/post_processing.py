"""Edits the recognized text: by the rules of its language, masked, replaced.

The order is the contract's: the mode, then profanity, then the caller's replacements. Every step is a list of edits, so
the times of the words follow, and a segment has the same text with words and without.
"""

from __future__ import annotations

from dataclasses import replace

from typeless_grpc.engine.interface import Mode, PostProcessing
from typeless_grpc.speech.transcript import Segment, Transcript
from typeless_grpc.text import chinese, tidying
from typeless_grpc.text.edits import Edit, edited
from typeless_grpc.text.matching import WholeWords
from typeless_grpc.text.numbers import written_numbers
from typeless_grpc.text.profanity import Profanity


class PostProcessor:
    """The compiled rules of one request. Use it for all of a recording or stream."""

    def __init__(self, options: PostProcessing, profanity: Profanity, *, translated: bool = False) -> None:
        """translated: the text is English, whatever was spoken."""
        self._options = options
        self._profanity = profanity
        self._translated = translated
        self._wanted = WholeWords(options.replacements)

    def transcript(self, transcript: Transcript) -> Transcript:
        """Return the transcript with edited text, and the recognized text in `raw_text`. Empty segments are left out.

        Takes about a millisecond a sentence: not for the event loop.
        """
        if not self._options.is_requested:
            return transcript
        processed = (self.segment(segment) for segment in transcript.segments)
        kept = tuple(segment for segment in processed if segment.text)
        return replace(transcript, segments=kept, raw_text=transcript.text)

    def segment(self, segment: Segment) -> Segment:
        """Return the segment with edited text, which may be empty."""
        language = "en" if self._translated else segment.language
        segment = self._tidied(segment, language)
        if self._options.mask_profanity:
            segment = edited(segment, self._profanity.masked(segment.text, language))
        segment = self._replaced(segment, language)
        return (
            segment if any(character.isalnum() for character in segment.text) else replace(segment, text="", words=())
        )

    def _tidied(self, segment: Segment, language: str) -> Segment:
        if self._options.mode is Mode.NONE:
            return segment
        if self._options.mode is Mode.STANDARD:
            segment = edited(segment, tidying.fillers(segment.text, language))
        segment = edited(segment, tidying.repeated_words(segment.text, language))
        if self._options.mode is Mode.STANDARD:
            numbers = chinese.written_numbers(segment.text) if language == "zh" else None
            segment = edited(segment, written_numbers(segment.text, language) if numbers is None else numbers)
        return edited(segment, tidying.stray_spaces(segment.text, language))

    def _replaced(self, segment: Segment, language: str) -> Segment:
        written = [
            Edit(start, end, self._options.replacements[phrase])
            for start, end, phrase in self._wanted.find(segment.text)
        ]
        segment = edited(segment, written)
        if any(not edit.text for edit in written):  # a removed word leaves two spaces
            segment = edited(segment, tidying.stray_spaces(segment.text, language))
        return segment
