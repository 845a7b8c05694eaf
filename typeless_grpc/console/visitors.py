"""Decides which pages may use the bridge: its own, and those of origins that the operator named.

Without this check, a page of any site could use a visitor's server on loopback. Two checks prevent it. `Origin`, which
browsers send and pages cannot change, must be this server's own or a named one. And `Host` must not be a name that
somebody else may point here (DNS rebinding): an address, `localhost`, or the host of a named origin. Programs send no
`Origin`, and need none.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from typeless_grpc.console.messages import as_dict, failure, http_status
from typeless_grpc.errors import PermissionDenied

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Visitors:
    """Decides whether a page may use this server. origins: those that the operator named, "https://console.example.com"."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.lower() for origin in origins)
        self._hosts = frozenset(urlsplit(origin).hostname for origin in self._origins)

    def check(self, host: str, origin: str | None) -> None:
        """Raise PermissionDenied if a page may not use this server. origin: None if none was sent."""
        if not self._is_ours(host):
            raise PermissionDenied(
                f"The host '{host}' is not known here. To serve the console under this name, add its origin to "
                "TYPELESS_CONSOLE_ORIGINS.",
                reason="HOST_NOT_ALLOWED",
            )
        if origin is None or origin.lower() in self._origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise PermissionDenied(
                f"Pages of '{origin}' may not use this server. TYPELESS_CONSOLE_ORIGINS lists the origins that may.",
                reason="ORIGIN_NOT_ALLOWED",
            )

    def _is_ours(self, host: str) -> bool:
        """Whether no other site can have this host: it is an address, localhost, or the host of a named origin."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self._hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


class CheckedVisitors:
    """ASGI middleware: refuses requests of other sites' pages, and adds security headers to every answer."""

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self._app = app
        self._visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        sent = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        try:
            self._visitors.check(sent.get(b"host", ""), sent.get(b"origin"))
        except PermissionDenied as error:
            status = failure(error)
            await JSONResponse(as_dict(status), http_status(status))(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)
