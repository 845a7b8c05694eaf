from __future__ import annotations

import pytest

from typeless_grpc.access.address import networks
from typeless_grpc.console.peers import Peers
from typeless_grpc.console.requests import Bodies
from typeless_grpc.errors import Overloaded, TooLarge

PEERS = Peers(networks(["10.0.0.0/8"]))


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("10.1.2.3", ""),
        ("::ffff:10.1.2.3", ""),
        ("::ffff:127.0.0.1", ""),
    ],
)
def test_visitors_are_distinguished_by_address_and_proxies_stand_for_many(address: str, visitor: str):
    assert PEERS.visitor(address) == visitor


@pytest.mark.parametrize(
    ("address", "connected", "is_over"),
    [
        ("192.0.2.1", ["192.0.2.1"] * 2, False),
        ("192.0.2.1", ["192.0.2.1"] * 3, True),
        ("192.0.2.2", ["192.0.2.1"] * 2 + ["192.0.2.2"], False),
        ("127.0.0.1", ["127.0.0.1"] * 8, False),
        ("127.0.0.1", ["127.0.0.1"] * 9, True),
        ("10.0.0.1", ["10.0.0.1"] * 8, False),
        ("2001:db8::9", ["2001:db8::1", "2001:db8::2", "2001:db8::9"], True),
    ],
)
def test_one_address_may_have_a_quarter_of_the_connections(address: str, connected: list[str], is_over: bool):
    assert PEERS.is_over(address, connected, 8) is is_over


def test_bodies_are_bounded_each_for_each_visitor_and_in_all():
    bodies = Bodies(max_body_bytes=20, max_total_bytes=100)
    with bodies.body("192.0.2.1") as first, bodies.body("192.0.2.1") as second, bodies.body("") as proxied:
        with pytest.raises(TooLarge):
            first.add(bytes(21))
        first.add(bytes(20))
        with pytest.raises(Overloaded):
            second.add(bytes(6))  # over a quarter
        second.add(bytes(5))
        proxied.add(bytes(20))
    for _ in range(3):  # all of it is given back
        with bodies.body("192.0.2.1") as one, bodies.body("192.0.2.1") as other:
            one.add(bytes(20))
            other.add(bytes(5))


def test_all_bodies_together_are_bounded():
    bodies = Bodies(max_body_bytes=60, max_total_bytes=100)
    with bodies.body("") as first, bodies.body("") as second:
        first.add(bytes(60))
        with pytest.raises(Overloaded):
            second.add(bytes(41))
        second.add(bytes(40))
