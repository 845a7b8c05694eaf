"""The failures of decoder processes, and the errors for callers."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum

from typeless_grpc.audio.sandbox.decoder import OUT_OF_MEMORY
from typeless_grpc.errors import InvalidInput, Overloaded, TypelessError

RETRY_AFTER_S = 1.0
_MAX_IDLE_SHARE = 0.1  # share of the wait; a process that computed for less had no core


class Failure(Enum):
    """Why a decoder process gave no result. The values are labels of a metric."""

    CRASHED = "crashed"
    HUNG = "hung"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_CPU_TIME = "out_of_cpu_time"
    VIOLATED_PROTOCOL = "violated_protocol"
    KILLED = "killed"  # not by its server, and not for its input


_WHY = {
    Failure.CRASHED: "the decoder crashed on it",
    Failure.HUNG: "the decoder made no progress on it",
    Failure.OUT_OF_MEMORY: "its decoding needs more memory than a decoder may use",
    Failure.OUT_OF_CPU_TIME: "its decoding takes too long",
    Failure.VIOLATED_PROTOCOL: "the decoder failed on it",
}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status as of wait(2), and the seconds of CPU time that it used."""

    status: int
    cpu_s: float


_BY_SIGNAL = {signal.SIGXCPU: Failure.OUT_OF_CPU_TIME, signal.SIGKILL: Failure.KILLED}


def failure_of(ended: Ended | None) -> Failure:
    """Return why a process has ended before its work was done. ended: None if the fork server has ended, too."""
    if ended is None:
        return Failure.KILLED
    if os.WIFSIGNALED(ended.status):
        return _BY_SIGNAL.get(signal.Signals(os.WTERMSIG(ended.status)), Failure.CRASHED)
    is_memory = os.WIFEXITED(ended.status) and os.WEXITSTATUS(ended.status) == OUT_OF_MEMORY
    return Failure.OUT_OF_MEMORY if is_memory else Failure.CRASHED


def stalled(ended: Ended | None, stall_s: float) -> Failure:
    """Return the failure of a process that sent nothing for stall_s and was then ended."""
    had_a_core = ended is not None and ended.cpu_s > _MAX_IDLE_SHARE * stall_s
    return Failure.HUNG if had_a_core else Failure.KILLED


def error_of(failure: Failure, field: str) -> TypelessError:
    """Return the error that the caller gets. field: path of the audio in the request."""
    if failure is Failure.KILLED:
        return unavailable("The process that decoded the audio was ended. Repeat the call.")
    return InvalidInput(f"{field}.content", _WHY[failure], reason="DECODER_FAILED")


def unavailable(message: str) -> Overloaded:
    """Return the error of a call that finds no decoder process."""
    return Overloaded(message, reason="DECODER_UNAVAILABLE", retry_after_s=RETRY_AFTER_S)
