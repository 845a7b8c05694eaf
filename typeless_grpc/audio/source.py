"""Where audio is fetched from when its bytes do not come with the request."""

from __future__ import annotations

from typing import BinaryIO, Protocol


class AudioSources(Protocol):
    """Opens what a URI names. Blocks, so callers on an event loop use a thread."""

    def is_remote(self, uri: str) -> bool:
        """Whether opening and reading it waits for another machine: not to be done where others' work waits behind."""
        ...

    def open(self, uri: str, owner: str | None, field: str) -> BinaryIO:
        """The bytes of `upload://ID`, or of a `file`, `s3` or `https` address that the operator allowed.

        owner: whose uploads may be read, None for an admin. field: path of the URI in the request, "audio.uri". The
        caller closes the file, which can seek. Raises InvalidInput (URI_SCHEME_NOT_ALLOWED, URI_NOT_ALLOWED,
        URI_INVALID, AUDIO_TOO_LARGE), NotFound (UPLOAD_NOT_FOUND, AUDIO_NOT_FOUND), WrongState (UPLOAD_INCOMPLETE) or
        SourceUnavailable.
        """
        ...
