"""What the objectives that predict regions and objects share: whose classes there are, and where an object lies."""

import torch
from torch import Tensor, nn

from pipeline.errors import PairmillError
from pipeline.model_recipe import MaskedRegions
from trainers.data.batch import VisionInput
from trainers.network.embeddings import FeatureShape
from trainers.network.streams import Wanted
from trainers.network.view import View
from trainers.objectives.masking import corrupt_regions
from trainers.objectives.objective import Reading


class RegionReading(Reading):
    """An objective that predicts masked regions; those that share a view predict the same ones."""

    settings: MaskedRegions
    needs = frozenset({"vision"})

    def corrupt(self, view: View, random: torch.Generator) -> View:
        return corrupt_regions(view, self.settings, random)

    def wanted(self, view: View) -> Wanted:
        assert view.regions is not None
        return Wanted({"vision": view.regions})


def told_regions(view: View) -> Tensor:
    """(N, V) bool: of the regions to predict those of which the detector says a class. Of the whole image, which stands
    among an extractor's regions, it says none."""
    assert view.regions is not None
    assert view.original_vision is not None
    assert view.original_vision.class_values is not None
    return view.regions & (view.original_vision.class_values.sum(-1) > 0)


def known_classes(objective: str, shape: FeatureShape | None) -> int:
    """How many classes the detector knows. Raises PairmillError where the features do not say which there are."""
    if shape is None or not shape.classes:
        raise PairmillError(
            f"{objective} predicts the detector's classes, and these features do not say which there are",
            f"import them with CLASSES=names.txt, or leave {objective} out",
        )
    return shape.classes


def known_grid(objective: str, shape: FeatureShape) -> tuple[int, int]:
    """The features' rows and columns. Raises PairmillError where they have none."""
    if shape.grid == (0, 0):
        raise PairmillError(
            f"{objective} looks for objects in an image's cells, and region features have none",
            "name an extractor of grid or patch features",
        )
    return shape.grid


def prediction_head(hidden: int, width: int, epsilon: float) -> nn.Sequential:
    """(M, hidden) -> (M, width): BERT's transform and a linear layer."""
    return nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.LayerNorm(hidden, epsilon), nn.Linear(hidden, width))


def detected_classes(regions: VisionInput, at: Tensor | None = None) -> Tensor:
    """The most probable class of each region: (B, V) int64; or of those at the True positions of (B, V) bool: (M,).

    The stored distribution has no background; of equally probable classes it is the one that is stored first.
    """
    assert regions.class_ids is not None
    assert regions.class_values is not None
    ids, values = (
        part if at is None else part[at] for part in (regions.class_ids.long(), regions.class_values.float())
    )
    return ids.gather(-1, values.argmax(-1, keepdim=True)).squeeze(-1)


def cells_inside(vision: VisionInput, grid: tuple[int, int], boxes: Tensor) -> Tensor:
    """Which positions of an image lie in which box: cells (B, V, 2) and boxes (B, O, 4) -> (B, O, V) bool.

    A cell lies in a box if its centre does; a box too small to hold a centre has the cell in which its own centre is.
    Padding lies nowhere; a box may have no cell where a step sees only some of them.
    """
    assert vision.cells is not None
    rows, columns = grid
    sides = torch.tensor([columns, rows], dtype=torch.float32, device=boxes.device)
    cells = vision.cells.flip(-1).float()[:, None]
    first, last = ((corner * sides)[:, :, None] for corner in (boxes[..., :2].float(), boxes[..., 2:].float()))
    inside = ((cells + 0.5 >= first) & (cells + 0.5 <= last)).all(-1)
    holds_a_centre = ((last - 0.5).floor() >= (first - 0.5).ceil()).all(-1)
    # The image's far edges belong to its last cells.
    middle = torch.minimum(((first + last) / 2).floor(), sides - 1)
    return torch.where(holds_a_centre, inside, (cells == middle).all(-1)) & vision.present[:, None]


def inside_objects(vision: VisionInput, grid: tuple[int, int], objects: VisionInput) -> Tensor:
    """Which positions lie in which object's box: (B, O, V) bool; padding in none, and nothing in padding."""
    assert objects.boxes is not None
    return cells_inside(vision, grid, objects.boxes) & objects.present[..., None]


def mean_of(states: Tensor, members: Tensor) -> Tensor:
    """The mean state of each group: (B, L, hidden), (B, G, L) bool -> (B, G, hidden); 0 where a group is empty."""
    weights = members.to(states.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return weights @ states
