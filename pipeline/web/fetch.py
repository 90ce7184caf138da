"""The guarded fetch: what the open web may and may not do to us. It takes the place of img2dataset's own fetch.

Only the schemes and hosts that the recipe allows, at every redirect; addresses are checked when the socket is made
(`pipeline.web.guard`); one deadline for all that a url takes; a cap on bytes while they arrive and on pixels before any
decode; hosts are asked politely, and pictures whose owners opt out are not read (`pipeline.web.politeness`); another
try only where it can help.
"""

import asyncio
import io
import logging
import os
import ssl
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import certifi
from PIL import Image
from yarl import URL

from pipeline.recipe import Download
from pipeline.web.guard import ASKED, Guard, PrivateHostError, plain_host
from pipeline.web.names import Names
from pipeline.web.politeness import Host, HostDownError, back_off, opts_out, retry_after

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
UNREACHABLE = frozenset({"dns", "connect", "timeout", "host_down"})
"""Causes that speak of our network, or of a host, rather than of one image."""
PASSING = frozenset({"connect", "timeout", "interrupted", "http_408", "http_425", "http_429"})
"""Causes after which another try may help, beside 5xx; 501 and 505 say that the server never will."""
_REDIRECTS = {301, 302, 303, 307, 308}
_START_OF_SCAN = b"\xff\xda"
_MOST_SCANS = 100  # of a JPEG: programs write some ten, and each costs a pass over all its pixels
_HEADER = 1 << 16  # bytes among which a picture says how large it is, in most cases
_SMALL = 1 << 20
_LARGE_AT_ONCE = 128_000_000

Image.MAX_IMAGE_PIXELS = None  # the cap is ours


@dataclass
class Fetched:
    """What became of one url. `status` is "ok" or the cause of the failure, out of a closed list:

    bad_url, scheme, private_host, dns, connect, tls, timeout, host_down, redirects, http_<code>, opted_out, encoded,
    interrupted, max_bytes, not_image, max_pixels, max_scans, unexpected, and (set where the picture is stored)
    undecodable and bad_boxes. `bytes` are those of the whole answer; `seconds` those on the network, over all attempts.
    """

    status: str
    content: bytes | None = None
    bytes: int = 0
    http_status: int | None = None
    content_type: str | None = None
    format: str | None = None
    """What the bytes are, whatever their sender calls them: one of FORMATS."""
    final_url: str | None = None
    attempts: int = 0
    seconds: float = 0.0
    retry_after: float = 0.0
    held: int = 0
    """Bytes counted among the large bodies in memory: see `Fetcher.taken`."""
    is_ready: bool = False


def may_pass(status: str) -> bool:
    """Whether another try, now, may end otherwise."""
    return status in PASSING or (status.startswith("http_5") and status not in ("http_501", "http_505"))


class _RefusedError(Exception):
    """The answer is not wanted; `cause` is its Fetched.status."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Fetcher:
    """Fetches images over one pool of connections. Used in one event loop, as an async context manager.

    Any number of `fetch` may be under way; at most `threads` of them are on the network, and none of those waits for a
    busy host. Bodies over 1 MB are read by few at a time, so that memory is bounded by the caps, whatever is sent.
    """

    def __init__(self, settings: Download) -> None:
        self.settings = settings
        self.agent = settings.agent.partition("/")[0].strip()
        self.opt_outs = frozenset(directive.lower() for directive in settings.opt_out_directives)
        self.hosts: dict[str, Host] = {}
        self.slots = asyncio.Semaphore(settings.threads)
        self.held = self.ready = 0
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        """Cleared by whoever takes the results too slowly: nothing new is asked for then."""
        self.room.set()

    async def __aenter__(self) -> "Fetcher":
        settings = self.settings
        trust = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
        connector = aiohttp.TCPConnector(
            limit=0,
            # A connection serves one url: on one that is kept, a server may answer the next url before it is asked.
            force_close=True,
            ssl=trust,
            use_dns_cache=False,
            resolver=Names(settings.timeout, threads=settings.threads),
            socket_factory=Guard(settings.allow_hosts).socket,
        )
        self.session = aiohttp.ClientSession(
            connector=connector,
            # No cookie is kept: what one url answers must not depend on which others were asked for before.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": settings.agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                sock_connect=settings.timeout,
                sock_read=settings.timeout,
                ceil_threshold=float("inf"),  # nothing is rounded up to whole seconds
            ),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetch one image. Never raises for what the other side does."""
        result = await self._try(url, self.settings.deadline)
        result.attempts = 1
        while result.attempts <= self.settings.retries and may_pass(result.status):
            left = self.settings.deadline - result.seconds
            if left <= 0 or result.retry_after > self.settings.max_wait:
                break  # sooner than it asks for is not honoured
            await asyncio.sleep(max(result.retry_after, back_off(url, result.attempts)))
            again = await self._try(url, left)
            if again.status == "host_down":
                break  # its own failure says more than the host's
            again.attempts = result.attempts + 1
            again.seconds += result.seconds
            result = again
        return result

    async def _try(self, url: str, left: float) -> Fetched:
        result = Fetched("ok")
        try:
            content = await self._follow(url, left, result)
            result.format = check_image(content, self.settings.max_megapixels)
            result.content = content
            result.is_ready, self.ready = True, self.ready + result.held
            self.changed.set()
        except _RefusedError as refused:
            result.status = refused.cause
        except HostDownError:
            result.status = "host_down"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            result.status = _cause(error)
        except ValueError:
            result.status = "bad_url"
        except Exception:
            # One url must not cost the others of its shard; it is counted, and what happened is told.
            logging.getLogger(__name__).exception("fetching %r", url[:500])
            result.status = "unexpected"
        finally:
            if result.content is None:
                self.taken(result)
        return result

    def taken(self, result: Fetched) -> None:
        """To be called once the content is done with: its memory is free for others."""
        if result.held:
            self.held -= result.held
            self.ready -= result.held if result.is_ready else 0
            result.held = 0
            self.changed.set()

    async def _follow(self, url: str, left: float, result: Fetched) -> bytes:
        for _ in range(self.settings.max_redirects + 1):
            result.final_url = url
            target = URL(url)
            if target.scheme not in self.settings.schemes:
                raise _RefusedError("scheme")
            if not target.raw_host or target.port is None:
                raise _RefusedError("bad_url")
            host = self._host(target)
            async with host.turn(), self.slots:
                await self.room.wait()
                began = time.monotonic()
                try:
                    ASKED.set((target.raw_host, target.port))
                    async with asyncio.timeout(left) as limit:
                        answer = await self._ask(target, host, result, limit)
                except (TimeoutError, aiohttp.ClientConnectionError) as error:
                    if _cause(error) in ("timeout", "connect"):
                        host.failed()
                    raise
                finally:
                    spent = time.monotonic() - began
                    left -= spent
                    result.seconds += spent
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _RefusedError("redirects")

    def _host(self, target: URL) -> Host:
        name = plain_host(target.raw_host or "")
        if name not in self.hosts:
            settings = self.settings
            self.hosts[name] = Host(
                settings.max_per_host, settings.host_delay, settings.give_up_after, settings.max_wait
            )
        return self.hosts[name]

    async def _ask(self, target: URL, host: Host, result: Fetched, limit: asyncio.Timeout) -> bytes | str:
        """One request: the body, or where it is to be had instead."""
        async with self.session.get(target, allow_redirects=False) as response:
            result.http_status = status = response.status
            result.content_type = _readable(response.headers.get("Content-Type"))
            if status in (429, 503):
                result.retry_after = retry_after(response.headers.get("Retry-After"))
                host.asked_to_wait(result.retry_after)
                host.failed()
            if status != 200 and status not in _REDIRECTS:
                if status not in (429, 503):
                    host.answered()
                raise _RefusedError(f"http_{status}")
            if self.opt_outs and opts_out(response.headers.getall("X-Robots-Tag", ()), self.agent, self.opt_outs):
                host.answered()
                raise _RefusedError("opted_out")
            if status in _REDIRECTS:
                host.answered()
                return str(target.join(URL(response.headers.get("Location", ""))))
            if {name.strip().lower() for name in response.headers.getall("Content-Encoding", ())} - {"identity", ""}:
                raise _RefusedError("encoded")  # it was not asked for, and would have to be inflated to be looked at
            content = await self._body(response, result, limit)
            host.answered()
            result.bytes = len(content)
            return content

    async def _body(self, response: aiohttp.ClientResponse, result: Fetched, limit: asyncio.Timeout) -> bytes:
        if (response.content_length or 0) > self.settings.max_bytes:
            raise _RefusedError("max_bytes")
        content = io.BytesIO()  # which grows in place and gives its bytes away without a copy
        async for part in response.content.iter_any():
            before, size = content.tell(), content.tell() + len(part)
            if size > self.settings.max_bytes:
                raise _RefusedError("max_bytes")
            if before < _HEADER <= size:
                _check_header(content.getvalue() + part, self.settings.max_megapixels)
            if size > _SMALL and not result.held:
                await self._hold(result, response.content_length or self.settings.max_bytes, limit)
            content.write(part)
        return content.getvalue()

    async def _hold(self, result: Fetched, size: int, limit: asyncio.Timeout) -> None:
        """Wait until the large bodies in memory leave room for this one, of up to `size` bytes.

        The deadline goes on meanwhile, unless some of them are finished and wait to be stored: that delay is our own.
        """
        while self.held and self.held + size > _LARGE_AT_ONCE:
            self.changed.clear()
            began, ends = time.monotonic(), limit.when()
            ours = self.ready > 0
            if ours:
                limit.reschedule(None)
            await self.changed.wait()
            if ours and ends is not None:
                limit.reschedule(ends + time.monotonic() - began)
        self.held += size
        result.held = size


def check_image(content: bytes, max_megapixels: float) -> str:
    """The picture's format, by its header alone: neither the sender's word nor a decode is needed.

    Raises _RefusedError for what is no picture, and for one of more pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            # Pillow tells a JPEG with a second picture in it (MPO) from others; here it is a JPEG.
            kind: str = image.format if image.format in FORMATS else "JPEG"
    except Exception as error:  # whatever a decoder of hostile bytes comes upon
        raise _RefusedError("not_image") from error
    if kind == "JPEG" and content.count(_START_OF_SCAN) > _MOST_SCANS:
        raise _RefusedError("max_scans")
    depth = 2 if kind == "PNG" and content[24] == 16 else 1  # the cap is one on memory: 16-bit samples count twice
    if width * height * depth > max_megapixels * 1e6:
        raise _RefusedError("max_pixels")
    return kind


def _readable(header: str | None) -> str | None:
    """A header as text that any file can hold: what is not UTF-8 in it is replaced."""
    return header if header is None else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:500]


def _check_header(beginning: bytes, max_megapixels: float) -> None:
    """Refuse a picture of too many pixels while its first bytes are there and the rest need not come."""
    try:
        check_image(beginning, max_megapixels)
    except _RefusedError as refused:
        if refused.cause == "max_pixels":
            raise


def _cause(error: BaseException) -> str:
    """The closed list's name for a transport error."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, PrivateHostError):
            return "private_host"
        if isinstance(inner, ssl.SSLError | ssl.CertificateError):
            return "tls"
        inner = inner.__cause__ or inner.__context__
    causes: list[tuple[type[BaseException] | tuple[Any, ...], str]] = [
        (aiohttp.ClientConnectorDNSError, "dns"),
        ((aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch), "tls"),
        (TimeoutError, "timeout"),
        (aiohttp.InvalidURL, "bad_url"),
        (aiohttp.ClientConnectorError, "connect"),
    ]
    return next((cause for kinds, cause in causes if isinstance(error, kinds)), "interrupted")
