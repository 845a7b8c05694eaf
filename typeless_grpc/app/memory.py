"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # glibc's <malloc.h>
_ARENAS = 2


def share_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc.

    Unless told, it gives threads heaps of their own, up to eight for each core, and what one of them once held stays
    with it: of an upload, whose bytes pass through many threads, tens of megabytes stay behind.
    """
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
