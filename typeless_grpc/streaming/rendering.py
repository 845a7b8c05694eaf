"""Renders the transcript of a completed stream."""

from __future__ import annotations

import asyncio
import functools

from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.speech.transcript import Transcript
from typeless_grpc.streaming.dependencies import Dependencies
from typeless_grpc.text.finishing import with_renditions, without_words


async def rendered_transcript(transcript: Transcript, options: DecodeOptions, dependencies: Dependencies) -> Transcript:
    """Add the requested output formats, in a thread: for hours of text it takes seconds. Remove unrequested words."""
    if options.output_formats:
        render = functools.partial(with_renditions, words=options.word_timestamps)
        loop = asyncio.get_running_loop()
        transcript = await loop.run_in_executor(dependencies.threads, render, transcript, options.output_formats)
    return transcript if options.word_timestamps else without_words(transcript)
