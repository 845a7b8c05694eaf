"""Places decoded audio on the recording's own timeline.

A decoder returns samples one after another. A container also has the time of each frame, and the two differ if a track
starts later than the video beside it, if a recorder wrote nothing for a while, or if a damaged frame was skipped. Each
of these would move all later text to an earlier time. So a frame that begins later than the samples before it end gets
silence before it.

Samples are trusted over clocks: none is ever dropped. A small difference is jitter, and stays. A frame that begins much
too early belongs to a clock that was set back, as where files are joined. A jump ahead that is longer than any pause
also counts as a clock that was set, unless the recording is that long by the file's header.

The clock of a file starts at 0, and so does its timeline. The clock of a live capture starts anywhere: there the first
track starts the timeline.
"""

from __future__ import annotations

import av

_TOLERANCE_S = 0.1  # above what rounding, priming and a changed frame size do to times
_TOLERANCE_AFTER_LOSS_S = 0.01
_MAX_SET_BACK_S = 2.0
_MAX_PAUSE_S = 600.0

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
# Formats of files: their header describes the whole. NUT has its length at the end, where a pipe cannot look.
_FILES = frozenset({_MP4, _MATROSKA, "flv", "asf", "avi", "nut"})
_DECLARE_LENGTH = _FILES - {"nut"}


class Timeline:
    """Computes how much silence belongs before each frame of one track."""

    def __init__(self, *, first_s: float | None, is_files_clock: bool, end_s: float | None) -> None:
        """first_s: when the first track starts, None if unknown. is_files_clock: the recording starts at 0.

        end_s: when the recording ends by its header, None if that does not say. All by the container's clock.
        """
        self._first_s, self._is_files_clock, self._end_s = first_s, is_files_clock, end_s
        self._origin_s: float | None = None
        self._position_s = 0.0  # the length of the audio so far, silence included
        self._is_after_loss = False

    def skip(self) -> None:
        """Note that frames before the next one are lost: its time is trusted to the hundredth of a second."""
        self._is_after_loss = True

    def silence_before_s(self, start_s: float | None, length_s: float) -> float:
        """Return the seconds of silence before the next frame, and move on to the end of that frame.

        start_s: when the frame begins by the container's clock, None if it has no time.
        """
        silence_s = 0.0
        if start_s is not None:
            ahead_s = start_s - self._origin(start_s) - self._position_s
            is_pause = ahead_s <= _MAX_PAUSE_S or (self._end_s is not None and start_s + length_s <= self._end_s)
            if ahead_s < -_MAX_SET_BACK_S or not is_pause:
                self._origin_s = start_s - self._position_s
            elif ahead_s > (_TOLERANCE_AFTER_LOSS_S if self._is_after_loss else _TOLERANCE_S):
                silence_s = ahead_s
            self._is_after_loss = False
        self._position_s += silence_s + length_s
        return silence_s

    def _origin(self, start_s: float) -> float:
        if self._origin_s is None:
            first_s = start_s if self._first_s is None else min(start_s, self._first_s)
            is_at_zero = self._is_files_clock and 0 <= first_s <= _MAX_PAUSE_S
            self._origin_s = 0.0 if is_at_zero else first_s
        return self._origin_s


def timeline_of(container: av.container.InputContainer, stream: av.AudioStream) -> Timeline:
    """Return the timeline of a track of a container that was just opened."""
    name = container.format.name
    first_s = None if container.start_time is None else container.start_time / av.time_base
    is_files_clock = name in _FILES
    if name == _MP4:
        is_files_clock = stream.frames > 0  # else it is of fragments, as live streams are
    elif name == _MATROSKA:
        is_files_clock = container.duration is not None
    ends_s = []
    if name in _DECLARE_LENGTH and container.duration is not None:
        ends_s.append(container.duration / av.time_base + max(0.0, first_s or 0.0))
    if name in _DECLARE_LENGTH and stream.duration is not None and stream.time_base is not None:
        ends_s.append(float((stream.duration + (stream.start_time or 0)) * stream.time_base))
    return Timeline(first_s=first_s, is_files_clock=is_files_clock, end_s=max(ends_s, default=None))
