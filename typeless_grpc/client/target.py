"""The address of a server, and the proxy on the way to it."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from urllib.parse import urlsplit

# Where gRPC looks for a proxy.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

DEFAULT_TARGET = "localhost:50051"


def target_to_call(target: str) -> str:
    """Return a target without surrounding white space. Raises ValueError for one that gRPC cannot call."""
    target = target.strip()
    if not (target and target.isascii() and target.isprintable() and " " not in target):
        raise ValueError(f"{target!a} is not a server address: write HOST:PORT, in ASCII and without spaces")
    if target.lower().startswith(("http://", "https://")):
        raise ValueError(f"{target} is not a server address: write HOST:PORT, without http:// or https://")
    # gRPC would call another port, the remainder of a division by 65536.
    if (
        (port := re.search(r"[^:]:(\d+)$", target))
        and int(port[1]) > 65535
        and not target.startswith(("unix", "vsock"))
    ):
        raise ValueError(f"{target} is not a server address: the highest port is 65535")
    return target


def host_of(target: str) -> str:
    """Return the (first) host of a target such as `dns:///HOST:1`, `ipv4:HOST:1`, `[HOST]:1` or `HOST`."""
    name = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:)", "", target).split(",")[0]
    match = re.fullmatch(r"\[(.*)\](:\w+)?|([^:]*)(:\w+)?", name)
    return (match[1] or match[3] or "") if match else name


def is_on_this_machine(target: str) -> bool:
    """Whether a target needs no network: a loopback address, localhost, or a socket of this machine."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    host = host_of(target).split("%")[0].rstrip(".").lower()
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    return host in ("localhost", "localhost.localdomain", "ip6-localhost") or host.endswith(".localhost")


def proxy_variable(details: str) -> str:
    """Return the environment variable with the proxy that gRPC's failure names; "" if there is none. details: of it."""
    for name in _PROXY_VARIABLES:
        with suppress(ValueError):  # not a URL: gRPC ignores it
            port = urlsplit(os.environ.get(name, "")).port
            if port is not None and re.search(rf":{port}\b", details):
                return name
    return ""
