"""The part of the console that one address may use, so that no visitor keeps others out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from typeless_grpc.access.address import Network, caller_address

SHARE = 4  # an address may use one part of this many


class Peers:
    """Maps addresses to visitors. This machine and trusted proxies stand for many visitors, and have no share."""

    def __init__(self, proxies: Sequence[Network]) -> None:
        self._proxies = tuple(proxies)

    def visitor(self, address: str) -> str:
        """Return the visitor behind an address, an IPv6 network as one; "" if it stands for many."""
        plain = ip_address(address)
        if isinstance(plain, IPv6Address) and plain.ipv4_mapped is not None:
            plain = plain.ipv4_mapped
        if plain.is_loopback or any(plain in network for network in self._proxies):
            return ""
        return caller_address(f"ipv6:[{address}]:0" if ":" in address else f"ipv4:{address}:0", (), ())

    def is_over(self, address: str, connected: Iterable[str], max_connections: int) -> bool:
        """Whether a new connection is too many. connected: the addresses of all connections, this one included."""
        counts = Counter(map(self.visitor, connected))
        visitor = self.visitor(address)
        return counts.total() > max_connections or (
            visitor != "" and counts[visitor] > max(1, max_connections // SHARE)
        )
