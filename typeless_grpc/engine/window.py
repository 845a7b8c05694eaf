"""How much the encoder is shown: speech cut into windows of at most 30 s, at pauses where there are any."""

from __future__ import annotations

from collections.abc import Sequence

from typeless_grpc.audio.vad import Span


def plan(spans: Sequence[Span], *, max_window_samples: int) -> list[Span]:
    """Pack spans of speech, with the pauses between them, into as few windows as the order allows.

    spans: in order and without overlap, each at most max_window_samples long. Every span lies whole in one window.
    """
    windows: list[Span] = []
    for span in spans:
        if windows and span.end - windows[-1].start <= max_window_samples:
            windows[-1] = Span(windows[-1].start, span.end)
        else:
            windows.append(span)
    return windows
