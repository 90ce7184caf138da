"""The benchmarks' web: pictures, and what is worse, over keep-alive from one process on many loopback addresses.

`python -m tests.bench.bench_web HOSTS DRIP_SECONDS` prints its port and serves until its standard input closes.
A path's first part says what it is: /photo/7.jpg, /drip/7.jpg (10 bytes a second), /huge/7.jpg (400 MB), /bomb/7.png
(30 000 x 30 000 pixels).
"""

import asyncio
import contextlib
import io
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

HUGE = 400_000_000
DROP = 10  # bytes a second
SIDES = [(640, 480), (800, 600), (500, 750), (1024, 683), (400, 400)]


def addresses(hosts: int) -> list[str]:
    return [f"127.0.{1 + index // 250}.{1 + index % 250}" for index in range(hosts)]


@contextmanager
def serving(hosts: int, drip_seconds: float = 0) -> Iterator[list[str]]:
    """The base urls of that many hosts, served by a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_web", str(hosts), str(drip_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield [f"http://{address}:{port}" for address in addresses(hosts)]
        finally:
            process.kill()


def photos() -> list[bytes]:
    """Twenty JPEGs of 60 to 150 KB, as smooth and as noisy as photographs are."""
    draw = np.random.default_rng(0)
    made = []
    for index in range(20):
        width, height = SIDES[index % len(SIDES)]
        coarse = Image.fromarray(draw.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + draw.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


def bomb(side: int = 30_000) -> bytes:
    """A real PNG of grey pixels, all the same: less than 1 MB that becomes side * side bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    packer = zlib.compressobj(6)
    row = b"\0" * (side + 1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def _answer(
    kind: str, number: int, writer: asyncio.StreamWriter, pictures: Sequence[bytes], drip_seconds: float
) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    if kind in ("photo", "bomb"):
        content = pictures[-1] if kind == "bomb" else pictures[number % (len(pictures) - 1)]
        writer.write(head.format(len(content)).encode() + content)
        await writer.drain()
    elif kind == "drip":
        content = pictures[0][: int(DROP * drip_seconds)]
        writer.write(head.format(len(content)).encode())
        for start in range(0, len(content), DROP):
            writer.write(content[start : start + DROP])
            await writer.drain()
            await asyncio.sleep(1)
    else:
        writer.write(head.format(HUGE).encode())
        for _ in range(HUGE // 1_000_000):
            writer.write(b"\0" * 1_000_000)
            await writer.drain()


async def _serve(hosts: int, drip_seconds: float) -> None:
    pictures = [*photos(), bomb()]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                _, kind, name = request.split(b" ", 2)[1].decode().split("/")
                await _answer(kind, int(name.partition(".")[0]), writer, pictures, drip_seconds)
                if b"connection: close" in request.lower():
                    break
        writer.close()

    first, *others = addresses(hosts)
    server = await asyncio.start_server(handle, first, 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    if others:
        await asyncio.start_server(handle, others, port, backlog=1024)
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
