"""The usage of one call. Code that works for the call adds to it, and it is read when the call is reported.

Every layer may import this module. A stream outlives its calls, so it has an account of its own; each call adds the
part that was used while it had the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field

MAX_TEXT_CHARACTERS = 4096  # of one call's text that may be kept for its log line


@dataclass(eq=False)
class CallAccount:
    """What a call has used so far.

    caller, owner, key_id: see `Principal`; "" until the caller is known. reason: of the error that ended the call.
    audio_s: audio that was transcribed, or received by a stream. queue_s: time in which none of its work ran; for a
    batch or a stream, the sum over its parts. processing_s: its share of the time that the model ran. n_jobs: jobs
    submitted. uploaded_bytes: bytes of uploads that were stored. n_uploads: uploads completed. keeps_text: whether
    transcripts are kept in texts. audio_listeners: called with each addition to audio_s.
    """

    caller: str = ""
    owner: str = ""
    key_id: str = ""
    reason: str = ""
    audio_s: float = 0.0
    queue_s: float = 0.0
    processing_s: float = 0.0
    n_jobs: int = 0
    uploaded_bytes: int = 0
    n_uploads: int = 0
    keeps_text: bool = False
    texts: list[str] = field(default_factory=list)

    audio_listeners: list[Callable[[float], None]] = field(default_factory=list)

    def identify(self, caller: str, owner: str, key_id: str) -> None:
        """Note who makes the call."""
        self.caller, self.owner, self.key_id = caller, owner, key_id

    def add_audio(self, seconds: float) -> None:
        """Count audio that was transcribed, or that a stream has received; notify the listeners at once."""
        self.audio_s += seconds
        for listen in self.audio_listeners:
            listen(seconds)

    def add_text(self, text: str) -> None:
        """Keep a text of the call's transcript, if texts are kept and there is room."""
        room = MAX_TEXT_CHARACTERS - sum(map(len, self.texts)) if self.keeps_text else 0
        if text and room > 0:
            self.texts.append(text[:room])


_current: ContextVar[CallAccount | None] = ContextVar("account", default=None)


def current() -> CallAccount:
    """Return the account of the current call; outside of a call, an account that is not read."""
    return _current.get() or CallAccount()


@contextmanager
def opened(account: CallAccount) -> Iterator[CallAccount]:
    """Make account the current one while the block runs."""
    token = _current.set(account)
    try:
        yield account
    finally:
        _current.reset(token)


def in_context(account: CallAccount) -> Context:
    """Return a copy of the current context in which account is the current one."""
    context = copy_context()
    context.run(_current.set, account)
    return context
