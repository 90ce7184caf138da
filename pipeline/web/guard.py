"""Which addresses a socket may be opened to. Asked when the socket is made, for the very address it will connect to:
a name that points elsewhere a moment after it was looked at ("rebinding") gains nothing.
"""

import contextvars
import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache

from yarl import URL

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
"""Where clouds tell a machine its own credentials: a network that holds one of these does not allow it."""

_NEVER_IN_A_HOST = frozenset(" \t\r\n/@?#\\")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ASKED: contextvars.ContextVar[tuple[str, int]] = contextvars.ContextVar("asked")
"""The (host, port) that the task at work wants to reach; sockets are made on its behalf."""


class PrivateHostError(OSError):
    """The address is not on the public internet, and the recipe does not allow it."""


def unwrapped(address: str) -> Address:
    """An IP address without its zone, and as IPv4 where it is that in IPv6's clothes (mapped, 6to4, NAT64)."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, also when it is IPv4 in IPv6's clothes."""
    ip = unwrapped(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False  # IPv4-compatible, site-local, local NAT64 and the like, which is_global lets through
    return ip.is_global and not ip.is_multicast and ip not in METADATA


@lru_cache(maxsize=4096)
def plain_host(host: str) -> str:
    """A host as it is compared: lower case, IDN in its ASCII form, no brackets, no final dot. Raises ValueError."""
    host = host.rstrip(".")
    url = URL(f"http://[{host}]/" if ":" in host and not host.startswith("[") else f"http://{host}/")
    if not url.raw_host or url.explicit_port or set(host + url.raw_host) & _NEVER_IN_A_HOST:
        raise ValueError(f"{host!r} is no host")
    return url.raw_host.lower().rstrip(".")


class Guard:
    """The recipe's `allow_hosts` over the rule that only public addresses are reached.

    An entry is a host as the url has it, with or without a port (an IPv6 address with a port in brackets), or a network
    as `10.1.0.0/16`. A named host may resolve to whatever it likes, but for METADATA: those must be named themselves.
    That an address is named lets no other name lead there.
    Raises ValueError for an entry that is none of these.
    """

    def __init__(self, allow_hosts: Iterable[str]) -> None:
        self.names: dict[str, set[int] | None] = {}
        self.networks: list[Network] = []
        for entry in allow_hosts:
            self._add(entry)

    def _add(self, entry: str) -> None:
        if "/" in entry:
            self.networks.append(ipaddress.ip_network(entry, strict=False))
            return
        host, port = entry, ""
        if entry.count(":") == 1 or "]:" in entry:
            host, _, port = entry.rpartition(":")
        name = plain_host(host)
        if not port:
            self.names[name] = None
        elif not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{entry!r}: {port!r} is no port")
        elif (ports := self.names.setdefault(name, set())) is not None:
            ports.add(int(port))

    def permits(self, host: str, port: int, address: str) -> bool:
        """Whether a socket may be opened to `address`, which is what `host` resolves to just now."""
        if is_public(address):
            return True
        ip = unwrapped(address)
        if ip in METADATA and plain_host(host) != str(ip):
            return False
        return self._named(host, port) or (ip not in METADATA and any(ip in network for network in self.networks))

    def _named(self, host: str, port: int) -> bool:
        ports = self.names.get(plain_host(host), set())
        return ports is None or port in ports

    def socket(self, info: tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]) -> socket.socket:
        """Make the socket for one address of `getaddrinfo`'s form. Raises PrivateHostError."""
        family, kind, protocol, _, (address, *_) = info
        host, port = ASKED.get()
        if not self.permits(host, port, address):
            raise PrivateHostError(f"{host} is no public host")
        return socket.socket(family, kind, protocol)
