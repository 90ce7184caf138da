"""Under autocast, as on a GPU, a loss is float32 and close to what it is without, and its gradients are numbers."""

from typing import Any

import pytest
import torch
from scenes import grid_model, scene_batch
from synthetic import CLASSES, WIDTH, model_recipe, random_batch

from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers

GRID_OBJECTIVES: dict[str, dict[str, Any]] = {
    "mvm": {"vision": {"kind": "grid", "dictionary": {"entries": 7}}},
    "omvm": {},
    "pra": {},
    "detection": {"decoder": {"layers": 1, "queries": 6}},
    "lm": {"vision": {"kind": "grid", "resampler": {"queries": 3, "layers": 1}}},
}


@pytest.mark.parametrize("name", ["mrc", "mrc_kl", "mrfr", *GRID_OBJECTIVES])
def test_half_precision_changes_little(name: str) -> None:
    if name in GRID_OBJECTIVES:
        model, batch = grid_model({name: {}}, **GRID_OBJECTIVES[name]), scene_batch(2)
    else:
        torch.manual_seed(1)
        recipe = model_recipe(objectives={name: {}})
        model, batch = VisionLanguageModel(recipe, 40, FeatureShape(WIDTH, CLASSES)).eval(), random_batch(1)
    losses = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses.append(model.objective(name)(Towers(model, batch), torch.Generator().manual_seed(3)).loss)
    losses[1].backward()
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
