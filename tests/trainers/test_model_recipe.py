from typing import Any

import pytest
from synthetic import model_recipe

from pipeline.model_recipe import ModelRecipe


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
        ({"objectives": {"detection": {}}}, "name its extractor in `objects`"),
        ({"objectives": {"detection": {}}, "objects": "region"}, "needs a decoder with queries"),
        ({"objectives": {"lm": {"by": "decoder"}}}, "needs a decoder"),
        ({"objectives": {"mvm": {}}}, "vision.dictionary"),
        ({"objectives": {"bitext": {}}}, "name itc as well"),
        ({"objectives": {"itm": {"hard": True}}}, "name itc as well"),
        ({"vision": {"kind": "grid", "augment": {}}}, "augment needs pixel"),
        ({"vision": {"kind": "grid"}, "text": {"tags": 4}}, "text.tags are a detector's"),
        ({"vision": {"kind": "grid"}, "objectives": {"mrfr": {}}}, "need region features"),
        ({"objectives": {}}, "at least one objective"),
        ({"batch": {"size": 4, "tokens": 100}}, "either size or tokens"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_together_is_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_recipe(**over)


def test_an_objective_of_the_file_is_switched_off_by_false() -> None:
    recipe = model_recipe(objectives={"mlm": {}, "itm": False})
    assert list(recipe.objectives.chosen) == ["mlm"]
    with pytest.raises(ValueError, match="at least one"):
        model_recipe(objectives={"mlm": False})


@pytest.mark.parametrize(
    ("metric", "best", "highest"),
    [("loss", None, False), ("t2i_r10", None, True), ("accuracy/itm", None, True), ("t2i_r1", "lowest", False)],
)
def test_the_best_of_a_metric_is_known_by_its_name(metric: str, best: str | None, highest: bool) -> None:
    recipe = model_recipe(early_stop={"patience": 1, "metric": metric, "best": best})
    assert recipe.early_stop is not None
    assert recipe.early_stop.highest == highest
