"""Where an extractor's weights are found, without loading any library: the stage's key needs only their digest."""

import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PairmillError
from pipeline.hub import fetch, fetched, hub_name
from pipeline.recipe import Backbone, Patch, Pixel, Region
from pipeline.store.atomic import file_sha256

FOLDER_VARIABLE = "PAIRMILL_WEIGHTS"
UNTRAINED = "untrained"
ARCHITECTURES = (".yaml", ".yml")
"""How files end that hold a detector's architecture and no weights."""


@dataclass(frozen=True)
class Weights:
    """A file and its digest, or no file: then the model starts from a fixed seed, untrained, or needs none.

    A detector's file may be its architecture alone: then it is untrained as well.
    """

    path: Path | None
    sha256: str
    cnn: "Weights | None" = None
    """Of the CNN that a region extractor pools from."""
    architecture_sha256: str = ""
    """Of the user's own file of the architecture, where the recipe names one."""

    @property
    def digests(self) -> list[str]:
        """What the features depend on, wherever the files lie."""
        own = [self.architecture_sha256] if self.architecture_sha256 else []
        return [self.sha256, *own, *(self.cnn.digests if self.cnn else ())]

    @property
    def name(self) -> str:
        return self.path.name if self.path else self.sha256


def weights_folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or "data/weights")


def find(section: Region | Backbone | Patch | Pixel) -> Weights:
    """The weights that are on this machine. Raises PairmillError for a file that is named and not there.

    A detector of which none is found is untrained, and so is a ViT for which none are named; one whose `hub:NAME` was
    not fetched yet counts as untrained until `download` has done that. A CNN's `hub:NAME` is fetched here.
    """
    if isinstance(section, Pixel):
        return Weights(None, "none")
    if isinstance(section, Region):
        places = [place for name in section.weights for place in (Path(name), weights_folder() / name)]
        path = next((place for place in places if place.is_file()), None)
        digest = file_sha256(path) if path else UNTRAINED
        cnn = find(section.cnn) if section.cnn else None
        if path and path.suffix in ARCHITECTURES:
            return Weights(path, UNTRAINED, cnn, architecture_sha256=digest)
        return Weights(path, digest, cnn)
    path = _named_file(section)
    own = section.model if section.library == "open_clip" and section.model.endswith(".json") else ""
    architecture = file_sha256(Path(own)) if own and Path(own).is_file() else ""
    if path is None and isinstance(section, Patch) and (section.weights is None or hub_name(section.weights)):
        return Weights(None, UNTRAINED, architecture_sha256=architecture)
    if path is None and (name := hub_name(section.weights)):
        path = fetch(weights_folder(), section.library, section.model, name)
    if path is None:
        raise PairmillError(f"there are no weights at {section.weights}", f"correct the path, or set {FOLDER_VARIABLE}")
    return Weights(path, file_sha256(path), architecture_sha256=architecture)


def _named_file(section: Backbone | Patch) -> Path | None:
    """The file that the section's `weights` names, where it is on this machine."""
    name = section.weights
    if name is None:
        return None
    if published := hub_name(name):
        return fetched(weights_folder(), section.library, section.model, published)
    if name.startswith("package:"):
        return _packaged(name.removeprefix("package:"))
    return next((place for place in (Path(name), weights_folder() / name) if place.is_file()), None)


def _packaged(package: str) -> Path:
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


def download(section: Region | Patch) -> Weights:
    """Download the weights that `find` did not find, then find them. Raises UnreachableError for a ViT's.

    Of a detector's names ultralytics is asked for the first that it has; where none can be had it is untrained.
    """
    if isinstance(section, Patch):
        if published := hub_name(section.weights):
            fetch(weights_folder(), section.library, section.model, published)
        return find(section)
    if not _online():
        return find(section)
    from pipeline.extractors.detector import import_ultralytics

    import_ultralytics()
    from ultralytics.utils.downloads import attempt_download_asset

    for name in section.weights:
        if Path(name).name != name or name.endswith(ARCHITECTURES):
            continue  # a path of the user's own is not ultralytics' to publish, an architecture comes with it
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
