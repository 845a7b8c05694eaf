"""How much audio the encoder is shown.

Whisper pads everything to 30 s, and the encoder's cost grows faster than its input: most of the work on an utterance of
5 s is spent on silence. So an utterance is shown in the smallest of a few windows that leaves a margin after it, and
what comes out is checked (`verification.py`). What fails the checks is done again in a longer window, and at last as
faster-whisper itself does it. A few sizes, not exact fits, because only equal windows share a batch.

The sizes, the margin and the checks were settled by measurement: `docs/encoder-window.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

# The longest audio Whisper's encoder takes at once (arXiv:2212.04356, section 2.1).
FULL_WINDOW_S = 30.0


@dataclass(frozen=True)
class WindowPolicy:
    """Which windows audio is shown in.

    sizes_s: ascending, the last one 30. margin_s: silence after the audio that the window must leave room for.
    retry_s: what is tried, besides 30, after a failed check. verified: whether results are checked at all.
    """

    sizes_s: tuple[float, ...] = (12.5, 15.0, 20.0, 25.0, FULL_WINDOW_S)
    margin_s: float = 3.0
    retry_s: tuple[float, ...] = (20.0,)
    verified: bool = True

    def choose(self, audio_s: float) -> float:
        """The window for audio of this length."""
        return next((size_s for size_s in self.sizes_s if audio_s + self.margin_s <= size_s), FULL_WINDOW_S)

    def ladder(self, audio_s: float) -> tuple[float, ...]:
        """The windows to try in turn, growing; the last one is 30 s."""
        first_s = self.choose(audio_s)
        retries_s = (size_s for size_s in self.retry_s if size_s > first_s and audio_s + self.margin_s <= size_s)
        return tuple(dict.fromkeys((first_s, *retries_s, FULL_WINDOW_S)))


# `full`: what faster-whisper does.
FULL = WindowPolicy(sizes_s=(FULL_WINDOW_S,), retry_s=(), verified=False)
POLICIES = {"auto": WindowPolicy(), "full": FULL}
