"""A CLIP of open_clip's: found without importing that library, loaded without running pickles, and at work.

`filter` scores pairs with one, and `extract` takes patch tokens and embeddings from one; where it is the same, what
the one computed serves the other.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PairmillError
from pipeline.hub import fetch, hub_name
from pipeline.recipe import Backbone, Patch
from pipeline.store.atomic import digest, file_sha256
from pipeline.weights import Weights, weights_folder

LONGEST = 16
"""Of a picture longer than so many times its width, the middle is looked at."""

if TYPE_CHECKING:
    import torch

    from pipeline.normalised import Normalised


@dataclass(frozen=True)
class ClipModel:
    """What to load: a file of weights, or one of open_clip's tags, or neither: then untrained, from a fixed seed."""

    architecture: str
    """open_clip's name of it, or a path to a file of its form (`*.json`)."""
    path: Path | None
    tag: str | None
    """Names a publication that does not change. Beside a `path` it says how those weights want their pictures."""
    digest: str
    """Of architecture and weights."""
    width: int
    """Dimensions of the joint space."""

    @property
    def weights(self) -> str:
        return str(self.path or self.tag or "untrained")


def find_clip(architecture: str, weights: str) -> ClipModel:
    """The model of [filter.clip]. `weights`: a file's path, its name in the weights folder, or a tag.

    Raises PairmillError for an architecture that is not known.
    """
    configuration = _configuration(architecture, "[filter.clip] model")
    path = next((place.resolve() for place in (Path(weights), weights_folder() / weights) if place.is_file()), None)
    made_of = digest(configuration, file_sha256(path) if path else weights)
    return ClipModel(architecture, path, None if path else weights, made_of, int(configuration["embed_dim"]))


def extractors_clip(section: Patch | Backbone, weights: Weights) -> ClipModel:
    """The model of an open_clip section of [extract], with the digest that [filter.clip] has for the same one."""
    configuration = _configuration(section.model, "[extract] model")
    tag = hub_name(section.weights) if weights.path else None
    made_of = digest(configuration, tag or weights.sha256)
    return ClipModel(section.model, weights.path, tag, made_of, int(configuration["embed_dim"]))


def _configuration(architecture: str, key: str) -> dict[str, Any]:
    """The architecture's file, read without importing open_clip: that takes seconds, and is for measuring only."""
    path = Path(architecture)
    if path.suffix != ".json":
        spec = importlib.util.find_spec("open_clip")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / "model_configs" / f"{path.name}.json"
        if path.stem != architecture or not path.is_file():
            raise PairmillError(
                f"{key}: open_clip has no {architecture!r}",
                "see open_clip.list_models(), or name a .json of that form",
            )
    try:
        configuration = json.loads(path.read_text())
        if not all(key in configuration for key in ("embed_dim", "vision_cfg", "text_cfg")):
            raise ValueError("embed_dim, vision_cfg and text_cfg are wanted")
    except (OSError, ValueError, TypeError) as error:
        raise PairmillError(f"{key}: {architecture}: {error}", "correct the file") from None
    return dict(configuration)


@dataclass(frozen=True)
class Preparing:
    """A picture as open_clip's own transform resizes and crops it: RGB uint8 (h, w, 3) -> (side, side, 3)."""

    steps: Sequence[Any]
    """That transform's, up to the picture's conversion to numbers."""
    crops: bool
    """Whether they make the shorter side the model's and keep the middle square."""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        if self.crops:  # they would make gigabytes of a very long picture, before they throw most of them away
            most = LONGEST * min(picture.shape[:2])
            top, left = (max(0, side - most) // 2 for side in picture.shape[:2])
            picture = np.ascontiguousarray(picture[top : top + most, left : left + most])
        image: Any = Image.fromarray(picture)
        for step in self.steps:
            image = step(image)
        return np.asarray(image)


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP at work on its device."""

    model: Any
    prepare: Preparing
    batch: "Normalised"
    tokenizer: Any
    device: "torch.device"

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float32 unit vectors of RGB uint8 pictures (h, w, 3)."""
        import torch

        batch = self.batch([self.prepare(picture) for picture in pictures])
        with torch.inference_mode():
            return unit(self.model.encode_image(batch))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors; of a long text the beginning counts, as in the model's training."""
        import torch

        with torch.inference_mode():
            return unit(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)))


def unit(states: "torch.Tensor") -> np.ndarray:
    """Float32 rows of length 1."""
    import torch

    return torch.nn.functional.normalize(states.float(), dim=-1).cpu().numpy()


def load_clip(model: ClipModel, device: "torch.device | None" = None) -> LoadedClip:
    """Load without running pickles; by default on the GPU if there is one.

    Raises PairmillError for weights that cannot be had, are damaged, or are another model's. One thread a process: the
    last bits of sums hang on their number.
    """
    import open_clip
    import torch

    torch.set_num_threads(1)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = model.architecture
    try:
        if name.endswith(".json"):
            open_clip.add_model_config(name)
            name = Path(name).stem
        path = model.path or (fetch(weights_folder(), "open_clip", name, model.tag) if model.tag else None)
        published = open_clip.get_pretrained_cfg(name, model.tag) if model.tag else {}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=str(path) if path else None,
                device=device,
                image_mean=published.get("mean"),
                image_std=published.get("std"),
                image_interpolation=published.get("interpolation"),
                image_resize_mode=published.get("resize_mode"),
                pretrained_text=False,  # a tower of its own would come from the hub, whatever its form
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever a damaged, foreign or hostile file makes of the readers
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PairmillError(
            f"cannot load {model.weights} into {model.architecture}: {said}",
            "name a file of that model's weights (also in the folder PAIRMILL_WEIGHTS), or a tag of open_clip's",
        ) from None
    *steps, to_numbers, normalise = preprocess.transforms
    preparing = Preparing(steps, network.visual.preprocess_cfg["resize_mode"] == "shortest")
    return LoadedClip(network.eval(), preparing, _batching(to_numbers, normalise, device), tokenizer, device)


def _batching(to_numbers: Any, normalise: Any, device: "torch.device") -> "Normalised":
    """The transform's last steps, told from what they make of each value."""
    from PIL import Image

    from pipeline.normalised import Normalised

    values = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3))
    return Normalised(normalise(to_numbers(values))[:, 0].T.numpy(), device)
