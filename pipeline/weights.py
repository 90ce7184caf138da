"""Where an extractor's weights are found, without loading any library: the stage's key needs only their digest."""

import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PairmillError
from pipeline.recipe import Cnn, Pixel, Region
from pipeline.store.atomic import file_sha256

FOLDER_VARIABLE = "PAIRMILL_WEIGHTS"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Weights:
    """A file and its digest, or no file: then the model starts from a fixed seed, untrained, or needs none."""

    path: Path | None
    sha256: str
    cnn: "Weights | None" = None
    """Of the CNN that a region extractor pools from."""

    @property
    def digests(self) -> list[str]:
        """What the features depend on, wherever the files lie."""
        return [self.sha256, *(self.cnn.digests if self.cnn else ())]

    @property
    def name(self) -> str:
        return self.path.name if self.path else self.sha256


def weights_folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or "data/weights")


def find(section: Region | Cnn | Pixel) -> Weights:
    """The weights that are on this machine. A detector without is untrained; a CNN without is an error."""
    if isinstance(section, Pixel):
        return Weights(None, "none")
    if isinstance(section, Region):
        places = [place for name in section.weights for place in (Path(name), weights_folder() / name)]
        path = next((place for place in places if place.is_file()), None)
        return Weights(path, file_sha256(path) if path else UNTRAINED, find(section.cnn) if section.cnn else None)
    path = _cnn_weights(section)
    return Weights(path, file_sha256(path))


def _cnn_weights(section: Cnn) -> Path:
    if section.weights.startswith("package:"):
        package = section.weights.removeprefix("package:")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # the parent of a dotted name is missing, or there is no name
            spec = None
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
        files = sorted(
            path for folder in folders for path in folder.rglob("*") if path.suffix in (".pth", ".pt", ".safetensors")
        )
        if len(files) != 1:
            raise PairmillError(
                f"the package {package} holds {len(files)} weight files, not one", "install it, or name a path"
            )
        return files[0]
    for place in (Path(section.weights), weights_folder() / section.weights):
        if place.is_file():
            return place
    raise PairmillError(f"there are no weights at {section.weights}", f"correct the path, or set {FOLDER_VARIABLE}")


def download(section: Region) -> Weights:
    """Let ultralytics download the first of the detector's weights that it can; then find them, or go untrained."""
    if not _online():
        return find(section)
    from pipeline.extractors.region import import_ultralytics

    import_ultralytics()
    from ultralytics.utils.downloads import attempt_download_asset

    for name in section.weights:
        if Path(name).name != name:
            continue  # a path of the user's own is not ultralytics' to publish
        target = weights_folder() / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            attempt_download_asset(target, retry=1)
        except Exception:  # whatever it is (network, permission, no such asset), there is a way on without it
            continue
        if target.is_file():
            break
    return find(section)


def _online() -> bool:
    """Whether the place that ultralytics publishes at can be reached; saves its minutes of retries where it cannot."""
    try:
        socket.create_connection(("github.com", 443), timeout=4).close()
    except OSError:
        return False
    return True
