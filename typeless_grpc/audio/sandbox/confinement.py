"""Confines a process: it can only compute, read and write its open files, and allocate memory.

The kernel enforces it: limits of resources (setrlimit), no new privileges, and a seccomp filter that allows a few
system calls and refuses all others, so the process cannot open a file, make a socket, start a process or a thread, send
a signal, or make memory executable. No privilege is needed for it. docs/decisions/0010-decoder-processes.md says why no
library does this.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38  # prctl(2)
_SECCOMP_MODE_FILTER = 2
_PROT_EXEC = 4
_EPERM = 1

# Of linux/filter.h, linux/seccomp.h and linux/audit.h.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT, _THIRD_ARGUMENT_AT = 0, 4, 32

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# The system calls that a decoder makes, and their numbers on these architectures (asm/unistd.h).
_CALLS = {
    "read": (0, 63),
    "readv": (19, 65),
    "write": (1, 64),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "lseek": (8, 62),
    "fstat": (5, 80),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "restart_syscall": (219, 128),
}
_MAPPING_CALLS = {"mmap": (9, 222), "mprotect": (10, 226)}  # allowed without PROT_EXEC


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h: a filter, and the number of its instructions."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent, which has this id, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def confine(memory_bytes: int, cpu_s: int) -> bool:
    """Confine this process for good. Return whether system calls are filtered.

    memory_bytes: size of its address space. cpu_s: CPU time after which the kernel ends it; its parent may raise that.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))  # open files stay open
    return _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and _filter_system_calls()


def address_space_bytes() -> int:
    """Return how much address space this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def prefer_in_out_of_memory() -> None:
    """Make the kernel end this process and its children before others when memory runs out."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def _filter_system_calls() -> bool:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    code = _filter(*known)
    program = _Program(len(code) // 8, code)
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(column: int, architecture: int) -> bytes:
    """Return a program for the kernel (seccomp(2)): of 8 bytes each, code, jumps if true and if false, operand."""
    plain = [numbers[column] for numbers in _CALLS.values()]
    mmap, mprotect = (numbers[column] for numbers in _MAPPING_CALLS.values())
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_JUMP_IF_EQUAL, len(plain) - i + 5, 0, number) for i, number in enumerate(plain)),  # to the last line
        (_JUMP_IF_EQUAL, 2, 0, mmap),
        (_JUMP_IF_EQUAL, 1, 0, mprotect),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _THIRD_ARGUMENT_AT),
        (_JUMP_IF_SET, 0, 1, _PROT_EXEC),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
