"""Fetches audio whose bytes do not come with the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol


def no_bound(n_bytes: int) -> None:
    """Reserve nothing: for audio that is not stored, or that does not count."""


class AudioSources(Protocol):
    """Opens what a URI names. Blocks, so callers on an event loop use a thread."""

    def is_remote(self, uri: str) -> bool:
        """Whether opening and reading it waits for another machine, so that it needs threads of its own."""
        ...

    def open(self, uri: str, owner: str | None, field: str, reserve: Callable[[int], None] = no_bound) -> BinaryIO:
        """Open `upload://ID`, or a `file`, `s3` or `https` address that the operator allowed.

        owner: of the uploads that may be read, None for an admin. field: path of the URI in the request, "audio.uri".
        reserve: called during a download with its bytes so far, or with all if their number is known; what it raises
        ends the download. The caller closes the file, which can seek.

        Raises InvalidInput (URI_SCHEME_NOT_ALLOWED, URI_NOT_ALLOWED, URI_INVALID, AUDIO_TOO_LARGE), NotFound
        (UPLOAD_NOT_FOUND, AUDIO_NOT_FOUND), WrongState (UPLOAD_INCOMPLETE) or SourceUnavailable.
        """
        ...
