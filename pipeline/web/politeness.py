"""Manners: how often and how soon a host is asked, when it is left alone, and whose pictures are not taken."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex")
_NO_AGENTS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
"""Directives of X-Robots-Tag that have a colon themselves."""
_SEPARATORS = re.compile(r"""[,;"']|(?<!:)\s+(?!:)""")  # the comma is the standard's; the others are seen as well
_AGENT = re.compile(r"\*|[a-z_][\w.*-]*")


class HostDownError(Exception):
    """The host was given up for the rest of the shard."""


class Host:
    """One host's account: at most `at_once` requests under way, their starts `delay` seconds apart.

    It is given up after `give_up_after` failures in a row (0: never), or when it asks to be left alone for longer than
    `max_wait` seconds.
    """

    def __init__(self, at_once: int, delay: float, give_up_after: int, max_wait: float) -> None:
        self.delay, self.give_up_after, self.max_wait = delay, give_up_after, max_wait
        self.given_up = False
        self._slots = asyncio.Semaphore(at_once)
        self._next_start = 0.0
        self._failures = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it may be asked. Raises HostDownError once it is given up."""
        async with self._slots:
            while not self.given_up and (wait := self._next_start - time.monotonic()) > 0:
                await asyncio.sleep(wait)  # in turns: it may have asked for more time meanwhile
            if self.given_up:
                raise HostDownError
            self._next_start = time.monotonic() + self.delay
            yield

    def answered(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self.give_up_after and self._failures >= self.give_up_after:
            self.given_up = True

    def asked_to_wait(self, seconds: float) -> None:
        """It sent Retry-After."""
        if seconds > self.max_wait:
            self.given_up = True
        self._next_start = max(self._next_start, time.monotonic() + min(seconds, self.max_wait))


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3); 0 if it says nothing."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return 0.0


def back_off(url: str, attempt: int) -> float:
    """Seconds before another try: 0.5, 1, 2, ... 30, each less up to half of it, by a hash of the url.

    The jitter keeps the urls of one host from coming back all at once; a hash, and not chance, keeps runs alike.
    """
    draw = int.from_bytes(hashlib.sha256(f"{attempt}:{url}".encode(errors="replace")).digest()[:4]) / 2**32
    return float(min(0.5 * 2 ** (attempt - 1), 30.0)) * (1 - draw / 2)


def opts_out(values: Iterable[str], agent: str, directives: Collection[str]) -> bool:
    """Whether X-Robots-Tag headers keep `agent` (a product's name) from the picture, by one of `directives`.

    A directive may be meant for one crawler: "googlebot: noindex, nofollow". Such a name holds up to the next one;
    what stands before the first is meant for all. "none" is short for "noindex, nofollow".
    """
    for value in values:
        concerns_us = True
        for part in _SEPARATORS.split(value.lower()):
            name, colon, rest = map(str.strip, part.partition(":"))
            said = part.strip()
            if colon and _AGENT.fullmatch(name) and name not in _NO_AGENTS:
                concerns_us = name in ("*", agent.lower())
                said = rest
            if concerns_us and (said in directives or (said == "none" and "noindex" in directives)):
                return True
    return False
