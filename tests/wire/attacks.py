"""The known attacks on HTTP/2 and gRPC, by name: each is a function that repeats one until `over()`.

Each returns how many inputs it has sent: frames, messages, calls or connections, whichever it floods with.
"""

from __future__ import annotations

from tests.wire import call_attacks, frame_attacks  # noqa: F401 # they register what they have
from tests.wire.attack import REGISTER, Attack

ATTACKS: dict[str, Attack] = dict(REGISTER)
