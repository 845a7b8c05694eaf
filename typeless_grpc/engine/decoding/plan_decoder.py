"""Decodes all chunks of a plan: in parallel, or one after the other if each is conditioned on the text before it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from typeless_grpc.engine.decoding.chunk_decoder import MIN_ADDED_S, ChunkDecoder
from typeless_grpc.engine.decoding.code_switching import ChunkResults, CodeSwitchingDecoder
from typeless_grpc.engine.decoding.hallucinations import filter_hallucinations
from typeless_grpc.engine.decoding.submission import (
    DecodeContext,
    RecognizerOptions,
    Submitter,
    WindowScheduler,
)
from typeless_grpc.engine.interface import DecodeOptions, Lane
from typeless_grpc.engine.observer import EngineObserver, NoObserver
from typeless_grpc.engine.planning.chunk import Chunk
from typeless_grpc.engine.planning.strategies import Plan
from typeless_grpc.engine.tasks import gather
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import joined

# Characters of text that a chunk is conditioned on: about the 224 tokens that Whisper uses.
CONDITION_CHARACTERS = 1000
# The longest of this many first chunks decides which language to expect in the others.
N_DETECTION_CHUNKS = 3


class PlanDecoder:
    """Decodes plans. `Recognizer` has one."""

    def __init__(
        self, scheduler: WindowScheduler, options: RecognizerOptions, observer: EngineObserver | None = None
    ) -> None:
        self._observer = observer or NoObserver()
        chunks = ChunkDecoder(Submitter(scheduler, options, self._observer), options)
        self._decoder = CodeSwitchingDecoder(chunks, options)
        self._options = options

    def cost_s(self, plan: Plan) -> float:
        """Return the expected cost of a plan, in seconds of an idle engine."""
        return sum(self._options.cost(chunk.window_s + MIN_ADDED_S) for chunk in plan.chunks)

    async def decode(self, context: DecodeContext, plan: Plan) -> ChunkResults:
        """Return the results of all chunks, in order; a chunk may have been cut into several."""
        context = replace(context, has_hints=bool(context.options.prompt or context.options.hotwords))
        if plan.is_sequential:
            return await self._decode_sequentially(context, plan.chunks)
        contexts = [_with_words(context) if plan.overlaps(i) else context for i in range(len(plan.chunks))]
        if context.options.language or context.expected_language or len(plan.chunks) <= 1:
            return _flat(await self._decode_in_parallel(contexts, plan.chunks))
        first = max(range(min(N_DETECTION_CHUNKS, len(plan.chunks))), key=lambda i: plan.chunks[i].window_s)
        first_results = await self._decode_chunk(contexts[first], plan.chunks[first])
        expected = language_of(first_results, context.options)[0]
        rest = [i for i in range(len(plan.chunks)) if i != first]
        results = await self._decode_in_parallel(
            [replace(contexts[i], expected_language=expected) for i in rest], [plan.chunks[i] for i in rest]
        )
        return _flat([*results[:first], first_results, *results[first:]])

    async def _decode_sequentially(self, context: DecodeContext, chunks: Sequence[Chunk]) -> ChunkResults:
        """Condition each chunk on the text before it, without the text that was suppressed."""
        results: ChunkResults = []
        text = context.options.prompt
        for chunk in chunks:
            conditioned = replace(context, options=replace(context.options, prompt=text[-CONDITION_CHARACTERS:]))
            parts = await self._decode_chunk(conditioned, chunk)
            results += parts
            kept = [one.text for part, result in parts for one in filter_hallucinations(result, part).segments]
            text = joined([text, *kept])
            expected = context.expected_language or language_of(parts, context.options)[0]
            context = replace(context, expected_language=expected)
        return results

    async def _decode_in_parallel(
        self, contexts: Sequence[DecodeContext], chunks: Sequence[Chunk]
    ) -> list[ChunkResults]:
        slots = asyncio.Semaphore(self._options.max_parallel_chunks)

        async def decode(context: DecodeContext, chunk: Chunk) -> ChunkResults:
            async with slots:
                return await self._decode_chunk(context, chunk)

        return await gather([decode(*one) for one in zip(contexts, chunks, strict=True)])

    async def _decode_chunk(self, context: DecodeContext, chunk: Chunk) -> ChunkResults:
        """Decode a chunk; if the decoder stopped early, decode the rest of it on its own."""
        results: ChunkResults = []
        for part, result in await self._decoder.decode(context, chunk):
            if result.uncovered_from_s is None or context.ticket.lane is Lane.LIVE_INTERIM:
                results.append((part, result))
                continue
            self._observer.decoded_again("uncovered")
            before, rest = part.split(result.uncovered_from_s)
            results.append((before, result))
            results += await self._decode_chunk(context.in_language(result.language), rest)
        return results


def language_of(results: ChunkResults, options: DecodeOptions) -> tuple[str, float]:
    """Return the language of most of the speech, and its probability."""
    if options.language:
        return options.language, 1.0
    tally = LanguageTally()
    for chunk, result in results:
        tally.add(result.language, result.language_probability, chunk.speech_s)
    return tally.main()


def _flat(results: Sequence[ChunkResults]) -> ChunkResults:
    return list(itertools.chain.from_iterable(results))


def _with_words(context: DecodeContext) -> DecodeContext:
    return replace(context, options=replace(context.options, word_timestamps=True))
