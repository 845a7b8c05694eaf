"""Notices that the server of a live stream is lost although the connection is open: a proxy keeps it open. No I/O.

A server answers a live stream at least when an update asks it to. A stream that has sent requests and has got no event
for some time sends one that changes nothing (`Ledger.probe`), and resumes its session if that brings none either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

from typeless_grpc.client.options import StreamOptions
from typeless_grpc.pb.v1.transcription_pb2 import StreamTranscribeRequest

PROBE_AFTER_S = 10.0
LOST_AFTER_S = 30.0
CHECK_EVERY_S = 1.0


class ServerSilent(grpc.RpcError):
    """The server has not answered for LOST_AFTER_S. It has the methods of gRPC's own errors."""

    def code(self) -> grpc.StatusCode:
        """Return the status of a server that cannot be reached."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Return the message."""
        return f"The server has not answered for {LOST_AFTER_S:g} s."

    def trailing_metadata(self) -> tuple[Any, ...]:
        """Return nothing: no server ended the call."""
        return ()


class SilenceMonitor:
    """How long the stream has waited for an event since it sent a request. The stream checks it every CHECK_EVERY_S.

    The time in which the caller keeps the stream from reading does not count.
    """

    def __init__(self, options: StreamOptions, clock: Callable[[], float] = time.monotonic) -> None:
        """options: of the stream. clock: seconds from any origin."""
        self._options, self._clock = options, clock
        self._is_reading = self._has_sent = self._has_probed = False
        self._since_s = 0.0

    def sent(self, request: StreamTranscribeRequest) -> None:
        """Record that a request is sent. Only those count that a server answers soon: a recording may have to wait."""
        is_answered_soon = self._options.mode == "live" or request.HasField("config")
        if self._options.reconnect and is_answered_soon and not self._has_sent:
            self._has_sent, self._since_s = True, self._clock()

    def reads(self) -> None:
        """Record that the stream waits for the next event."""
        self._is_reading, self._since_s = True, self._clock()

    def received(self) -> None:
        """Record an event, or that the call is over."""
        self._is_reading = self._has_sent = self._has_probed = False

    def take_probe(self) -> bool:
        """Whether to request an event now. True once in each silence."""
        if self._has_probed or self._waited_s() < PROBE_AFTER_S:
            return False
        self._has_probed = True
        return True

    @property
    def is_lost(self) -> bool:
        """Whether to give the server up."""
        return self._waited_s() >= LOST_AFTER_S

    def _waited_s(self) -> float:
        return self._clock() - self._since_s if self._is_reading and self._has_sent else 0.0
