"""Converts the headers of an HTTP request to gRPC metadata: key, address, request id and deadline."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import Scope

from typeless_grpc.errors import InvalidInput

Metadata = tuple[tuple[str, str], ...]

FORWARDED = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
FORWARDED_FOR = "x-forwarded-for"

# Pages cannot set headers of a WebSocket. They offer the key as a subprotocol, as Kubernetes has it: this prefix and
# the key or token in base64url. The bridge accepts PROTOCOL, so that the key is in no answer.
PROTOCOL = "typeless.v1"
BEARER_PROTOCOL = "base64url.bearer.authorization.typeless."

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


def metadata(scope: Scope) -> Metadata:
    """Return the metadata of a call. Raises InvalidInput for values that gRPC cannot carry.

    The address that the connection comes from is the last of `x-forwarded-for`, as every proxy adds it.
    """
    headers = Headers(scope=scope)
    found = [(name, value) for name in FORWARDED for value in headers.getlist(name)]
    if key := _offered_key(scope.get("subprotocols", ())):
        found.append(("authorization", f"Bearer {key}"))
    peer = scope["client"][0] if scope.get("client") else ""
    hops = [*headers.getlist(FORWARDED_FOR), peer]
    found.append((FORWARDED_FOR, ", ".join(hop for hop in hops if hop)))
    for name, value in found:
        if not _PRINTABLE.fullmatch(value):
            raise InvalidInput(name, "has characters that are not printable ASCII", reason="HEADER_INVALID")
    return tuple(found)


def timeout_s(scope: Scope) -> float | None:
    """Return the seconds of the header `grpc-timeout` ("30S", "500m"), None without one. Raises InvalidInput."""
    value = Headers(scope=scope).get("grpc-timeout")
    if value is None:
        return None
    if (match := _TIMEOUT.fullmatch(value)) is None:
        raise InvalidInput("grpc-timeout", "is up to 8 digits and a unit of H M S m u n", reason="HEADER_INVALID")
    return int(match[1]) * _UNITS_S[match[2]]


def _offered_key(protocols: Iterable[str]) -> str:
    for protocol in protocols:
        if protocol.startswith(BEARER_PROTOCOL):
            encoded = protocol.removeprefix(BEARER_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
            except (binascii.Error, ValueError) as error:
                raise InvalidInput(
                    BEARER_PROTOCOL, "is followed by the key in base64url", reason="HEADER_INVALID"
                ) from error
    return ""
