"""The guarded fetch against a real, hostile server on loopback."""

import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from corpus import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from web import Web, answer, drips, misbehaving, says

from pipeline.fetch import Fetched, Fetcher, _check_image, _RefusedError, is_public
from pipeline.recipe import Download

PICTURE = encoded(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3), "PNG")
CLOSED = frozenset(
    [
        "bad_url",
        "scheme",
        "private_host",
        "dns",
        "connect",
        "tls",
        "timeout",
        "redirects",
        "interrupted",
        "max_bytes",
        "not_image",
        "max_pixels",
    ]
)


@pytest.fixture
def web() -> Iterator[Web]:
    with misbehaving() as web:
        yield web


def fetch(url: str, **changes: object) -> Fetched:
    values = {"allow_hosts": ["127.0.0.1"], "retries": 0, "timeout": 5, "deadline": 10, "max_bytes": 100_000, **changes}
    with Fetcher(Download.model_validate(values)) as fetcher:
        return fetcher.fetch(url)


def redirect(location: str, status: str = "302 Found") -> object:
    return says(answer(status, location=location))


def test_a_good_answer_is_returned_whole(web: Web) -> None:
    result = fetch(web.put("/a.png", says(answer("200 OK", PICTURE, content_type="image/png"))))
    assert (result.status, result.content, result.bytes, result.http_status, result.attempts) == (
        *("ok", PICTURE, len(PICTURE), 200, 1),
    )
    assert result.content_type == "image/png"


def test_chunked_bodies_are_joined(web: Web) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (PICTURE[:10], PICTURE[10:])) + b"0\r\n\r\n"
    url = web.put("/a", says(answer("200 OK", chunks, transfer_encoding="chunked")))
    assert fetch(url).content == PICTURE


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone", "204 No Content", "501 No"])
def test_final_answers_are_not_asked_for_again(web: Web, status: str) -> None:
    result = fetch(web.put("/gone", says(answer(status))), retries=3)
    assert (result.status, web.asked["/gone"], result.content) == (f"http_{status[:3]}", 1, None)


@pytest.mark.parametrize("status", ["503 Busy", "429 Slow down", "500 Oops"])
def test_passing_troubles_are_asked_for_again(web: Web, status: str) -> None:
    url = web.put("/busy", says(answer(status)), says(answer("200 OK", PICTURE)))
    result = fetch(url, retries=2)
    assert (result.status, result.attempts, web.asked["/busy"]) == ("ok", 2, 2)


def test_retries_end(web: Web) -> None:
    result = fetch(web.put("/busy", says(answer("503 Busy"))), retries=1)
    assert (result.status, web.asked["/busy"]) == ("http_503", 2)


def test_a_reset_is_asked_for_again(web: Web) -> None:
    def reset(connection: socket.socket, _: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nabc")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    url = web.put("/reset", reset, says(answer("200 OK", PICTURE)))
    assert fetch(url, retries=1).status == "ok"
    assert fetch(web.put("/reset2", reset)).status == "interrupted"


def test_a_body_cut_short_is_no_picture(web: Web) -> None:
    url = web.put("/cut", says(answer("200 OK", PICTURE[:50], content_length=str(len(PICTURE)))))
    result = fetch(url)
    assert (result.status, result.content) == ("interrupted", None)


def test_redirects_are_followed_and_the_last_url_is_told(web: Web) -> None:
    web.put("/end.png", says(answer("200 OK", PICTURE)))
    web.put("/two", redirect("end.png"))
    result = fetch(web.put("/one", redirect(web.url("/two"), "301 Moved")))
    assert (result.status, result.final_url) == ("ok", web.url("/end.png"))


@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_loop_of_redirects_ends(web: Web, most: int) -> None:
    result = fetch(web.put("/loop", redirect("/loop")), max_redirects=most, retries=3)
    assert (result.status, web.asked["/loop"]) == ("redirects", most + 1)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png;base64,AAAA", "gopher://x"]
)
def test_a_redirect_cannot_leave_the_allowed_schemes(web: Web, location: str) -> None:
    assert fetch(web.put("/away", redirect(location))).status in ("scheme", "bad_url")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.2", "0.0.0.0", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_a_redirect_cannot_reach_a_private_host(web: Web, host: str) -> None:
    web.put("/secret", says(answer("200 OK", PICTURE)))
    result = fetch(web.put("/inside", redirect(web.url("/secret", host))))
    assert result.status in ("private_host", "dns", "bad_url")
    assert web.asked["/secret"] == 0


@pytest.mark.parametrize("location", ["http://[", "http://", "//", "http://exa mple/", "\x7f", "http://h:99999/", ""])
def test_a_broken_redirect_is_a_cause_and_no_exception(web: Web, location: str) -> None:
    assert fetch(web.put("/broken", redirect(location)), max_redirects=2).status in CLOSED


def test_private_hosts_are_refused_unless_allowed(web: Web) -> None:
    url = web.put("/a", says(answer("200 OK", PICTURE)))
    assert fetch(url, allow_hosts=[]).status == "private_host"
    assert fetch(url, allow_hosts=["localhost"]).status == "private_host"
    assert web.asked["/a"] == 0
    assert fetch(web.url("/a", "LOCALHOST"), allow_hosts=["LocalHost"]).status == "ok"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a.png", "FILE:///etc/passwd", "javascript:1", "/etc/passwd", "a.png"],
)
def test_other_schemes_are_refused(url: str) -> None:
    assert fetch(url).status == "scheme"


@pytest.mark.parametrize(
    "url", ["", "http://", "http:///a.png", "http://[::1", "http://h:port/", "http://\ud800/", "h" * 70000]
)
def test_a_broken_url_is_a_cause_and_no_exception(url: str) -> None:
    assert fetch(url).status in ("bad_url", "scheme")


def test_https_only_refuses_http(web: Web) -> None:
    assert fetch(web.put("/a", says(answer("200 OK", PICTURE))), schemes=["https"]).status == "scheme"


def test_plain_http_behind_https_is_a_tls_failure(web: Web) -> None:
    assert fetch(web.url("/a").replace("http:", "https:"), timeout=3).status == "tls"


def test_a_dripping_body_is_beaten_by_the_deadline(web: Web) -> None:
    url = web.put("/drip", drips(answer("200 OK", b"", content_length="90000"), b"x", 0.05))
    began = time.monotonic()
    assert fetch(url, timeout=5, deadline=1).status == "timeout"
    assert 0.9 < time.monotonic() - began < 3


def test_dripping_headers_are_beaten_by_the_deadline(web: Web) -> None:
    began = time.monotonic()
    assert fetch(web.put("/drip", drips(b"HTTP/1.1 200 OK\r\n", b"x", 0.05)), timeout=5, deadline=1).status == "timeout"
    assert time.monotonic() - began < 3


def test_dripping_redirects_are_beaten_by_the_deadline(web: Web) -> None:
    def late(connection: socket.socket, stopping: object) -> None:
        stopping.wait(0.4)  # type: ignore[attr-defined]
        connection.sendall(answer("302 Found", location="/slow"))

    began = time.monotonic()
    assert fetch(web.put("/slow", late), timeout=5, deadline=1, max_redirects=20).status == "timeout"
    assert time.monotonic() - began < 3


def test_a_silent_server_is_beaten_by_the_timeout(web: Web) -> None:
    began = time.monotonic()
    assert fetch(web.put("/", drips(b"", b"", 60)), timeout=0.5, deadline=20).status == "timeout"
    assert time.monotonic() - began < 3


def test_endless_headers_end(web: Web) -> None:
    url = web.put("/h", drips(b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 60000 + b"\r\n", 0.001))
    assert fetch(url, deadline=5).status == "interrupted"


def test_an_announced_size_over_the_cap_is_not_read(web: Web) -> None:
    def behave(connection: socket.socket, stopping: object) -> None:
        connection.sendall(answer("200 OK", b"", content_length="100001"))
        connection.settimeout(5)
        assert connection.recv(1) == b""  # the client hangs up without waiting for the body

    assert fetch(web.put("/big", behave)).status == "max_bytes"


def test_an_unannounced_size_over_the_cap_is_cut_off(web: Web) -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    began = time.monotonic()
    assert fetch(web.put("/big", drips(head, b"x" * 65536, 0.01))).status == "max_bytes"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("size", "status"), [(100_000, "ok"), (100_001, "max_bytes")])
def test_the_cap_on_bytes_is_exact(web: Web, size: int, status: str) -> None:
    body = PICTURE + b"\0" * (size - len(PICTURE))
    assert fetch(web.put("/edge", says(answer("200 OK", body)))).status == status


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + PICTURE[33:]


@pytest.mark.parametrize(
    ("width", "height", "status"), [(1000, 1000, "ok"), (1000, 1001, "max_pixels"), (2**31 - 1,) * 2 + ("max_pixels",)]
)
def test_pixels_are_capped_by_the_header_alone(web: Web, width: int, height: int, status: str) -> None:
    result = fetch(web.put("/bomb", says(answer("200 OK", png_header(width, height)))), max_megapixels=1)
    assert result.status == status


@pytest.mark.parametrize(
    "body",
    [b"<html>not found</html>", b"", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='x'/>", b"%PDF-1.4", b"II*\0" + b"\0" * 60],
)
def test_what_is_no_picture_is_refused_whatever_its_type_says(web: Web, body: bytes) -> None:
    assert fetch(web.put("/x", says(answer("200 OK", body, content_type="image/png")))).status == "not_image"


def test_an_unknown_name_is_a_dns_failure() -> None:
    assert fetch("http://no-such-host.invalid/a.png").status == "dns"


def test_a_closed_port_is_a_failed_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/").status == "connect"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/9.9 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_what_is_not_http_is_an_interruption(web: Web, content: bytes) -> None:
    assert fetch(web.put("/odd", says(content))).status == "interrupted"


def test_no_cookie_is_carried_from_one_answer_to_the_next(web: Web) -> None:
    web.put("/b", says(answer("200 OK", PICTURE)))
    url = web.put("/a", says(answer("302 Found", location="/b", set_cookie="who=you")))
    assert fetch(url).status == "ok"
    assert b"cookie" not in web.requests["/b"].lower()


PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "0.0.0.0", "0.1.2.3"),
    *(
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::", "2002:a9fe:a9fe::", "::ffff:0:127.0.0.1", "100::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_may_not_be_reached_in_whatever_clothes(address: str) -> None:
    assert not is_public(address)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), st.integers(0, 2**32))
def test_no_mutilated_picture_raises_more_than_a_refusal(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(encoded(np.full((9, 11, 3), 7, np.uint8), kind))
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(min(len(content), 80))] = draw.randrange(256)
    try:
        _check_image(bytes(content[: draw.randint(4, len(content))]), 1)
    except _RefusedError as refused:
        assert refused.cause in ("not_image", "max_pixels")  # noqa: PT017


def test_many_threads_share_one_fetcher(web: Web) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for index in range(40):
        body = PICTURE + bytes([index])
        web.put(f"/{index}", says(answer("200 OK", body)) if index % 4 else drips(b"", b"", 60))
    values = {"allow_hosts": ["127.0.0.1"], "retries": 0, "timeout": 2, "deadline": 3}
    with Fetcher(Download.model_validate(values)) as fetcher, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda index: fetcher.fetch(web.url(f"/{index}")), range(40)))
    for index, result in enumerate(results):
        assert (result.status, result.content) == (("ok", PICTURE + bytes([index])) if index % 4 else ("timeout", None))
