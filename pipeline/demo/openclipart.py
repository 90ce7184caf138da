"""The Open Clip Art Library 0.18 as Debian packages it (public domain): pictures and their uploaders' words."""

import csv
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing

PACKAGES = ("openclipart-png", "openclipart-svg")
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclass(frozen=True)
class Library:
    """The unpacked packages: `png` and `svg` hold the same tree of names."""

    png: Path
    svg: Path


@dataclass(frozen=True)
class AltText:
    """One text that an uploader wrote about a picture. `field`: title, description or keywords."""

    picture: str
    field: str
    text: str


def get(folder: Path) -> Library:
    """Download and unpack both packages into `folder`, once. Nothing is installed."""
    root = folder / "root"
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        debs = [_deb(folder, package) for package in PACKAGES]
        unfinished = folder / "root.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        for deb in debs:
            _run(["dpkg", "-x", str(deb), str(unfinished)], f"cannot unpack {deb}", "is the disk full?")
        unfinished.rename(root)
    library = root / "usr/share/openclipart"
    return Library(library / "png", library / "svg")


def _deb(folder: Path, package: str) -> Path:
    """The package's file, by apt where it is not there yet."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if found:
        return found[0]
    way_out = f"put {' and '.join(f'{name}_0.18*.deb' for name in PACKAGES)} from any Debian mirror into {folder}/"
    if not shutil.which("apt-get"):
        raise PairmillError("the demo's pictures come from Debian's packages, and there is no apt-get here", way_out)
    known = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).returncode == 0
    if not known and os.geteuid() == 0:
        _run(["apt-get", "update"], "apt-get update failed", way_out)
    # A folder that apt's own user may write to spares its warning; a cut-off file is not taken for a whole one.
    arriving = folder / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    _run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", package],
        f"cannot download {package}",
        way_out,
        arriving,
    )
    (arrived,) = arriving.glob("*.deb")
    target = folder / arrived.name.replace("%3a", "-")
    arrived.rename(target)
    arriving.rmdir()
    return target


def _run(command: list[str], what: str, remedy: str, folder: Path | None = None) -> None:
    print("+", " ".join(command), flush=True)
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise PairmillError(
            f"{what}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}", remedy
        )


def alt_texts(library: Library) -> Iterator[AltText]:
    """Every non-empty title, description and keyword list (joined by ", ") of every picture, in order of names."""
    names = sorted(str(path.relative_to(library.png)) for path in library.png.rglob("*.png"))
    for name in tqdm(names, desc="reading the uploaders' texts", unit="svg", disable=None):
        tree = ET.parse(library.svg / Path(name).with_suffix(".svg"))
        title, description = (_first_text(tree, field) for field in ("title", "description"))
        bags = (item for subject in tree.iter(f"{_DC}subject") for item in subject.iter(f"{_RDF}li"))
        keywords = ", ".join(item.text.strip() for item in bags if item.text and item.text.strip())
        for field, text in (("title", title), ("description", description), ("keywords", keywords)):
            if text:
                yield AltText(name, field, text)


def _first_text(tree: "ET.ElementTree[ET.Element]", field: str) -> str:
    return next((text for node in tree.iter(_DC + field) if (text := (node.text or "").strip())), "")


def write_lists(library: Library, folder: Path, base_url: str) -> None:
    """Write the URL lists that the recipe ingests, once a base url: titles, descriptions (CSV), keywords (Parquet)."""
    stamp = folder / "lists.base_url"
    if stamp.exists() and stamp.read_text() == base_url:
        return
    stamp.unlink(missing_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"title": [], "description": [], "keywords": []}
    for alt in alt_texts(library):
        rows[alt.field].append((f"{base_url}/{quote(alt.picture)}", alt.text))
    for field in ("title", "description"):
        with replacing(folder / f"{field}s.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("url", "text"), *rows[field]])
    with replacing(folder / "keywords.parquet") as path:
        urls, texts = zip(*rows["keywords"], strict=True)
        pq.write_table(pa.table({"url": urls, "text": texts}), path)
    with replacing(stamp) as path:
        path.write_text(base_url)
