"""Hosts of tricky urls against a list of hosts."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import PairmillError
from pipeline.signals import Block
from pipeline.signals.blocklist import Blocklist

LIST = """\
# what we do not want

example.com
EVIL.Example.org.     # with a comment
.leading-dot.net
bücher.de
xn--e1afmkfd.xn--p1ai
93.184.216.34
2001:db8::1
co.uk
"""


def blocked(folder: Path, urls: list[str], content: str = LIST) -> list[str | None]:
    path = folder / "hosts.txt"
    path.write_text(content, encoding="utf-8")
    group = pickle.loads(pickle.dumps(Blocklist(str(path))))
    columns = group.find(Block(pa.record_batch({"url": pa.array(urls, pa.string())}))).columns
    return group.gather(pa.table(columns), {})["blocked_by"].to_pylist()


URLS = {
    "http://example.com/a.jpg": "example.com",
    "https://EXAMPLE.com": "example.com",
    "https://a.b.Example.COM/": "example.com",
    "http://example.com./a.jpg": "example.com",
    "http://example.com:8080/a.jpg": "example.com",
    "http://user:pass@example.com/": "example.com",
    "http://a@b@example.com/": "example.com",
    "http://good.net@example.com/": "example.com",
    "http://example.com?x=1": "example.com",
    "http://example.com#x": "example.com",
    "http://evil.example.org/": "EVIL.Example.org.",
    "http://x.leading-dot.net/": ".leading-dot.net",
    "http://leading-dot.net/": ".leading-dot.net",
    "http://bücher.de/": "bücher.de",
    "http://BÜCHER.de/": "bücher.de",
    "http://bu\u0308cher.de/": "bücher.de",
    "http://xn--bcher-kva.de/": "bücher.de",
    "http://shop.xn--bcher-kva.de:443/x": "bücher.de",
    "http://пример.рф/": "xn--e1afmkfd.xn--p1ai",
    "http://93.184.216.34/": "93.184.216.34",
    "http://[2001:DB8::1]/": "2001:db8::1",
    "http://[2001:db8:0:0::1]:81/": "2001:db8::1",
    "http://tate.co.uk/": "co.uk",
    # and what only looks like it
    "http://example.org/": None,
    "http://notexample.com/": None,
    "http://example.com.net/": None,
    "http://good.net/example.com": None,
    "http://good.net/?u=http://example.com/": None,
    "http://good.net#@example.com/": None,
    "http://example.com@good.net/": None,
    "http://193.184.216.34/": None,
    "http://216.34/": None,
    "http://[2001:db8::10]/": None,
    "http://uk/": None,
    "example.com/a.jpg": None,
    "mailto:me@example.com": None,
    "http:///example.com": None,
    "http://": None,
    "": None,
    "http://[::1": None,
    "http://ex ample.com/": None,
    f"http://{'a' * 300}.com/": None,
    "http://..example..com../": None,
    "http://\u202eexample.net/": None,
}


def test_blocks_a_host_and_its_subdomains_however_they_are_written(tmp_path: Path) -> None:
    assert dict(zip(URLS, blocked(tmp_path, list(URLS)), strict=True)) == URLS


def test_names_the_longest_entry_that_a_host_falls_under(tmp_path: Path) -> None:
    urls = ["http://a.b.c/", "http://x.b.c/", "http://c/"]
    assert blocked(tmp_path, urls, "c\nb.c\na.b.c\n") == ["a.b.c", "b.c", "c"]


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n   \n", "\ufeff"])
def test_an_empty_list_blocks_nothing(tmp_path: Path, content: str) -> None:
    assert blocked(tmp_path, ["http://a/", "http://b/"], content) == [None, None]
    assert blocked(tmp_path, [], content) == []


def test_reads_a_list_from_windows(tmp_path: Path) -> None:
    assert blocked(tmp_path, ["http://a.net/", "http://b.net/"], "\ufeffa.net\r\nb.net\r\n") == ["a.net", "b.net"]


@pytest.mark.parametrize(
    "line", ["http://example.com/", "0.0.0.0 example.com", "*.example.com", "a@b", "a..b:x", "||x^"]
)
def test_a_line_that_is_no_host_name_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(PairmillError, match=r"hosts\.txt, line 2: .*is no host name"):
        blocked(tmp_path, ["http://x/"], f"ok.net\n{line}\n")


def test_a_missing_file_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match=r"nowhere\.txt: No such file.*(?s:.)*screen\.blocklist"):
        Blocklist(str(tmp_path / "nowhere.txt"))


def test_is_known_by_its_content(tmp_path: Path) -> None:
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    one.write_text("a.net\n")
    two.write_text("a.net\n")
    other.write_text("b.net\n")
    assert Blocklist(str(one)).identity == Blocklist(str(two)).identity != Blocklist(str(other)).identity


def test_a_file_that_changes_underway_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a.net\n")
    group = Blocklist(str(path))
    path.write_text("b.net\n")
    with pytest.raises(PairmillError, match="changed while"):
        group.find(Block(pa.record_batch({"url": pa.array(["http://a.net/"])})))
