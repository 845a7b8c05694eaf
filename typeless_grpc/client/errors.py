"""The exception that every failed call raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from typeless_grpc.client.target import proxy_variable


class CallFailed(Exception):
    """A call that the server refused or could not finish.

    code: the gRPC status. reason: a stable name for programs ("AUDIO_TOO_LONG"), "" if the server gave none. fields:
    each invalid field of the request, with an explanation. retry_after_s: set if the same call may succeed later.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        fields: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message.removesuffix('.')} ({self.reason or self.code.name})"

    @classmethod
    def of(cls, error: Any) -> CallFailed:
        """Read the `google.rpc` details of a grpc.RpcError or grpc.aio.AioRpcError."""
        # dict() would call keys(), which in older grpcio (1.78) returns pairs.
        trailers = {name: value for name, value in error.trailing_metadata() or ()}  # noqa: C416
        message = error.details() or ""
        if error.code() is grpc.StatusCode.UNAVAILABLE and (name := proxy_variable(message)):
            message += f"; the call went through the proxy that {name} names"
        failed = cls(error.code(), message, request_id=str(trailers.get("x-request-id", "")))
        status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        for detail in status.details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                failed.reason = info.reason
            elif detail.Unpack(bad):
                failed.fields = tuple((v.field, v.description) for v in bad.field_violations)
            elif detail.Unpack(retry):
                failed.retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        return failed
