"""Runs pytest where nothing outlives it: `make cluster-test`, or `python -m tests.cluster ARGUMENTS`.

Network, processes, mounts and temporary files are in namespaces of their own. The kernel removes them with the last
process, however the tests end. The machine's own network is never touched. Needs Linux and root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

from tests.cluster.network import ISOLATED
from tests.postgres import binaries

_NEWNS, _NEWUTS, _NEWPID, _NEWNET = 0x0002_0000, 0x0400_0000, 0x2000_0000, 0x4000_0000
_PR_SET_PDEATHSIG = 1
STOP_S = 20  # after Ctrl-C or SIGTERM
PROGRAMS = {"ip": "iproute2", "nft": "nftables", "redis-server": "redis-server", "nginx": "nginx-light"}
MOUNTS = [
    ["mount", "--make-rprivate", "/"],
    ["mount", "-t", "proc", "proc", "/proc"],
    ["mount", "-t", "tmpfs", "tmpfs", "/run"],  # has the names of namespaces, and all temporary files
    ["ip", "link", "set", "lo", "up"],
]


def main() -> int:
    """Return pytest's exit status."""
    if missing := what_is_missing():
        sys.exit(f"make cluster-test: {missing}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNS | _NEWUTS | _NEWPID | _NEWNET):
        why = os.strerror(ctypes.get_errno())
        sys.exit(f"make cluster-test: this machine allows no namespaces: unshare: {why}")
    pid = os.fork()
    if pid == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os._exit(_init())
    return _wait(pid)


def _init() -> int:
    """Be the first process of the namespaces, which has to reap those that have lost their parents."""
    os.setsid()  # Ctrl-C reaches the tests once, through `_wait`
    for command in MOUNTS:
        subprocess.run(command, check=True)
    os.mkdir("/run/tmp")
    os.chmod("/run/tmp", 0o1777)
    environment = {name: value for name, value in os.environ.items() if not is_ours(name)}
    environment |= {ISOLATED: "1", "TMPDIR": "/run/tmp"}
    tests = os.fork()
    if tests == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells let processes in the background ignore it
        os.execve(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]], environment)
    signal.signal(signal.SIGINT, lambda *_: os.kill(tests, signal.SIGINT))
    while True:
        ended, status = os.wait()
        if ended == tests:
            return os.waitstatus_to_exitcode(status)


def what_is_missing() -> str:
    """What this machine lacks, and what to do; "" if it has everything."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, for network namespaces: sudo make cluster-test"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if binaries() is None:
        packages.append("postgresql")
    return f"programs are missing: apt-get install {' '.join(packages)}" if packages else ""


def is_ours(name: str) -> bool:
    """Whether a variable would change what the tests do: settings of the product, and proxies."""
    return name.startswith("TYPELESS_") or name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


def _wait(pid: int) -> int:
    """Wait for pytest. A signal to this process stops the tests, and kills them if they do not stop in time."""

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for one in stops:
            signal.signal(one, signal.SIG_IGN)
        os.kill(pid, signal.SIGINT)
        signal.alarm(STOP_S)

    for one in stops:
        signal.signal(one, stop)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
