"""The address of a caller, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

Network = IPv4Network | IPv6Network

# The network that one subscriber usually gets (RFC 6177). It can choose any address in it, so all of it is one caller.
IPV6_PREFIX_LENGTH = 64


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read "10.0.0.0/8" and "192.0.2.1". Raises ValueError."""
    return tuple(ip_network(text) for text in texts)


def caller_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the caller's address for quotas: an IPv4 address, an IPv6 /64 network, or "local" for a local socket.

    peer: as gRPC names it ("ipv4:192.0.2.1:5000"). forwarded_for: the `x-forwarded-for` values in order. Only trusted
    proxies are believed: going back from the last address, the first one that is not a trusted proxy is the caller's. A
    Unix socket is this server's own console, and is always trusted.
    """
    address, hops = _address_of(peer), _hops(forwarded_for)
    is_trusted = _is_unix(peer)
    while hops and (is_trusted or (address is not None and any(address in network for network in trusted))):
        try:
            address = _plain(ip_address(hops.pop().strip("[]")))
        except ValueError:
            break
        is_trusted = False
    if address is None:
        return "local"
    if isinstance(address, IPv6Address):
        return str(ip_network((address, IPV6_PREFIX_LENGTH), strict=False))
    return str(address)


def is_local(peer: str, forwarded_for: Sequence[str]) -> bool:
    """Whether a call comes from this machine, and no proxy forwards it for another address.

    peer, forwarded_for: as in `caller_address`. The console forwards calls of its own visitors.
    """
    if _is_unix(peer) and forwarded_for:
        hops = _hops(forwarded_for)
        return len(hops) == 1 and is_loopback(hops[0])
    address = _address_of(peer)
    is_here = _is_unix(peer) if address is None else address.is_loopback
    return is_here and not forwarded_for


def _is_unix(peer: str) -> bool:
    return peer.startswith("unix:")


def _hops(forwarded_for: Sequence[str]) -> list[str]:
    return [hop.strip() for value in forwarded_for for hop in value.split(",")]


def is_loopback(host: str) -> bool:
    """Whether only its own machine can reach a server that listens on host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(1024)
def _address_of(peer: str) -> IPv4Address | IPv6Address | None:
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return _plain(ip_address(host))
    except ValueError:
        return None


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an IPv4 address as such: a server on [::] sees it as ::ffff:192.0.2.1."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
