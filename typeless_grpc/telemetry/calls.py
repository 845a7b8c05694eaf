"""The `CallObserver` protocol: reports of calls for metrics, the log, and usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from typeless_grpc.account import CallAccount


@dataclass(frozen=True)
class Method:
    """A method of the contract. type: "unary", "client_stream", "server_stream" or "bidi_stream"."""

    service: str
    name: str
    type: str

    @property
    def path(self) -> str:
        """Its name in gRPC: "/package.Service/Method"."""
        return f"/{self.service}/{self.name}"

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to one of our contracts, and not to health checks or reflection."""
        return not self.service.startswith("grpc.")


@dataclass(frozen=True)
class CallRecord:
    """A finished call. code: the name of its status, "OK" for success. account: what it has used."""

    method: Method
    code: str
    duration_s: float
    account: CallAccount
    request_id: str = ""


class CallObserver(Protocol):
    """Notified of every call. Both methods run on the event loop, must not block, and must not raise."""

    def call_started(self, method: Method, account: CallAccount) -> None:
        """A call has begun; its account fills while it runs."""
        ...

    def call_ended(self, record: CallRecord) -> None:
        """A call has ended, however it ended."""
        ...
