"""How far a FILE stream is, in numbers that never fall."""

from __future__ import annotations

from typeless_grpc.streaming import events
from typeless_grpc.streaming.session import Session, State

_UNKNOWN_REST_S = 60.0  # of audio that may still come, where nobody says how much: so the fraction never stands still
_MOST_BEFORE_THE_END = 0.99


class ProgressReport:
    """One stream's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._fraction = 0.0

    def event(self, *, has_ended: bool, declared_s: float | None) -> events.Progress:
        """Where the stream is. has_ended: the audio is whole; declared_s: how much a container says there is."""
        at, done, total = self._session.cursors, self._session.n_pieces_done, self._session.n_pieces
        message = f"{done} of {total} pieces are transcribed."
        if self._session.state is State.DONE and has_ended:
            self._fraction, message = 1.0, "All is transcribed."
        else:
            rest_s = declared_s or at.received_s + _UNKNOWN_REST_S
            expected_s = at.received_s if has_ended else max(at.received_s, rest_s)
            fraction = at.final_s / expected_s if expected_s > 0 else 0.0
            self._fraction = max(self._fraction, min(_MOST_BEFORE_THE_END, fraction))
        return events.Progress(self._fraction, done, total, at.final_s, at.received_s, message)
