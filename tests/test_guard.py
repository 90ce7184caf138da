"""Which addresses may be reached, and what an entry of allow_hosts lets through."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.guard import METADATA, Guard, is_public, plain_host

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
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.1.1.1"),
    *("240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::", "2002:a9fe:a9fe::", "::ffff:0:127.0.0.1", "100::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address: str) -> None:
    assert is_public(address)
    assert Guard([]).permits("example.org", 80, address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_may_not_be_reached_in_whatever_clothes(address: str) -> None:
    assert not is_public(address)
    assert not Guard([]).permits("example.org", 80, address)
    assert not Guard(["other.example"]).permits("example.org", 80, address)


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "may"),
    [
        ("LocalHost", "localhost", 80, "127.0.0.1", True),
        ("localhost.", "LOCALHOST", 80, "::1", True),
        ("localhost", "localhost.", 80, "127.0.0.1", True),
        ("localhost:8080", "localhost", 8080, "127.0.0.1", True),
        ("localhost:8080", "localhost", 80, "127.0.0.1", False),
        ("localhost", "localhost.evil.example", 80, "127.0.0.1", False),
        ("bücher.example", "xn--bcher-kva.example", 80, "10.0.0.1", True),
        ("xn--bcher-kva.example", "BÜCHER.example", 80, "10.0.0.1", True),
        ("::1", "::1", 80, "::1", True),
        ("[::1]", "::1", 80, "::1", True),
        ("[::1]:90", "::1", 90, "::1", True),
        ("[::1]:90", "::1", 91, "::1", False),
        ("fd00::1", "FD00:0:0::1", 80, "fd00::1", True),
        ("10.1.0.0/16", "intra.example", 80, "10.1.2.3", True),
        ("10.1.0.0/16", "intra.example", 80, "10.2.2.3", False),
        ("10.1.0.0/16", "intra.example", 80, "::ffff:10.1.2.3", True),
        ("fd00::/8", "intra.example", 80, "fd12::1", True),
        ("127.0.0.1", "rebound.example", 80, "127.0.0.1", False),
        ("intra.example", "intra.example", 80, "169.254.169.254", False),
        ("169.254.0.0/16", "169.254.169.254", 80, "169.254.169.254", False),
        ("169.254.169.254", "169.254.169.254", 80, "169.254.169.254", True),
        ("fd00:ec2::254", "fd00:ec2::254", 80, "fd00:ec2::254", True),
        ("0.0.0.0/0", "x.example", 80, "100.100.100.200", False),
    ],
)
def test_an_entry_lets_through_what_it_names(entry: str, host: str, port: int, address: str, may: bool) -> None:
    assert Guard([entry]).permits(host, port, address) is may


@pytest.mark.parametrize("entry", ["", "a b", "h:0", "h:99999", "h:x", "10.0.0.0/33", "http://h/", "h/", "u@h", "[::1"])
def test_what_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of Python's it is does not matter: the recipe names the key
        Guard([entry])


@given(st.ip_addresses())
def test_every_private_address_is_refused_also_as_mapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not ip.is_global or ip.is_multicast or ip in METADATA:
        assert not is_public(str(ip))
    if ip.version == 4:
        assert is_public(f"::ffff:{ip}") == is_public(str(ip))


@given(st.text(max_size=30))
def test_a_host_is_plain_or_a_value_error(text: str) -> None:
    try:
        plain = plain_host(text)
    except ValueError:
        return
    assert plain_host(plain) == plain
