"""An identity provider for tests: it signs tokens, and publishes the key that verifies them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class IdentityProvider:
    """Publishes one key, "one", unless it is unavailable."""

    def __init__(self, port: int) -> None:
        self.jwks_url = f"http://127.0.0.1:{port}/jwks.json"
        self.is_unavailable = False


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key()))
    body = json.dumps({"keys": [key | {"kid": "one", "use": "sig", "alg": "RS256"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if provider.is_unavailable else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = IdentityProvider(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


def bearer(lifetime_s: float = 60, *, kid: str = "one", **claims: Any) -> tuple[str, str]:
    """The metadata of a token of this provider. kid: the name of its key, perhaps one that nobody publishes."""
    usual = {"iss": "https://id.example", "aud": "typeless", "sub": "ada", "exp": time.time() + lifetime_s}
    return ("authorization", "Bearer " + jwt.encode(usual | claims, PRIVATE, "RS256", headers={"kid": kid}))
