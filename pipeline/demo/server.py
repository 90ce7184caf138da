"""The demo's web: a real HTTP server on loopback that, like the web, has lost some files and is slow with others."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.errors import PairmillError


@dataclass(frozen=True)
class Faults:
    """Fractions of the files that misbehave, drawn by a hash of (seed, path): the same files in every run."""

    seed: int = 0
    missing: float = 0.02
    slow: float = 0.02
    slow_seconds: float = 0.5
    stalled: float = 0.002
    stalled_seconds: float = 30.0

    def draw(self, path: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{path}".encode()).digest()[:4]) / 2**32


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextmanager
def serving(folder: Path, port: int, faults: Faults) -> Iterator[str]:
    """Serve `folder` on 127.0.0.1 while the block runs; yields the base url. Port 0 takes a free one."""
    stopping = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            draw = faults.draw(self.path)
            if draw < faults.missing:
                self.send_error(404)
                return
            if draw < faults.missing + faults.slow:
                time.sleep(faults.slow_seconds)
            elif draw < faults.missing + faults.slow + faults.stalled:
                stopping.wait(faults.stalled_seconds)
            super().do_GET()

        def list_directory(self, path: Any) -> None:
            self.send_error(404)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client may lose its patience
                super().handle()

    try:
        server = _Server(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise PairmillError(
            f"port {port} on 127.0.0.1 cannot be used: {getattr(error, 'strerror', error)}",
            "choose another: make demo PORT=8766",
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
