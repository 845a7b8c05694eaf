"""The caller by its peer and its headers: only a trusted proxy decides what counts as the caller's address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_network

from tests.fuzz.inputs import Source
from typeless_grpc.access.address import caller_address, is_local, networks
from typeless_grpc.console.peers import Peers
from typeless_grpc.console.visitors import Visitors
from typeless_grpc.errors import PermissionDenied

MAX_BYTES = 512
TRUSTED = networks(["10.0.0.0/8", "fd00::/8"])
PEERS = (
    "ipv4:192.0.2.7:5000",
    "ipv6:[2001:db8::7]:5000",
    "ipv6:%5B2001:db8::7%5D:5000",
    "ipv4:10.0.0.1:80",
    "ipv6:[fd00::1]:1",
    "ipv6:[::ffff:10.0.0.1]:1",
    "ipv4:127.0.0.1:1",
    "unix:",
    "unix:/tmp/socket",
    "",
)
HEADERS = (b"192.0.2.1", b"192.0.2.1, 10.0.0.2", b"[2001:db8::1]", b"::ffff:192.0.2.1", b"::1", b"unknown", b"", b",")


def seeds() -> Iterator[bytes]:
    for peer in range(len(PEERS)):
        for header in HEADERS:
            yield bytes([0, peer, 1]) + header
    yield b"\1ipv4:300.1.1.1:5"
    yield b"\1\0localhost:80\nhttp://localhost:80"
    yield b"\1\0[::1]\nhttp://[::1]"


def one(data: bytes) -> None:
    source = Source(data)
    if source.number(2):
        page(source.rest)
        return
    peer = source.chosen(PEERS) if source.number(4) else source.text()
    n_headers = source.number(4)
    lines = source.rest.split(b"\n", 3)
    forwarded = [line.decode("ascii", "replace") for line in lines[:n_headers]]
    address = caller_address(peer, forwarded, TRUSTED)
    assert address == "local" or ip_network(address).num_addresses in (1, 2**64), address
    if peer in PEERS[:3]:
        assert address == caller_address(peer, [], TRUSTED), "a stranger says where it calls from"
        assert not is_local(peer, forwarded)
    if forwarded and not peer.startswith("unix:"):
        assert not is_local(peer, forwarded), "a forwarded call passes for one of this machine"


def page(data: bytes) -> None:
    """What the console decides by Host, Origin and address."""
    host, _, origin = data.decode("latin-1").partition("\n")
    with contextlib.suppress(PermissionDenied):
        Visitors(["https://console.example.com"]).check(host, origin or None)
        if origin:
            assert origin.lower() == "https://console.example.com" or host.lower() in origin.lower()
    with contextlib.suppress(ValueError):  # the server gives it real addresses only
        Peers(TRUSTED).visitor(host)
