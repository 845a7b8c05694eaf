"""Maps our errors to gRPC status codes and `google.rpc` details. No other module knows status codes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from typeless_grpc import account, errors
from typeless_grpc.interceptors.seam import Call, Interceptor
from typeless_grpc.telemetry.context import request_id
from typeless_grpc.telemetry.logs import get_logger

DOMAIN = "typeless"
DETAILS_TRAILER = "grpc-status-details-bin"

CODES: dict[type[errors.TypelessError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.SourceUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.EngineFailed: grpc.StatusCode.INTERNAL,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.NotImplementedHere: grpc.StatusCode.UNIMPLEMENTED,
}

log = get_logger(__name__)


class StatusInterceptor(Interceptor):
    """Ends calls that raise with a code, a message and details. Unforeseen errors are INTERNAL, without their text."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        try:
            yield
        except errors.TypelessError as error:
            account.current().reason = error.reason
            call.add_trailers(*_when_to_retry(error))
            await _abort(call, status_of(error))
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise  # the caller cancelled, or the call is aborted already
        except NotImplementedError:
            # Raised by the generated servicer for methods without an implementation.
            missing = errors.NotImplementedHere(
                f"This server does not implement {call.method}.", reason="NOT_IMPLEMENTED"
            )
            account.current().reason = missing.reason
            await _abort(call, status_of(missing))
        except Exception:
            log.exception("unforeseen error", method=call.method)
            account.current().reason = "INTERNAL"
            await _abort(call, _internal(request_id.get()))


def status_of(error: errors.TypelessError) -> status_pb2.Status:
    """Return the status with its details: ErrorInfo; BadRequest, QuotaFailure and RetryInfo as they apply."""
    code = _code(error)
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, errors.InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[violation(field=v.field, description=v.why) for v in error.violations]
            )
        )
    if isinstance(error, errors.RateLimited):
        violation_of = error_details_pb2.QuotaFailure.Violation
        violated = violation_of(subject=error.subject, description=error.quota or error.message)
        details.append(error_details_pb2.QuotaFailure(violations=[violated]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code, error.message, details)


def _when_to_retry(error: errors.TypelessError) -> tuple[tuple[str, str], ...]:
    """Return RetryInfo as trailers, for proxies and for gRPC's built-in retries (gRFC A6).

    If waiting does not help, the trailer stops the built-in retries.
    """
    if error.retry_after_s is None:
        return (("grpc-retry-pushback-ms", "-1"),) if isinstance(error, errors.RateLimited | errors.TooLarge) else ()
    return (
        ("retry-after", str(math.ceil(error.retry_after_s))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))),
    )


def code_of(error: errors.TypelessError) -> int:
    """Return the google.rpc.Code of an error, for failures that do not end a call."""
    number: int = code_pb2.Code.Value(_code(error).name)
    return number


def _code(error: errors.TypelessError) -> grpc.StatusCode:
    return next(code for family, code in CODES.items() if isinstance(error, family))


def _internal(current_request_id: str) -> status_pb2.Status:
    text = f"Internal error. The server's log has the details under request id {current_request_id}."
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    return _status(grpc.StatusCode.INTERNAL, text, [info])


def _status(code: grpc.StatusCode, text: str, details: list[message.Message]) -> status_pb2.Status:
    packed = [any_pb2.Any() for _ in details]
    for holder, detail in zip(packed, details, strict=True):
        holder.Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(code.name), message=text, details=packed)


async def _abort(call: Call, status: status_pb2.Status) -> None:
    if call.requests is not None:
        await call.requests.read_on()
    trailers = (*(call.context.trailing_metadata() or ()), (DETAILS_TRAILER, status.SerializeToString()))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await call.context.abort(code, status.message, trailers)
