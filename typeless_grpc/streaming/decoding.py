"""Decodes the utterances of one stream for their finals, in the language that the stream has shown so far.

Transient errors of the engine are retried, so that a short overload loses no speech.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from typeless_grpc.engine.interface import DecodeOptions, Recognition
from typeless_grpc.errors import EngineFailed, Overloaded, RateLimited
from typeless_grpc.streaming.dependencies import Dependencies
from typeless_grpc.streaming.utterances import Utterance
from typeless_grpc.text.finishing import needs_words

_ATTEMPTS = 5
_MAX_RETRY_S = 10.0


class Decoder(Protocol):
    """Decodes one stream. Implemented by `live_decoding.LiveDecoder` and `file_decoding.FileDecoder`."""

    async def final(self, utterance: Utterance) -> Recognition:
        """Decode an utterance. Raises TypelessError for an error that is not transient, or after the last attempt."""
        ...

    def expecting(self, options: DecodeOptions) -> DecodeOptions:
        """Return the options with the stream's language, if the language is to be detected."""
        ...

    def reconfigure(self, options: DecodeOptions) -> None:
        """Use the stream's new options, and forget the language that was detected with the old ones."""
        ...

    def learn(self, utterance: Utterance, recognition: Recognition) -> None:
        """Expect the language of this utterance in those that follow."""
        ...

    def is_speculated(self, utterance: Utterance) -> bool:
        """Whether the speculative decode has exactly the audio and the expected language that the final would have."""
        ...

    def speculate(self, utterance: Utterance, *, is_likely: bool) -> None:
        """Begin to decode an utterance that may not be over, if that is likely or the engine is nearly idle."""
        ...

    def cancel_speculation(self) -> None:
        """Stop the speculative decode, if there is one."""
        ...

    def adopt(self, utterance: Utterance) -> bool:
        """Keep the speculative decode for `final` if it is of this utterance; stop it otherwise. Return whether it is.

        To be called as soon as the utterance is over, before the next one is decoded.
        """
        ...

    async def has_high_confidence(self, utterance: Utterance) -> bool:
        """Return whether the text of an utterance has high confidence, or the utterance cannot be decoded."""
        ...

    def close(self) -> None:
        """Stop all speculative decodes."""
        ...


class StreamLanguage:
    """The language of one stream so far, for utterances whose language is to be detected."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._utterance_id = -1
        self.code = ""

    def reset(self, options: DecodeOptions) -> None:
        """Forget the language if these options are new. `set` ignores utterances that were decoded with others."""
        if options != self._options:
            self._options, self._utterance_id, self.code = options, -1, ""

    def set(self, code: str, utterance: Utterance) -> None:
        """Set the language that an utterance showed, unless it is empty or a later utterance showed one."""
        if code and utterance.options == self._options and utterance.id > self._utterance_id:
            self.code, self._utterance_id = code, utterance.id

    def expected_in(self, options: DecodeOptions) -> DecodeOptions:
        """See `Decoder.expecting`."""
        return options if options.language else replace(options, expected_language=self.code)


def final_options(options: DecodeOptions) -> DecodeOptions:
    """Return the options for the engine: with words if a rendition needs them, and without renditions."""
    return replace(options, word_timestamps=options.word_timestamps or needs_words(options), output_formats=())


async def retried(dependencies: Dependencies, decode: Callable[[], Awaitable[Recognition]]) -> Recognition:
    """Decode, and retry transient errors: five attempts in all, or two if the engine itself failed."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return await decode()
        except (Overloaded, RateLimited, EngineFailed) as error:
            if isinstance(error, EngineFailed) and attempt > 1:
                raise
            await dependencies.sleep(min(error.retry_after_s or 0.1, _MAX_RETRY_S) * attempt)
    return await decode()
