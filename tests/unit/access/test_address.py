from __future__ import annotations

import pytest

from typeless_grpc.access.address import caller_address, is_local, is_loopback, networks

PROXIES = networks(["10.0.0.0/8", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:50000", "192.0.2.7"),
        ("ipv6:[2001:db8::7]:50000", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::7%5D:50000", "2001:db8::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::/64"),
        ("ipv6:[::ffff:192.0.2.7]:50000", "192.0.2.7"),
        ("unix:/run/typeless.sock", "local"),
        ("", "local"),
        ("ipv4:nonsense", "local"),
    ],
)
def test_the_peer_is_the_caller(peer: str, address: str):
    assert caller_address(peer, [], ()) == address


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("ipv4:192.0.2.7:1", ["198.51.100.1"], "192.0.2.7"),
        ("ipv4:10.0.0.1:1", ["198.51.100.1"], "198.51.100.1"),
        ("ipv4:10.0.0.1:1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("ipv4:10.0.0.1:1", ["203.0.113.9", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("ipv4:10.0.0.1:1", ["10.0.0.2"], "10.0.0.2"),
        ("ipv4:10.0.0.1:1", ["somebody"], "10.0.0.1"),
        ("ipv4:10.0.0.1:1", [""], "10.0.0.1"),
        ("ipv4:10.0.0.1:1", ["[2001:db8:2::1]"], "2001:db8:2::/64"),
        ("ipv6:[2001:db8:1::1]:1", ["198.51.100.1"], "198.51.100.1"),
        ("ipv6:[::ffff:10.0.0.1]:1", ["198.51.100.1"], "198.51.100.1"),
        # The console's own socket.
        ("unix:", ["198.51.100.1"], "198.51.100.1"),
        ("unix:", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("unix:", ["198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        ("unix:", ["somebody"], "local"),
    ],
)
def test_forwarded_addresses_are_trusted_as_far_as_trusted_proxies_wrote_them(
    peer: str, forwarded_for: list[str], address: str
):
    assert caller_address(peer, forwarded_for, PROXIES) == address


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "300.0.0.1"])
def test_an_invalid_network_is_an_error(text: str):
    with pytest.raises(ValueError):
        networks([text])


@pytest.mark.parametrize(
    ("expected", "hosts"),
    [
        (True, ["127.0.0.1", "127.8.8.8", "[::1]", "::1", "localhost"]),
        (False, ["0.0.0.0", "[::]", "192.0.2.1", "example.org"]),
    ],
    ids=["loopback", "beyond"],
)
def test_loopback_addresses_are_recognized(expected: bool, hosts: list[str]):
    assert {is_loopback(host) for host in hosts} == {expected}


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "is_here"),
    [
        ("ipv4:127.0.0.1:50000", [], True),
        ("ipv4:127.8.9.1:50000", [], True),
        ("ipv6:[::1]:50000", [], True),
        ("ipv6:%5B::1%5D:50000", [], True),
        ("ipv6:[::ffff:127.0.0.1]:50000", [], True),
        ("unix:/run/typeless.sock", [], True),
        ("unix:", [], True),
        ("ipv4:192.0.2.7:50000", [], False),
        ("ipv6:[2001:db8::1]:50000", [], False),
        ("ipv6:[::2]:50000", [], False),
        ("ipv4:127.0.0.1:50000", ["198.51.100.1"], False),
        ("unix:", [""], False),
        ("unix:", ["127.0.0.1"], True),
        ("unix:", ["::1"], True),
        ("unix:", ["198.51.100.1"], False),
        ("unix:", ["198.51.100.1, 127.0.0.1"], False),
        ("unix:", ["127.0.0.1, 127.0.0.1"], False),
        ("ipv4:nonsense", [], False),
        ("", [], False),
    ],
)
def test_calls_from_this_machine_are_recognized(peer: str, forwarded_for: list[str], is_here: bool):
    assert is_local(peer, forwarded_for) is is_here
