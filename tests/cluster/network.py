"""Machines on one network: each a network namespace with an address, all on one bridge. And faults of their links."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.cluster.disorder import DisorderedLink

ISOLATED = "TYPELESS_CLUSTER_ISOLATED"  # is set by `python -m tests.cluster`
BRIDGE = "10.77.0.1"  # where the callers are
_NEWUTS, _NEWNET = 0x0400_0000, 0x4000_0000

# As a firewall that rejects: resets, in both directions.
CUT = """
table inet fault {{
  chain in {{ type filter hook input priority 0; ip saddr {peer} tcp flags & rst == 0 reject with tcp reset; }}
  chain out {{ type filter hook output priority 0; ip daddr {peer} tcp flags & rst == 0 reject with tcp reset; }}
}}
"""
BLACK_HOLE = """
table inet fault {{
  chain in {{ type filter hook input priority 0; ip saddr {peer} drop; }}
  chain out {{ type filter hook output priority 0; ip daddr {peer} drop; }}
}}
"""


class Network:
    """The machines by name, and their addresses."""

    def __init__(self, names: Iterable[str]) -> None:
        """Make the machines. Only within `python -m tests.cluster`, which removes them."""
        self.addresses = {name: f"10.77.0.{10 + i}" for i, name in enumerate(names)} | {"callers": BRIDGE}
        lines = ["link add bridge type bridge", f"addr add {BRIDGE}/24 dev bridge", "link set bridge up"]
        for i, (name, address) in enumerate(self.addresses.items()):
            if address == BRIDGE:
                continue
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            own = ["link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"]
            run("ip", "-n", name, "-batch", "-", text="\n".join(own))
            lines += [f"link set port{i} master bridge", f"link set port{i} up"]
        run("ip", "-batch", "-", text="\n".join(lines))

    def apply(self, name: str, sysctls: Path) -> None:
        """Apply a file of kernel settings to the network of a machine."""
        for line in sysctls.read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.partition(" = ")
                run(*on(name), "tee", f"/proc/sys/{key.replace('.', '/')}", text=value)

    @contextlib.contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """Reset all connections between two machines, and refuse new ones."""
        with self._rules(one, CUT.format(peer=self.addresses[other])):
            yield

    @contextlib.contextmanager
    def black_hole(self, one: str, other: str) -> Iterator[None]:
        """Drop all packets between two machines."""
        with self._rules(one, BLACK_HOLE.format(peer=self.addresses[other])):
            yield

    @contextlib.contextmanager
    def disordered(self, name: str) -> Iterator[DisorderedLink]:
        """Let packets from and to a machine come in another order, and twice."""
        port = f"port{list(self.addresses).index(name)}"
        run("ip", "link", "set", port, "nomaster")
        link = DisorderedLink(port, "disordered")
        try:
            run("ip", "-batch", "-", text="link set disordered master bridge\nlink set disordered up")
            yield link
        finally:
            link.close()
            run("ip", "link", "set", port, "master", "bridge")

    @contextlib.contextmanager
    def unplugged(self, name: str) -> Iterator[None]:
        """Take a machine off the network."""
        run("ip", "-n", name, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            run("ip", "-n", name, "link", "set", "eth0", "up")

    @contextlib.contextmanager
    def _rules(self, name: str, rules: str) -> Iterator[None]:
        run(*on(name), "nft", "-f", "-", text=rules)
        try:
            yield
        finally:
            run(*on(name), "nft", "delete", "table", "inet", "fault")


def on(name: str) -> list[str]:
    """What to put before a command to run it on a machine."""
    return ["ip", "netns", "exec", name]


def enter(name: str) -> None:
    """Put this process, which has no threads yet, on a machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/run/netns/{name}", os.O_RDONLY)
    if libc.setns(namespace, _NEWNET) or libc.unshare(_NEWUTS):
        raise OSError(ctypes.get_errno(), f"cannot enter {name}")
    os.close(namespace)
    socket.sethostname(name)


def run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{text}"
