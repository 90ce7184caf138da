"""Weights that a library publishes under a name (`hub:NAME`): fetched once, then a file in the weights folder.

What is fetched is the published file itself, so its sha256 is the same wherever it came from, and nothing is loaded
here. Safetensors are taken where there are any; other files are loaded with `weights_only` by whoever opens them.
"""

import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing

_HUB = "hub:"
_SUFFIXES = (".safetensors", ".pth")


def hub_name(weights: str | None) -> str | None:
    """NAME of a recipe's `hub:NAME`, or None of whatever else it has for weights."""
    return weights.removeprefix(_HUB) if weights and weights.startswith(_HUB) else None


class UnreachableError(PairmillError):
    """There are such weights, but no network to fetch them over."""


@dataclass(frozen=True)
class Publication:
    """Where a library's weights lie: a repository of the Hugging Face hub with the names they may have, or a url."""

    repository: str = ""
    files: tuple[str, ...] = ()
    url: str = ""


def fetched(folder: Path, library: str, model: str, name: str) -> Path | None:
    """The file in the weights folder that `fetch` once made of this name, or None."""
    places = (_place(folder, library, model, name, suffix) for suffix in _SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def fetch(folder: Path, library: str, model: str, name: str) -> Path:
    """The weights that timm, torchvision or open_clip publishes for `model` under `name`.

    It is timm's tag, a member of torchvision's enum of the model's weights, or open_clip's tag. Raises PairmillError
    where there are none, UnreachableError where they cannot be had now.
    """
    if path := fetched(folder, library, model, name):
        return path
    publication = _PUBLICATIONS[library](model, name)
    if publication is None:
        raise PairmillError(f"{library} publishes no weights {name!r} of {model!r}", _NAMES[library])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(_place(folder, library, model, name, ".lock")):  # workers may want it at once
        if path := fetched(folder, library, model, name):
            return path
        try:
            return _download(publication, lambda suffix: _place(folder, library, model, name, suffix))
        except Exception as error:  # whatever the network, the proxy or the disk makes of it
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnreachableError(
                f"cannot fetch the weights {name!r} of {model!r} from {publication.repository or publication.url}: "
                f"{said}",
                "connect to the network, or name a file of weights",
            ) from None


def _place(folder: Path, library: str, model: str, name: str, suffix: str) -> Path:
    plain = re.sub(r"[^\w.-]", "-", f"{library}.{model}.{name}")
    return folder / f"hub.{plain}{suffix}"


def _download(publication: Publication, place: Callable[[str], Path]) -> Path:
    if publication.url:
        import torch

        target = place(".pth")
        named = re.search(r"-([0-9a-f]{8,})\.", publication.url)  # the publishers' way to name a file by its sha256
        with replacing(target) as partial:
            torch.hub.download_url_to_file(publication.url, str(partial), named and named[1], progress=False)
        return target
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Without a network the hub's client would retry for a minute; what it once downloaded it still gives.
    local = not _answers(constants.ENDPOINT)
    for file in publication.files:
        try:
            found = hf_hub_download(publication.repository, file, local_files_only=local)
        except LocalEntryNotFoundError:
            continue
        except EntryNotFoundError:
            continue
        target = place(".safetensors" if file.endswith(".safetensors") else ".pth")
        with replacing(target) as partial:
            shutil.copyfile(found, partial)
        return target
    raise FileNotFoundError(f"{constants.ENDPOINT} cannot be reached" if local else "the repository lacks the file")


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _of_timm(model: str, name: str) -> Publication | None:
    import timm

    try:
        published = timm.get_pretrained_cfg(f"{model.split('.')[0]}.{name}")
    except RuntimeError:
        return None
    if published is None:
        return None
    if published.hf_hub_id:
        return Publication(published.hf_hub_id, ("model.safetensors", "pytorch_model.bin"))
    return Publication(url=published.url) if isinstance(published.url, str) and published.url else None


def _of_torchvision(model: str, name: str) -> Publication | None:
    import torchvision

    try:
        return Publication(url=torchvision.models.get_model_weights(model)[name].url)
    except (KeyError, ValueError):
        return None


def _of_open_clip(model: str, name: str) -> Publication | None:
    import open_clip

    published = open_clip.get_pretrained_cfg(model.replace("/", "-"), name)
    if published.get("hf_hub"):
        repository, _, file = published["hf_hub"].rpartition("/")
        return Publication(
            repository, (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        )
    return Publication(url=published["url"]) if published.get("url") else None


_PUBLICATIONS: dict[str, Callable[[str, str], Publication | None]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "open_clip": _of_open_clip,
}
_NAMES = {
    "timm": "see timm.list_pretrained(): what stands after the point",
    "torchvision": "see torchvision.models.get_model_weights(model)",
    "open_clip": "see open_clip.list_pretrained()",
}
