"""Memory through which a front gives audio to an engine process of its own: only its place crosses the socket.

The front allocates it, copies samples into it, and passes its descriptor to the process, which reads them there. The
kernel frees the memory when both have ended, however they ended. The process can neither write to it nor resize it
(memfd_create(2), "File sealing"), so the front is safe whatever it does.

A region is free again when its call has ended. An engine that has not noticed yet that the call was cancelled may then
read other audio, for a result that nobody takes.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from typeless_grpc.audio.formats import Audio

BYTES_PER_SAMPLE = 4
MEMORY_BYTES = 32 * 1024**2  # 17 utterances of 30 s; calls that find no room send their samples in messages
_ALIGNMENT = 1024  # in samples: a page

_F_SEAL_FUTURE_WRITE = 0x0010  # maps that are made from now on are read-only; since Linux 5.1


@dataclass(frozen=True)
class Region:
    """A part of the memory, in samples; end exclusive."""

    start: int
    end: int


class SharedAudio:
    """The memory, as the front uses it. Not thread-safe."""

    def __init__(self, n_bytes: int = MEMORY_BYTES) -> None:
        """Allocate n_bytes, which take memory only as they are used. Raises OSError if the system cannot share it."""
        if sys.platform != "linux":
            raise OSError("only Linux has memfd_create")
        import fcntl

        self.descriptor = os.memfd_create("audio", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, n_bytes)
        self._map = mmap.mmap(self.descriptor, n_bytes)
        with suppress(OSError):
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._samples = np.frombuffer(self._map, "<f4")
        self._used: list[Region] = []  # in order

    @property
    def n_used(self) -> int:
        """How many regions are in use."""
        return len(self._used)

    def put(self, audio: Audio) -> Region | None:
        """Copy audio into a region of its own; None if there is no room."""
        n_samples = -(-max(1, len(audio)) // _ALIGNMENT) * _ALIGNMENT
        start = 0
        for index, used in enumerate([*self._used, Region(len(self._samples), 0)]):
            if used.start - start >= n_samples:
                region = Region(start, start + n_samples)
                self._used.insert(index, region)
                self._samples[start : start + len(audio)] = audio
                return region
            start = used.end
        return None

    def free(self, region: Region) -> None:
        """Let others use a region."""
        self._used.remove(region)

    def close(self) -> None:
        """Give the memory back."""
        del self._samples
        self._map.close()
        os.close(self.descriptor)


class SharedAudioReader:
    """The memory, as an engine process uses it."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: of the memory; this closes it."""
        self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        os.close(descriptor)
        self._samples = np.frombuffer(self._map, "<f4")

    def read(self, start: int, n_samples: int) -> Audio | None:
        """Return samples, which stay valid until their call ends; None if they are not inside the memory."""
        return None if n_samples > len(self._samples) - start else self._samples[start : start + n_samples]
