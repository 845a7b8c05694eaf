"""Answers `grpc.health.v1` from the health of what each service needs.

The servicer of grpcio-health-checking writes to its watchers while it holds the lock that a status change needs, so one
watcher that does not read would freeze the status for everyone. This one never waits for a watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

SERVER = ""  # the name that stands for the server as a whole
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UPDATE_EVERY_S = 0.5
PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 5.0  # longer than a busy database takes to answer, shorter than callers wait


@dataclass(frozen=True)
class HealthCheck:
    """A check of something that services need.

    name: for log lines. services: the full names of the services that need it, SERVER among them if the server is
    useless without it. is_healthy: returns at once, without I/O.
    """

    name: str
    services: frozenset[str]
    is_healthy: Callable[[], bool]


class Probe:
    """Calls something repeatedly to check that it answers. Each call has a new thread, because it may never return."""

    def __init__(self, call: Callable[[], None], every_s: float = PROBE_EVERY_S) -> None:
        """call: blocks; raises if there is no answer. every_s: pause between calls."""
        self._call, self._every_s = call, every_s
        self.answers = True

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            answer = asyncio.get_running_loop().create_future()
            try:
                threading.Thread(target=self._run, args=(answer,), name="probe", daemon=True).start()
            except RuntimeError:  # no thread can be started now
                self.answers = False
                await asyncio.sleep(self._every_s)
                continue
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    self.answers = await asyncio.shield(answer)
            except TimeoutError:
                self.answers = False
                self.answers = await answer  # no second call while one has not returned
            await asyncio.sleep(self._every_s)

    def _run(self, answer: asyncio.Future[bool]) -> None:
        try:
            self._call()
        except Exception:
            is_good = False
        else:
            is_good = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for the answer
            answer.get_loop().call_soon_threadsafe(_set, answer, is_good)


def _set(answer: asyncio.Future[bool], is_good: bool) -> None:
    if not answer.done():
        answer.set_result(is_good)


def _is_healthy(check: HealthCheck) -> bool:
    """Run a check. One that raises is unhealthy, and does not stop the others."""
    try:
        return check.is_healthy()
    except Exception:
        log.exception("health check failed", check=check.name)
        return False


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """The status of each service and of the server: NOT_SERVING before `begin` and after `end`."""

    def __init__(self, services: Iterable[str], checks: Iterable[HealthCheck] = ()) -> None:
        self._names = (SERVER, *services)
        self._checks = tuple(checks)
        self._unhealthy: set[str] = set()
        self._has_begun = self._has_ended = False
        self._status: Mapping[str, int] = dict.fromkeys(self._names, NOT_SERVING)
        self._changed = asyncio.Event()
        self._notified = asyncio.Event()
        self._behind: set[object] = set()  # watchers that have not been sent the last change
        self._watchers: set[object] = set()

    @property
    def statuses(self) -> Mapping[str, bool]:
        """Whether each service reports SERVING, by name."""
        return {name: status == SERVING for name, status in self._status.items()}

    def begin(self) -> None:
        """Report SERVING from now on, as far as the checks allow it."""
        self._has_begun = True
        self.update()

    def end(self) -> None:
        """Report NOT_SERVING from now on, for good."""
        self._has_ended = True
        self.update()

    async def notified(self) -> None:
        """Wait until every watcher has been sent the last change."""
        while self._behind:
            self._notified.clear()
            await self._notified.wait()

    async def run(self) -> None:
        """Update the status until cancelled."""
        while True:
            await asyncio.sleep(UPDATE_EVERY_S)
            self.update()

    def update(self) -> None:
        """Run all checks and wake the watchers if a status changes."""
        unhealthy = {check.name for check in self._checks if not _is_healthy(check)}
        for name in sorted(unhealthy ^ self._unhealthy):
            log.warning("became unhealthy" if name in unhealthy else "is healthy again", check=name)
        self._unhealthy = unhealthy
        lost = {service for check in self._checks if check.name in unhealthy for service in check.services}
        can_serve = self._has_begun and not self._has_ended
        status = {name: SERVING if can_serve and name not in lost else NOT_SERVING for name in self._names}
        if status != self._status:
            self._status = status
            self._behind = set(self._watchers)
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Return the status of one service; NOT_FOUND if there is none of that name."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        """Return the status of every service. grpcio-health-checking registers it from 1.85 on."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status of one service now and at each change; SERVICE_UNKNOWN if there is none of that name."""
        watcher = object()
        self._watchers.add(watcher)
        sent: int | None = None
        try:
            while True:
                changed, status = self._changed, self._status.get(request.service, UNKNOWN)
                if status != sent:
                    sent = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if changed is self._changed:
                    self._behind.discard(watcher)
                    self._notified.set()
                await changed.wait()
        finally:
            self._watchers.discard(watcher)
            self._behind.discard(watcher)
            self._notified.set()
