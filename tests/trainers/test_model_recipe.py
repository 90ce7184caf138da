import tomllib
from pathlib import Path
from typing import Any

import pytest
from synthetic import model_recipe

from pipeline.model_recipe import ModelRecipe
from trainers.embeddings import FeatureShape
from trainers.model import VisionLanguageModel

MODELS = sorted((Path(__file__).parents[2] / "recipes" / "models").glob("*.toml"))


def read(path: Path, **over: Any) -> ModelRecipe:
    return ModelRecipe.model_validate(tomllib.loads(path.read_text()) | over)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_builds_at_tiny_scale_and_parses_at_base(path: Path) -> None:
    tiny = read(path, scale="tiny")
    shape = FeatureShape(448, 80) if tiny.vision.kind == "region" else FeatureShape(1280, 0, (7, 7))
    model = VisionLanguageModel(tiny, 2000, shape)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    base = read(path)
    assert base.scale == "base"
    assert base.encoder.hidden > tiny.encoder.hidden


def test_the_base_scale_of_uniter_has_berts_size() -> None:
    """86 M parameters in the stack, as BERT-base; 16 M more for 30522 pieces in 2048 features' company."""
    recipe = read(MODELS[[path.stem for path in MODELS].index("uniter")])
    model = VisionLanguageModel(recipe, 30522, FeatureShape(2048, 1601))
    stack = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert stack == pytest.approx(85.05e6, rel=0.01)


def test_a_value_outside_of_the_scales_is_laid_over_them() -> None:
    values = {
        "features": "region",
        "steps": 7,
        "vision": {"kind": "region"},
        "optimizer": {"warmup": 3},
        "objectives": {"itm": {}},
        "scales": {
            "base": {
                "steps": 9,
                "batch": {"size": 8},
                "optimizer": {"learning_rate": 1e-3, "warmup": 9},
                "encoder": model_recipe().encoder.model_dump(),
            }
        },
    }
    recipe = ModelRecipe.model_validate(values)
    assert (recipe.steps, recipe.optimizer.warmup, recipe.optimizer.learning_rate) == (7, 3, 1e-3)
    with pytest.raises(ValueError, match="no scale 'huge'; allowed: base"):
        ModelRecipe.model_validate(values | {"scale": "huge"})


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"objectives": {"itc": {}}}, "itc needs an encoder without"),
        ({"vision": {"kind": "grid"}, "objectives": {"mrfr": {}}}, "need region features"),
        ({"objectives": {}}, "at least one objective"),
        ({"batch": {"size": 4, "tokens": 100}}, "either size or tokens"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_recipe(**over)
