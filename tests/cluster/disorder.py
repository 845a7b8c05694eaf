"""A bad link, without the kernel's `sch_netem`: some of its packets come late, out of order, and some come twice."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter

DUPLICATE, LATE = 0.05, 0.2  # of the packets
MAX_DELAY_S = 0.02

_TUNSETIFF = 0x400454CA
_TAP, _NO_PACKET_INFO, _VIRTUAL_HEADER = 0x0002, 0x1000, 0x4000  # <linux/if_tun.h>
_ALL_PROTOCOLS = 0x0003
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_OUTGOING = 263, 15, 4  # <linux/if_packet.h>
_MAX_FRAME = 10 + 14 + 65_536  # the virtual header says what of a large frame is left to do: segments, checksums


class DisorderedLink:
    """Carries packets between a port, which must have been taken off its bridge, and a tap device that it makes.

    n_packets: "carried", "late" and "twice", until `close`.
    """

    def __init__(self, port: str, tap: str, seed: int = 1) -> None:
        """tap: the name of the new device, which the caller attaches to the bridge."""
        self.n_packets: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._tap = os.open("/dev/net/tun", os.O_RDWR)
        mode = _TAP | _NO_PACKET_INFO | _VIRTUAL_HEADER
        fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), mode))
        self._port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._port.bind((port, _ALL_PROTOCOLS))
        self._numbers = itertools.count()  # those that are due at the same time keep their order
        self._due: list[tuple[float, int, bool, bytes]] = []  # when, number, whether to the port, frame
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="disordered-link")
        self._thread.start()

    def close(self) -> None:
        """Carry nothing any more, and remove the tap."""
        self._closed.set()
        self._thread.join()
        self._port.close()
        os.close(self._tap)

    def _carry(self) -> None:
        while not self._closed.is_set():
            wait_s = max(0.0, min(0.1, self._due[0][0] - time.monotonic())) if self._due else 0.1
            ready, _, _ = select.select([self._tap, self._port], [], [], wait_s)
            if self._tap in ready:
                self._take(os.read(self._tap, _MAX_FRAME), to_port=True)
            if self._port in ready:
                frame, address = self._port.recvfrom(_MAX_FRAME)
                if address[2] != _PACKET_OUTGOING:  # which is what this has sent
                    self._take(frame, to_port=False)
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, to_port, frame = heapq.heappop(self._due)
                if to_port:
                    self._port.send(frame)
                else:
                    os.write(self._tap, frame)

    def _take(self, frame: bytes, *, to_port: bool) -> None:
        self.n_packets["carried"] += 1
        is_double = self._random.random() < DUPLICATE
        self.n_packets["twice"] += is_double
        for _ in range(1 + is_double):
            is_late = self._random.random() < LATE
            self.n_packets["late"] += is_late
            delay_s = self._random.uniform(0.0, MAX_DELAY_S) if is_late else 0.0
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._numbers), to_port, frame))
