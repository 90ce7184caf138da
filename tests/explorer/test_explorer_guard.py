"""Over real sockets: whose requests and websockets the explorer answers, and what it tells the browser to refuse."""

import asyncio
import socket
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from explored import Explored
from hypothesis import given
from hypothesis import strategies as st
from websockets.typing import Origin

from pipeline.explorer.guard import is_own


def get(server: Explored, path: str = "/", **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(server.address + path, headers=given, timeout=20)


def port(server: Explored) -> int:
    found = urlsplit(server.address).port
    assert found
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machines_names_are_answered(server: Explored, host: str) -> None:
    assert get(server, Host=f"{host}:{port(server)}").status_code == 200


FOREIGN = [
    "evil.example",
    "127.0.0.1.evil.example",
    "evil.example:8080",
    "localhost.",
    "127.0.0.1@evil.example",
    "2130706433",
]


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/", "/picture/000000000", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"])
def test_a_foreign_name_that_resolves_to_this_machine_is_refused(server: Explored, host: str, path: str) -> None:
    assert get(server, path, Host=host).status_code == 403


def test_a_request_with_two_hosts_or_none_is_refused(server: Explored) -> None:
    for lines in ("Host: 127.0.0.1\r\nHost: evil.example\r\n", ""):
        with socket.create_connection(("127.0.0.1", port(server)), 10) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
            assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "file://",
    ],
)
def test_another_origin_is_refused(server: Explored, origin: str) -> None:
    assert get(server, Origin=origin.format(port=port(server))).status_code == 403


def test_its_own_origin_is_answered(server: Explored) -> None:
    assert get(server, Origin=server.address).status_code == 200


def test_what_a_foreign_page_embeds_is_refused_but_a_link_is_followed(server: Explored) -> None:
    embedded = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    assert get(server, "/picture/000000000", **embedded).status_code == 403
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert get(server, **followed).status_code == 200


def test_every_answer_carries_the_policy(server: Explored) -> None:
    for path, status in (("/", 200), ("/nowhere", 404), ("/picture/none", 404), ("/picture/000000000", 200)):
        answer = get(server, path)
        assert answer.status_code == status
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "http:" not in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert get(server, Host="evil.example").headers["x-frame-options"] == "DENY"


def test_only_this_machine_can_connect(server: Explored) -> None:
    """It listens on the loopback alone, not on the machine's other addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))
            address = outward.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
    if address.startswith("127."):
        pytest.skip("this machine has no address but the loopback's")
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((address, port(server)), 2)


async def _opened(server: Explored, origin: str, host: str = "127.0.0.1") -> int:
    """The status with which a websocket is answered that asks for `host`."""
    address = f"ws://{host}:{port(server)}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    try:
        async with websockets.connect(address, origin=Origin(origin), open_timeout=10, host="127.0.0.1") as opened:
            await asyncio.wait_for(opened.recv(), 10)
            return 101
    except websockets.InvalidStatus as refused:
        return refused.response.status_code


def test_a_foreign_page_opens_no_websocket(server: Explored) -> None:
    assert asyncio.run(_opened(server, server.address)) == 101
    for origin in ("http://evil.example", "null", server.address.replace("127.0.0.1", "localhost")):
        assert asyncio.run(_opened(server, origin)) == 403
    rebound = server.address.replace("127.0.0.1", "evil.example")
    assert asyncio.run(_opened(server, rebound, "evil.example")) == 403


NAMES = st.sampled_from([b"host", b"Host", b"origin", b"ORIGIN", b"sec-fetch-site", b"sec-fetch-mode"])
VALUES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b"127.0.0.1", b"localhost:80", b"[::1]:9", b"http://127.0.0.1", b"http://localhost:80", b"same-origin",
         b"cross-site", b"navigate", b"none", b"evil.example"]
    ),
)  # fmt: skip


@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=6), kind=st.sampled_from(["http", "websocket"]))
def test_whatever_is_let_in_names_this_machine_and_no_other_origin(
    headers: list[tuple[bytes, bytes]], kind: str
) -> None:
    if is_own({"type": kind, "method": "GET", "headers": headers}):
        given = [(name.lower(), value) for name, value in headers]
        (host,) = [value for name, value in given if name == b"host"]
        assert host.rsplit(b":", 1)[0] in (b"localhost", b"127.0.0.1", b"[:", b"[::1]")
        assert all(value == b"http://" + host for name, value in given if name == b"origin")
        if kind == "websocket":
            assert b"cross-site" not in [value for name, value in given if name == b"sec-fetch-site"]
