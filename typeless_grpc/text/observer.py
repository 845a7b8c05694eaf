"""What the last step of every transcription reports. Called on the event loop, in the context of the call."""

from __future__ import annotations

from typing import Protocol


class TextObserver(Protocol):
    """Notified of the work on text."""

    def text_finished(self, seconds: float) -> None:
        """A transcript was finished just now. seconds: with the wait for a thread. Must not raise."""
        ...
