"""A web that misbehaves on purpose: raw sockets on loopback, one behaviour for each path."""

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behaviour = Callable[[socket.socket, threading.Event], None]


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items())]
    if "content-length" not in named and "transfer-encoding" not in named:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def says(content: bytes) -> Behaviour:
    return lambda connection, _: connection.sendall(content)


def drips(first: bytes, drop: bytes, pause: float) -> Behaviour:
    """Send `first`, then `drop` again and again."""

    def behave(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(first)
        while not stopping.wait(pause):
            connection.sendall(drop)

    return behave


class Web:
    """What stands where, and how often each path was asked for."""

    def __init__(self) -> None:
        self.behaviours: dict[str, Behaviour | list[Behaviour]] = {}
        self.asked: Counter[str] = Counter()
        self.requests: dict[str, bytes] = {}
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, *behaviours: Behaviour) -> str:
        """Let `path` behave so, call by call; the last one stays. Returns its url."""
        self.behaviours[path] = list(behaviours)
        return self.url(path)

    def _serve(self, connection: socket.socket, stopping: threading.Event) -> None:
        with connection, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                chunk = connection.recv(65536)
                if not chunk:
                    return
                request += chunk
                if request.startswith(b"\x16\x03"):  # a TLS greeting
                    connection.sendall(answer("400 This is plain HTTP"))
                    return
            path = request.split(b" ")[1].decode()
            behaviours = self.behaviours.get(path)
            self.asked[path] += 1
            self.requests[path] = request
            if not behaviours:
                connection.sendall(answer("404 Not Found"))
                return
            assert isinstance(behaviours, list)
            behaviours[min(self.asked[path], len(behaviours)) - 1](connection, stopping)


@contextmanager
def misbehaving(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """A web on a free port of 127.0.0.1, over TLS where a context is given."""
    web, stopping = Web(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    web.port = listener.getsockname()[1]

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):  # such as a client that does not trust us
            web._serve(tls.wrap_socket(connection, server_side=True) if tls else connection, stopping)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        stopping.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
