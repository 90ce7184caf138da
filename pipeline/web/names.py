"""Host names to addresses, by the system's resolver, which cannot be interrupted and may take half a minute."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult


class Names(AbstractResolver):
    """Looks names up, each with a time limit and once for all who ask: answers, also bad ones, hold for `hold` s.

    The system's resolver cannot be interrupted. It works in threads, and whoever asked goes on without it.
    """

    def __init__(self, timeout: float, hold: float = 30.0, threads: int = 32) -> None:
        self.timeout, self.hold = timeout, hold
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._known: dict[tuple[str, int, int], tuple[float, asyncio.Future[list[ResolveResult]]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host. Raises socket.gaierror; EAI_AGAIN where it took too long."""
        now = time.monotonic()
        held = self._known.get((host, port, family))
        if held is None or now - held[0] > self.hold:
            lookup = asyncio.ensure_future(self._look_up(host, port, family))
            lookup.add_done_callback(lambda future: future.cancelled() or future.exception())
            held = self._known[host, port, family] = (now, lookup)
        return await asyncio.shield(held[1])

    async def _look_up(self, host: str, port: int, family: int) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._pool, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        try:
            found = await asyncio.wait_for(asked, self.timeout)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, f"{host} was not resolved in {self.timeout} s") from None
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        return [
            ResolveResult(
                hostname=host, host=str(address), port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
            )
            for kind, _, protocol, _, (address, *_) in found
        ]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
