"""JSON Web Tokens: no token is good but one that the issuer signed, whatever its header says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fuzz.inputs import Source
from typeless_grpc.access.tokens import SigningKeys, TokenOptions, TokenVerifier
from typeless_grpc.clock import FakeClock
from typeless_grpc.errors import Unauthenticated

MAX_BYTES = 2048
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
OPTIONS = TokenOptions("https://id.example", "typeless")
CLAIMS = {"iss": "https://id.example", "aud": "typeless", "sub": "ann", "exp": 4_000_000_000}


@cache
def verifier() -> TokenVerifier:
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "one", "alg": "ES256"}
    keys = SigningKeys(lambda: {"one": jwt.PyJWK(public)}, ThreadPoolExecutor(1), FakeClock(), OPTIONS)
    asyncio.run(keys.get("one"))
    return TokenVerifier(keys, OPTIONS)


@cache
def good() -> list[str]:
    claims = [CLAIMS, CLAIMS | {"sub": "bob", "roles": ["admin"]}, CLAIMS | {"roles": "admin user", "nbf": 5}]
    return [jwt.encode(one, KEY, "ES256", headers={"kid": "one"}) for one in claims]


def seeds() -> Iterator[bytes]:
    for index in range(len(good())):
        yield bytes([0, index])
    bad = [
        jwt.encode(CLAIMS, OTHER, "ES256", headers={"kid": "one"}),
        jwt.encode(CLAIMS, None, "none", headers={"kid": "one"}),
        jwt.encode(CLAIMS, "one" * 11, "HS256", headers={"kid": "one"}),
        jwt.encode(CLAIMS | {"exp": int(time.time()) - 999}, KEY, "ES256", headers={"kid": "one"}),
    ]
    for token in bad:
        yield b"\1" + token.encode()
    for claim in (b'{"sub":[1]}', b'{"sub":"\\ud800"}', b'{"sub":"\\u0000"}', b'{"exp":1e999}', b"[]", b"1" * 2000):
        yield b"\2" + claim


def one(data: bytes) -> None:
    source = Source(data)
    kind = source.number(3)
    is_signed = False
    if kind == 0:
        token = source.chosen(good())
        if rest := source.rest:
            at = int.from_bytes(rest[:2], "little") % len(token)
            token = token[:at] + rest[2:4].decode("latin-1") + token[at + 1 :]
    elif kind == 1:
        token = source.rest.decode("latin-1")
    else:  # the issuer signs anything at all
        is_signed = True
        token = jwt.api_jws.encode(source.rest, KEY, "ES256", headers={"kid": "one"})
    try:
        caller = verifier().verify_at_once(token)
    except Unauthenticated as error:
        assert error.reason in ("TOKEN_INVALID", "TOKEN_EXPIRED")
        assert token not in good()
        return
    # Base64 has several forms of one signature; the claims are those that were signed.
    assert is_signed or token.rpartition(".")[0] in {one.rpartition(".")[0] for one in good()}, token
    assert caller.owner.startswith("token:")
    assert 0 < len(caller.owner) <= 1024
    caller.owner.encode("utf-8")
