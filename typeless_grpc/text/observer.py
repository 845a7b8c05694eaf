"""The `TextObserver` protocol: what the last step of a transcription reports."""

from __future__ import annotations

from typing import Protocol


class TextObserver(Protocol):
    """Notified of the work on text."""

    def text_finished(self, seconds: float) -> None:
        """A transcript was finished just now. seconds: with the wait for a thread. Must not raise."""
        ...
