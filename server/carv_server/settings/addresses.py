"""Whether an address can be reached from other machines."""

from __future__ import annotations

import ipaddress
import socket

__all__ = ["is_public"]


def is_public(address: str) -> bool:
    """Whether a listener on it would be reached from beyond this machine.

    A name counts as what it resolves to here; one that does not resolve cannot be listened on.
    """
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return address.startswith("vsock:")
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    address = address.lstrip("/")
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    if host in ("", "*"):
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, ValueError):  # also of a name that cannot be encoded
        return False
    return any(
        not ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found
    )
