"""How much audio the encoder is shown.

Whisper pads everything to 30 s, and the encoder's cost grows faster than its input: most of the work on an utterance of
5 s is spent on silence. So an utterance is shown in the smallest of a few windows that leaves a margin after it, and
what comes out is checked (`verification.py`). What fails the checks is done again in a longer window, and at last as
faster-whisper itself does it. A few sizes, not exact fits, because only equal windows share a batch.

The sizes, the margin and the checks were settled by measurement: `docs/encoder-window.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# The longest audio Whisper's encoder takes at once (arXiv:2212.04356, section 2.1).
FULL_WINDOW_S = 30.0


@dataclass(frozen=True)
class Size:
    """A window: how much the encoder is shown, and how much audio it may hold, in seconds; the rest is margin."""

    shown_s: float
    holds_s: float


@dataclass(frozen=True)
class WindowPolicy:
    """Which windows audio is shown in.

    sizes: ascending, the last one 30 s. floor_s: the smallest window for languages other than English, or not known
    yet, which fail more easily in short ones. retry_s: what is tried, besides 30, after a failed check. verified:
    whether results are checked at all. tight: more sizes, for live speech (`tightened`).
    """

    sizes: tuple[Size, ...] = (Size(10, 8), Size(15, 13), Size(20, 18.5), Size(25, 24), Size(FULL_WINDOW_S, 30))
    floor_s: float = 20.0
    retry_s: tuple[float, ...] = (20.0,)
    verified: bool = True
    tight: tuple[Size, ...] = (Size(8, 6), Size(12, 10), Size(17, 15), Size(22, 20.5), Size(27, 26))

    def tightened(self) -> WindowPolicy:
        """With the tight sizes, too: sooner, but for texts that are searched for again where they are doubtful."""
        sizes = sorted((*self.sizes, *self.tight), key=lambda size: size.shown_s)
        return replace(self, sizes=tuple(sizes), tight=())

    def choose(self, audio_s: float, language: str | None = None) -> float:
        """The window for audio of this length and language."""
        least_s = 0.0 if language == "en" else min(self.floor_s, FULL_WINDOW_S)
        fitting = (size.shown_s for size in self.sizes if audio_s <= size.holds_s and size.shown_s >= least_s)
        return next(fitting, FULL_WINDOW_S)

    def room_s(self, shown_s: float) -> float:
        """How much audio a window of this size may hold."""
        return next(size.holds_s for size in self.sizes if size.shown_s == shown_s)

    def ladder(self, audio_s: float, language: str | None = None) -> tuple[float, ...]:
        """The windows to try in turn, growing; the last one is 30 s."""
        first_s = self.choose(audio_s, language)
        holding = {size.shown_s for size in self.sizes if audio_s <= size.holds_s}
        retries_s = (size_s for size_s in self.retry_s if size_s > first_s and size_s in holding)
        return tuple(dict.fromkeys((first_s, *retries_s, FULL_WINDOW_S)))


# `full`: what faster-whisper does.
FULL = WindowPolicy(sizes=(Size(FULL_WINDOW_S, 30),), retry_s=(), verified=False, tight=())
POLICIES = {"auto": WindowPolicy(), "full": FULL}
