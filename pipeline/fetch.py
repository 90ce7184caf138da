"""The guarded fetch: what the open web may and may not do to us. It takes the place of img2dataset's own fetch.

Only the schemes and hosts that the recipe allows, at every redirect; addresses are checked when the socket is opened,
so that a name cannot point elsewhere a moment later; one deadline for the whole answer; a cap on bytes while they
arrive and on pixels before any decode; another try only where it can help.
"""

import io
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpcore
import httpx
from PIL import Image, UnidentifiedImageError

from pipeline.recipe import Download

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
UNREACHABLE = frozenset({"dns", "connect", "timeout"})
"""Causes that speak of our network rather than of one image."""


@dataclass
class Fetched:
    """What became of one url. `status` is "ok" or the cause of the failure, out of a closed list:

    bad_url, scheme, private_host, dns, connect, tls, timeout, redirects, http_<code>, interrupted, max_bytes,
    not_image, max_pixels, and (set by the resizer) undecodable.
    """

    status: str
    content: bytes | None = None
    bytes: int = 0
    http_status: int | None = None
    content_type: str | None = None
    final_url: str | None = None
    attempts: int = 1


class _RefusedError(Exception):
    """The answer is not wanted; `cause` is its Fetched.status."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Fetcher:
    """Fetches images over one shared connection pool. Threads may call `fetch` at once. A context manager."""

    def __init__(self, settings: Download) -> None:
        self.settings = settings
        self._deadline = threading.local()
        self._client = httpx.Client(
            timeout=settings.timeout,
            headers={"User-Agent": settings.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            trust_env=False,
        )
        self._client._transport = _guarded_transport(settings, self._deadline)
        # No cookie is kept: what one url answers must not depend on which others were asked for before.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(self, url: str) -> Fetched:
        """Fetch one image. Never raises for what the other side does."""
        for attempt in range(1, self.settings.retries + 2):
            self._deadline.at = time.monotonic() + self.settings.deadline
            result = self._try(url)
            result.attempts = attempt
            status_may_change = result.http_status in RETRIED_STATUSES and result.status.startswith("http_")
            if not status_may_change and result.status not in {*UNREACHABLE, "interrupted"}:
                break
            if attempt <= self.settings.retries:
                time.sleep(min(0.2 * 2**attempt, 5.0))
        return result

    def _try(self, url: str) -> Fetched:
        result = Fetched("ok")
        try:
            result.content = self._read(url, result)
            result.bytes = len(result.content)
            _check_image(result.content, self.settings.max_megapixels)
        except _RefusedError as refused:
            result.status = refused.cause
        except httpx.HTTPError as error:
            result.status = _cause(error)
        except (httpx.InvalidURL, ValueError, UnicodeError):
            result.status = "bad_url"
        if result.status != "ok":
            result.content = None
        return result

    def _read(self, url: str, result: Fetched) -> bytes:
        for _ in range(self.settings.max_redirects + 1):
            result.final_url = url
            target = httpx.URL(url)
            if target.scheme not in self.settings.schemes:
                raise _RefusedError("scheme")
            if not target.host:
                raise _RefusedError("bad_url")
            with self._client.stream("GET", target) as response:
                result.http_status = response.status_code
                result.content_type = response.headers.get("content-type")
                if response.is_redirect:
                    url = str(target.join(response.headers.get("location", "")))
                    continue
                if response.status_code != 200:
                    raise _RefusedError(f"http_{response.status_code}")
                return self._body(response)
        raise _RefusedError("redirects")

    def _body(self, response: httpx.Response) -> bytes:
        content = bytearray()
        if _announced(response) > self.settings.max_bytes:
            raise _RefusedError("max_bytes")
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > self.settings.max_bytes:
                raise _RefusedError("max_bytes")
        return bytes(content)


def _announced(response: httpx.Response) -> int:
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def _check_image(content: bytes, max_megapixels: float) -> None:
    """Look at the header alone: neither the sender's word nor a decode is needed to know type and size."""
    try:
        Image.MAX_IMAGE_PIXELS = None  # the cap is ours, and nothing is decoded here
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, ImportError) as error:
        # ImportError: where ultralytics is loaded too, its own Image.open wants a plugin for what Pillow does not know.
        raise _RefusedError("not_image") from error
    if width * height > max_megapixels * 1e6:
        raise _RefusedError("max_pixels")


def _cause(error: httpx.HTTPError) -> str:
    """The closed list's name for a transport error."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, _PrivateHostError):
            return "private_host"
        if isinstance(inner, _UnknownHostError):
            return "dns"
        if isinstance(inner, ssl.SSLError):
            return "tls"
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    if isinstance(error, httpx.ConnectError):
        return "connect"
    if isinstance(error, httpx.UnsupportedProtocol):
        return "scheme"
    return "interrupted"


class _PrivateHostError(httpcore.ConnectError):
    """The address is not on the public internet, and the recipe does not allow the host."""


class _UnknownHostError(httpcore.ConnectError):
    """The name does not resolve."""


def _guarded_transport(settings: Download, deadline: threading.local) -> httpx.HTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.threads)
    transport = httpx.HTTPTransport(limits=limits, trust_env=False)
    transport._pool._network_backend = _GuardedBackend(settings.allow_hosts, deadline)  # httpx has no argument for it
    return transport


class _GuardedBackend(httpcore.NetworkBackend):
    """Opens sockets to checked addresses only, and lets no socket operation outlast the answer's deadline."""

    def __init__(self, allow_hosts: Iterable[str], deadline: threading.local) -> None:
        self.allow_hosts = frozenset(host.lower() for host in allow_hosts)
        self.deadline = deadline
        self.plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        last: Exception = _UnknownHostError(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                left = _time_left(self.deadline, timeout, httpcore.ConnectTimeout)
                stream = self.plain.connect_tcp(address, port, left, local_address, socket_options)
                return _TimedStream(stream, self.deadline)
            except httpcore.ConnectError as error:
                last = error
        raise last

    def _addresses(self, host: str, port: int) -> list[str]:
        import socket

        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _UnknownHostError(str(error)) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if host.lower() in self.allow_hosts:
            return addresses
        public = [address for address in addresses if is_public(address)]
        if not public:
            raise _PrivateHostError(host)
        return public


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, also when it is IPv4 in IPv6's clothes."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if inner := ip.ipv4_mapped or ip.sixtofour:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False  # IPv4-compatible, site-local, local NAT64 and the like, which is_global lets through
    return ip.is_global and not ip.is_multicast


class _TimedStream(httpcore.NetworkStream):
    """A socket whose every operation ends by the deadline of the thread's current answer."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: threading.local) -> None:
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _time_left(self.deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _time_left(self.deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _time_left(self.deadline, timeout, httpcore.ConnectTimeout)
        return _TimedStream(self.stream.start_tls(ssl_context, server_hostname, left), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _time_left(deadline: threading.local, timeout: float | None, expired: type[Exception]) -> float:
    left = deadline.at - time.monotonic()
    if left <= 0:
        raise expired("the answer's deadline has passed")
    return left if timeout is None else min(left, timeout)
