"""Which entry of a list of host names a url falls under."""

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PairmillError
from pipeline.rules import HOST
from pipeline.signals import Block, Column, Counted, Found
from pipeline.signals.entries import EntryFile
from pipeline.web.guard import plain_host

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Blocklist:
    """blocked_by: the entry of the list that a url's host is, or is a subdomain of; NULL where there is none.

    The file holds a host name or an IP address a line; `#` begins a comment. Case, a final dot, ports, user names and
    the two ways of writing an international name make no difference. A host that no fetch could reach is not blocked.
    """

    name = "blocklist"
    columns = ("blocked_by",)
    reads = ("url",)
    streams: tuple[str, ...] = ()
    version = 1

    def __init__(self, path: str) -> None:
        self.file = EntryFile.named(path, "screen.blocklist")

    @property
    def identity(self) -> str:
        return self.file.digest

    def find(self, block: Block) -> Found:
        blocked = _entries(self.file)
        # Web lists name the same few hosts over and over.
        hosts = pc.struct_field(pc.extract_regex(block["url"], HOST), "host").dictionary_encode()
        entry_of_host = [_entry_over(host, blocked) for host in hosts.dictionary.to_pylist()]
        return Found({"blocked_by": pc.take(pa.array(entry_of_host, pa.string()), hosts.indices)})

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        return {"blocked_by": found["blocked_by"].combine_chunks()}


def _entry_over(host: str, blocked: Mapping[str, str]) -> str | None:
    """The longest entry that a host falls under."""
    try:
        plain = plain_host(host)
    except ValueError:
        return None
    labels = plain.split(".")
    parents = [plain] if _is_address(plain) else [".".join(labels[start:]) for start in range(len(labels))]
    return next((blocked[parent] for parent in parents if parent in blocked), None)


@lru_cache(maxsize=1)
def _entries(file: EntryFile) -> dict[str, str]:
    """Host as it is compared -> entry as the file has it."""
    entries: dict[str, str] = {}
    for number, line in file.lines():
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            plain = plain_host(entry.removeprefix("."))
        except ValueError:
            plain = ""
        if not _HOST_NAME.fullmatch(plain) and not _is_address(plain):
            raise PairmillError(
                f"{file.path}, line {number}: {entry!r} is no host name",
                "write one host name a line, as example.com; its subdomains are meant too",
            )
        entries.setdefault(plain, entry)
    return entries


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
