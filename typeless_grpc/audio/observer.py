"""The `AudioObserver` protocol: what the decoding of recordings reports."""

from __future__ import annotations

from typing import Protocol


class AudioObserver(Protocol):
    """Notified of recordings that were decoded."""

    def audio_decoded(self, seconds: float) -> None:
        """A recording was decoded to samples just now. seconds: with its fetch and the wait for a thread.

        Must not raise.
        """
        ...
