from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from typeless_grpc.access.principal import Role
from typeless_grpc.access.tokens import ALGORITHMS, SigningKeys, TokenOptions, TokenVerifier, jwks
from typeless_grpc.clock import FakeClock
from typeless_grpc.config import Settings
from typeless_grpc.errors import SourceUnavailable, Unauthenticated

ISSUER, AUDIENCE = "https://id.example", "typeless"
OPTIONS = TokenOptions(ISSUER, AUDIENCE)
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
FAR_S = 4_000_000_000


def public(name: str, private: Any = RSA) -> jwt.PyJWK:
    kind = jwt.algorithms.RSAAlgorithm if private is RSA else jwt.algorithms.ECAlgorithm
    algorithm = "RS256" if private is RSA else "ES256"
    return jwt.PyJWK(json.loads(kind.to_jwk(private.public_key())) | {"kid": name, "alg": algorithm})


class Issuer:
    """Publishes keys, counts fetches, and can be made unavailable."""

    def __init__(self) -> None:
        self.keys: Mapping[str, jwt.PyJWK] = {"one": public("one")}
        self.n_fetches = 0
        self.is_unavailable = False
        self.is_called, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def fetch(self) -> Mapping[str, jwt.PyJWK]:
        self.n_fetches += 1
        if not self.answers.is_set():
            self.is_called.set()
            self.answers.wait(30)
        if self.is_unavailable:
            raise jwt.PyJWKClientConnectionError("down")
        return self.keys


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def verifier(issuer: Issuer, clock: FakeClock, threads: ThreadPoolExecutor) -> TokenVerifier:
    return TokenVerifier(SigningKeys(issuer.fetch, threads, clock, OPTIONS), OPTIONS)


def token(private: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **claims: Any) -> str:
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": FAR_S} | claims
    given = {name: value for name, value in all_claims.items() if value is not None}
    return jwt.encode(given, private, algorithm, headers={} if kid is None else {"kid": kid})


async def reason(verifier: TokenVerifier, text: str) -> str:
    with pytest.raises((Unauthenticated, SourceUnavailable)) as caught:
        await verifier.verify(text)
    return caught.value.reason


async def test_a_good_token_names_its_caller(verifier: TokenVerifier):
    principal = await verifier.verify(token())
    assert (principal.id, principal.owner, principal.role) == ("token:ada", "token:ada", Role.USER)
    assert not principal.is_anonymous


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": 1_600_000_000}, "TOKEN_EXPIRED"),
        ({"iss": "https://another.example"}, "TOKEN_INVALID"),
        ({"aud": "another"}, "TOKEN_INVALID"),
        ({"nbf": FAR_S - 1}, "TOKEN_INVALID"),
        ({"sub": "x" * 256}, "TOKEN_INVALID"),
        ({"sub": ""}, "TOKEN_INVALID"),
        ({"sub": "a\0da"}, "TOKEN_INVALID"),
        ({"sub": "a\ud800da"}, "TOKEN_INVALID"),
        ({"exp": None}, "TOKEN_INVALID"),
        ({"iss": None}, "TOKEN_INVALID"),
        ({"aud": None}, "TOKEN_INVALID"),
        ({"sub": None}, "TOKEN_INVALID"),
        ({"kid": None}, "TOKEN_INVALID"),
        ({"kid": "unheard-of"}, "TOKEN_INVALID"),
        ({"algorithm": "RS512"}, "TOKEN_INVALID"),
    ],
    ids=str,
)
async def test_a_token_that_is_wrong_is_refused(verifier: TokenVerifier, claims: dict[str, Any], expected: str):
    assert await reason(verifier, token(**claims)) == expected


async def test_a_signature_by_another_key_is_refused(verifier: TokenVerifier):
    assert await reason(verifier, token(EC, algorithm="ES256")) == "TOKEN_INVALID"
    assert await reason(verifier, token(rsa.generate_private_key(65537, 2048))) == "TOKEN_INVALID"


def forged(header: dict[str, Any], signature: bytes = b"") -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": FAR_S}
    parts = [json.dumps(part).encode() for part in (header, claims)] + [signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        forged({"alg": "none", "kid": "one"}),
        forged({"alg": "HS256", "kid": "one"}, b"x" * 32),
        forged({"alg": "RS256", "kid": ["one"]}),
        forged({"alg": "RS256", "kid": "one"}),
        "a.b.c",
        "..",
        "not even a token",
    ],
)
async def test_an_invented_token_is_refused(verifier: TokenVerifier, text: str):
    assert await reason(verifier, text) == "TOKEN_INVALID"


async def test_an_error_repeats_nothing_of_the_token(verifier: TokenVerifier):
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token(aud="an-audience-that-is-secret"))
    assert "secret" not in str(caught.value)


def test_no_algorithm_with_a_shared_secret_can_be_chosen():
    assert not [name for name in ALGORITHMS if name.startswith(("HS", "none"))]
    settings = {"auth_enabled": True, "jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks_url": "https://i/keys"}
    assert Settings(**settings, jwt_algorithms=",".join(ALGORITHMS)).jwt_algorithms == ALGORITHMS
    with pytest.raises(ValueError):
        Settings(**settings, jwt_algorithms="HS256")


@pytest.mark.parametrize(
    ("options", "claims", "role"),
    [
        ({}, {"roles": ["admin"]}, Role.ADMIN),
        ({}, {"roles": "reader admin"}, Role.ADMIN),
        ({}, {"roles": ["administrator"]}, Role.USER),
        ({}, {"roles": {"admin": True}}, Role.USER),
        ({}, {"roles": [["admin"]]}, Role.USER),
        ({"roles_claim": "realm_access.roles"}, {"realm_access": {"roles": ["admin"]}}, Role.ADMIN),
        ({"roles_claim": "realm_access.roles"}, {"realm_access": ["roles"]}, Role.USER),
        ({"admin_role": ""}, {"roles": ["admin", ""]}, Role.USER),
        ({"user_role": "speech"}, {"roles": ["speech"]}, Role.USER),
        ({"user_role": "speech"}, {"roles": ["admin"]}, Role.ADMIN),
        ({"user_role": "speech"}, {"roles": ["another"]}, None),
    ],
    ids=str,
)
async def test_roles_come_from_a_claim(
    issuer: Issuer,
    clock: FakeClock,
    threads: ThreadPoolExecutor,
    options: dict[str, str],
    claims: dict[str, Any],
    role: Role | None,
):
    wanted = TokenOptions(ISSUER, AUDIENCE, **options)  # type: ignore[arg-type]
    verifier = TokenVerifier(SigningKeys(issuer.fetch, threads, clock, wanted), wanted)
    if role is None:
        assert await reason(verifier, token(**claims)) == "TOKEN_ROLE_MISSING"
    else:
        assert (await verifier.verify(token(**claims))).role is role


async def test_keys_are_fetched_once_and_again_when_they_are_old(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
):
    await asyncio.gather(*(verifier.verify(token()) for _ in range(20)))
    assert issuer.n_fetches == 1
    clock.advance(301)
    await asyncio.gather(*(verifier.verify(token()) for _ in range(20)))
    assert issuer.n_fetches == 2


async def test_a_new_key_is_found_when_a_token_names_it(verifier: TokenVerifier, issuer: Issuer, clock: FakeClock):
    await verifier.verify(token())
    issuer.keys = {"two": public("two", EC)}
    clock.advance(10)
    assert (await verifier.verify(token(EC, "two", "ES256"))).id == "token:ada"
    assert await reason(verifier, token()) == "TOKEN_INVALID"


async def test_invented_key_names_do_not_cause_repeated_fetches(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
):
    await verifier.verify(token())
    for n in range(50):
        assert await reason(verifier, token(kid=f"made up {n}")) == "TOKEN_INVALID"
        clock.advance(0.1)
    assert issuer.n_fetches == 1


async def test_known_keys_continue_to_work_while_the_issuer_is_unavailable(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
):
    issuer.is_unavailable = True
    assert await reason(verifier, token()) == "TOKEN_KEYS_UNAVAILABLE"
    issuer.is_unavailable = False
    clock.advance(1)
    await verifier.verify(token())
    issuer.is_unavailable = True
    clock.advance(3600)
    await verifier.verify(token())


async def test_callers_share_one_attempt_and_its_failure_while_the_issuer_is_unavailable(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
):
    issuer.is_unavailable = True
    reasons = await asyncio.gather(*(reason(verifier, token()) for _ in range(20)))
    assert set(reasons) == {"TOKEN_KEYS_UNAVAILABLE"}
    assert issuer.n_fetches == 1
    clock.advance(1)
    await reason(verifier, token())
    assert issuer.n_fetches == 2


async def test_only_one_caller_waits_while_the_issuer_is_unavailable(
    verifier: TokenVerifier, issuer: Issuer, clock: FakeClock
):
    await verifier.verify(token())
    issuer.is_unavailable = True
    clock.advance(301)
    await verifier.verify(token())
    clock.advance(10)
    issuer.answers.clear()
    waits = asyncio.create_task(verifier.verify(token()))
    await asyncio.to_thread(issuer.is_called.wait, 10)
    await verifier.verify(token())
    assert not waits.done()
    issuer.answers.set()
    await waits


async def test_every_fetch_reports_whether_the_issuer_answers(
    issuer: Issuer, threads: ThreadPoolExecutor, clock: FakeClock
):
    reports: list[bool] = []
    keys = SigningKeys(issuer.fetch, threads, clock, OPTIONS, reports.append)
    for issuer.is_unavailable in (True, False):
        with contextlib.suppress(SourceUnavailable):
            await keys.get("one")
        clock.advance(1)
    assert reports == [False, True]


@pytest.mark.parametrize("body", [b"<html>later</html>", b"[]", b'{"keys": []}', b"\xff"])
def test_an_invalid_key_set_counts_as_none(body: bytes):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        with pytest.raises(jwt.PyJWTError):
            jwks(f"http://127.0.0.1:{server.server_port}/jwks.json", timeout_s=10)()
        answering.join()


def test_keys_are_fetched_from_the_web_alone():
    with pytest.raises(jwt.PyJWTError):
        jwks("file:///etc/passwd", timeout_s=1)
