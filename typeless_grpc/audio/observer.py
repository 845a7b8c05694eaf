"""The protocols of observers: what the decoding of audio reports."""

from __future__ import annotations

from typing import Protocol


class AudioObserver(Protocol):
    """Notified of recordings that were decoded. Called on the event loop, in the context of the call."""

    def audio_decoded(self, seconds: float) -> None:
        """A recording was decoded to samples just now. seconds: with its fetch and the wait for a thread.

        Must not raise.
        """
        ...


class DecoderObserver(Protocol):
    """Notified of decoder processes. Called in any thread."""

    def decoder_failed(self, reason: str) -> None:
        """A decoder process failed. reason: a value of `sandbox.failures.Failure`. Must not raise."""
        ...
