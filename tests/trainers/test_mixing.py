"""How objectives go together: inputs of their own, one joint input, and what a batch lacks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic import CLASSES, WIDTH, model_recipe, random_batch
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.batch import Batch
from trainers.loop.losses import MixedLosses
from trainers.loop.mixing import applicable, outcomes
from trainers.loop.randomness import torch_generator
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives.objective import Reading

ALL = {"mlm": {}, "mrc": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}


def model(**over: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(model_recipe(**{"objectives": ALL} | over), 40, FeatureShape(WIDTH, CLASSES)).eval()


def draws(name: str) -> torch.Generator:
    return torch_generator("test", name)


def mixed(built: VisionLanguageModel, batch: Batch, joint: bool) -> dict[str, Tensor]:
    return {name: found.loss for name, found in outcomes(built, batch, list(built.objectives), draws, joint).items()}


def test_apart_each_objective_is_what_it_is_alone() -> None:
    built, batch = model(), random_batch(0, size=8)
    together = mixed(built, batch, joint=False)
    assert list(together) == list(built.objectives)
    for name, loss in together.items():
        alone = built.objective(name)(Towers(built, batch), draws(name)).loss
        torch.testing.assert_close(loss, alone)


def test_jointly_they_read_one_pass_over_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    built, batch = model(), random_batch(0, size=8)
    passes: list[View] = []
    encode = Towers.encode
    monkeypatch.setattr(
        Towers, "encode", lambda towers, view, *rest: passes.append(view) or encode(towers, view, *rest)
    )
    found = mixed(built, batch, joint=True)
    assert len(passes) == 1
    (view,) = passes
    assert view.matched is not None
    assert 0 < int(view.matched.sum()) < 8
    # Written out again: the same view, whole states, the definitions.
    streams = built.encode(view.text, view.vision)
    readers = {name: built.objective(name) for name in built.objectives}
    for name, reader in readers.items():
        assert isinstance(reader, Reading)
        torch.testing.assert_close(found[name], reader.loss(built, view, streams).loss)


def test_jointly_only_rows_that_match_are_predicted() -> None:
    """Where text and image do not belong together, what is hidden has no right answer: the loss does not hang on it."""
    built, batch = model(), random_batch(1, size=8)
    view = View.of(batch)
    for name in ("itm", "mlm", "mrc", "mrfr"):
        reader = built.objective(name)
        assert isinstance(reader, Reading)
        view = reader.corrupt(view, draws(name))
    assert view.matched is not None
    assert view.tokens is not None
    assert not (view.tokens & ~view.matched[:, None]).any()
    assert (view.tokens & view.matched[:, None]).any(1).tolist() == view.matched.tolist()
    streams = built.encode(view.text, view.vision)
    for name in ("mrc", "mrfr"):
        reader = built.objective(name)
        assert isinstance(reader, Reading)
        loss = reader.loss(built, view, streams).loss
        assert view.original_vision is not None
        wrong = replace(
            view.original_vision,
            features=torch.where(view.matched[:, None, None], view.original_vision.features, 99).half(),
        )
        torch.testing.assert_close(reader.loss(built, replace(view, original_vision=wrong), streams).loss, loss)


def test_gradients_are_the_same_whether_or_not_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for whole in (False, True):
        built, batch = model(), random_batch(2, size=8)
        if whole:
            monkeypatch.setattr("trainers.loop.mixing.all_wanted", lambda readers, view: None)
        sum(mixed(built, batch, joint=True).values()).backward()
        gradients.append({name: p.grad for name, p in built.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, msg=name, atol=1e-6, rtol=1e-4)


def test_what_a_batch_lacks_its_objectives_go_without() -> None:
    built, batch = model(), random_batch(0)
    names = list(built.objectives)
    assert applicable(built, batch, names) == names
    assert applicable(built, replace(batch, vision=None), names) == ["mlm"]
    assert applicable(built, replace(batch, text=None), names) == ["mrc", "mrc_kl", "mrfr"]
    for lacking in (replace(batch, vision=None), replace(batch, text=None)):
        for joint in (False, True):
            left = applicable(built, lacking, names)
            found = outcomes(built, lacking, left, draws, joint)
            assert all(torch.isfinite(outcome.loss) for outcome in found.values())
            assert list(found) == left


@pytest.mark.parametrize(
    ("sources", "objectives", "message"),
    [
        (["texts"], {"itm": {}}, "none of the objectives itm applies to the source of texts"),
        (["pairs", "texts"], {"itc": {"width": 8}}, "applies to the source of texts"),
        (["texts"], {"mlm": {}, "itm": {}}, "the objective itm needs text, vision"),
        (["pairs"], {"itc": {"width": 8}, "bitext": {}}, "the objective bitext needs text, translation"),
        (["pairs", "bitext"], {"itc": {"width": 8}, "bitext": {}}, None),
        (["pairs", "texts", "images"], {"mlm": {}, "mrc": {}}, None),
    ],
)
def test_what_no_source_feeds_is_found_before_the_first_step(
    sources: list[str], objectives: dict[str, Any], message: str | None
) -> None:
    recipe = model_recipe(objectives=objectives, sources=[{"kind": kind} for kind in sources])
    built = VisionLanguageModel(recipe, 40, FeatureShape(WIDTH, CLASSES))
    if message is None:
        MixedLosses(built, recipe)
        return
    with pytest.raises(PairmillError, match=message):
        MixedLosses(built, recipe)


@pytest.mark.parametrize("joint", [False, True])
def test_no_objective_changes_the_batch(joint: bool) -> None:
    built, batch, same = model(), random_batch(3, size=6), random_batch(3, size=6)
    mixed(built.train(), batch, joint)
    assert batch.text is not None
    assert batch.vision is not None
    assert same.text is not None
    assert same.vision is not None
    assert torch.equal(batch.text.tokens, same.text.tokens)
    assert torch.equal(batch.vision.features, same.vision.features)
