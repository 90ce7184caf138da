"""The objectives that predict masked regions, against slow references."""

import math
from dataclasses import replace

import pytest
import torch
from synthetic import CLASSES, WIDTH, model_recipe, random_batch

from pipeline.errors import PairmillError
from trainers.loop.mixing import outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import Reading
from trainers.objectives.mrc_kl import divergence

VOCABULARY = 40
SPLIT = {
    "hidden": 16,
    "heads": 2,
    "feedforward": 24,
    "initializer": 0.2,
    "vision": {"hidden": 12, "heads": 2, "feedforward": 20},
    "cross": {"width": 8, "heads": 2},
    "blocks": [
        {"attention": [["text-text", "vision-vision"], ["text-vision", "vision-text"]], "weights": "separate"},
    ],
}
"""A vision stream of its own width."""


def build(objectives: dict[str, dict[str, object]], **over: object) -> VisionLanguageModel:
    torch.manual_seed(1)
    model = VisionLanguageModel(model_recipe(objectives=objectives, **over), VOCABULARY, FeatureShape(WIDTH, CLASSES))
    return model.eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(model: VisionLanguageModel, name: str, view: View) -> tuple[Reading, View, Streams]:
    """An objective, the view that it has corrupted and the encoder's last states of that."""
    objective = model.objective(name)
    assert isinstance(objective, Reading)
    view = objective.corrupt(view, generator(5))
    return objective, view, model.encode(view.text, view.vision)


@pytest.mark.parametrize("encoder", [None, SPLIT])
def test_mrc_is_the_cross_entropy_of_the_most_probable_class(encoder: dict[str, object] | None) -> None:
    model = build({"mrc": {"probability": 0.4}}, **({"encoder": encoder} if encoder else {}))
    batch = random_batch(3)
    objective, view, streams = read(model, "mrc", View.of(batch))
    outcome = objective.loss(model, view, streams)
    assert view.regions is not None
    terms, right = [], []
    for row, region in view.regions.nonzero().tolist():
        ids, values = batch.vision.class_ids[row, region].tolist(), batch.vision.class_values[row, region].tolist()
        wanted = ids[max(range(len(ids)), key=values.__getitem__)]
        scores = objective.head(streams["vision"].states[row, region]).tolist()
        terms.append(math.log(sum(math.exp(score) for score in scores)) - scores[wanted])
        right.append(max(range(CLASSES), key=scores.__getitem__) == wanted)
    assert outcome.loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert outcome.scalars["accuracy"].item() == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("error", ["l2", "smooth_l1"])
@pytest.mark.parametrize("head", ["tied", "own"])
def test_mrfr_is_the_error_of_the_feature_before_masking(error: str, head: str) -> None:
    model = build({"mrfr": {"probability": 0.4, "loss": error, "head": head}})
    model.vision.mean.fill_(0.5)
    model.vision.deviation.fill_(0.5)
    batch = random_batch(4)
    objective, view, streams = read(model, "mrfr", View.of(batch))
    assert view.regions is not None
    weights = model.vision.project.weight if head == "tied" else objective.out.weight.t()
    terms = []
    for row, region in view.regions.nonzero().tolist():
        hidden = objective.transform(streams["vision"].states[row, region])
        for dimension in range(WIDTH):
            predicted = (hidden @ weights[:, dimension] + objective.bias[dimension]).item()
            apart = abs(predicted - (float(batch.vision.features[row, region, dimension]) - 0.5) / 0.5)
            terms.append(apart**2 if error == "l2" else (apart**2 / 2 if apart < 1 else apart - 0.5))
    assert objective.loss(model, view, streams).loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-3)
    assert any(apart > 1 for apart in terms), "both halves of Huber's error are met"


def test_only_an_own_head_has_weights_of_its_own() -> None:
    own, tied = (
        sum(p.numel() for p in build({"mrfr": {"head": head}}).objective("mrfr").parameters())
        for head in ("own", "tied")
    )
    assert own - tied == 16 * WIDTH


def test_kl_against_a_slow_sum() -> None:
    torch.manual_seed(0)
    logits, values = torch.randn(6, CLASSES), torch.rand(6, 4) * 0.2
    values[0, 3] = 0.0
    ids = torch.stack([torch.randperm(CLASSES)[:4] for _ in range(6)])
    expected = 0.0
    for row in range(6):
        predicted, total = logits[row].softmax(0), float(values[row].sum())
        for place in range(4):
            target = float(values[row, place]) / total
            if target > 0:
                expected += target * math.log(target / float(predicted[ids[row, place]])) / 6
    assert divergence(logits, ids, values).item() == pytest.approx(expected, rel=1e-4)
    dense = torch.zeros(6, CLASSES).scatter(1, ids, values / values.sum(1, keepdim=True))
    peer = torch.nn.functional.kl_div(logits.log_softmax(1), dense, reduction="batchmean")
    assert divergence(logits, ids, values).item() == pytest.approx(peer.item(), rel=1e-4)


def test_mrc_kl_reads_the_stored_distribution_of_the_masked_regions() -> None:
    model, batch = build({"mrc_kl": {"probability": 0.4}}), random_batch(6)
    objective, view, streams = read(model, "mrc_kl", View.of(batch))
    at = view.regions
    logits = objective.head(streams["vision"].states[at])
    expected = divergence(logits, batch.vision.class_ids[at].long(), batch.vision.class_values[at])
    assert objective.loss(model, view, streams).loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["mrc", "mrc_kl", "mrfr"])
def test_what_a_masked_region_was_changes_no_state(name: str) -> None:
    model, batch = build({name: {"probability": 0.3}}), random_batch(3)
    kept = batch.vision.features.clone()
    _, view, streams = read(model, name, View.of(batch))
    assert view.regions is not None
    other = replace(batch.vision, features=torch.where(view.regions[..., None], kept + 3, kept))
    _, again, same = read(model, name, View.of(replace(batch, vision=other)))
    assert torch.equal(again.regions, view.regions)
    torch.testing.assert_close(streams["vision"].states, same["vision"].states, rtol=0, atol=0)
    assert torch.equal(batch.vision.features, kept)


@pytest.mark.parametrize("name", ["mrc", "mrc_kl", "mrfr"])
def test_rows_that_do_not_match_are_not_predicted(name: str) -> None:
    model, batch = build({name: {"probability": 0.3}}), random_batch(7, size=4)
    texts = torch.arange(4)
    matched = torch.tensor([True, False, True, False])
    view = View.of(batch).combined(texts, torch.tensor([0, 2, 2, 0]), matched)
    objective, view, streams = read(model, name, view)
    assert view.regions.any(1).tolist() == matched.tolist()
    _, none, streams = read(model, name, View.of(batch).combined(texts, texts, torch.zeros(4, dtype=torch.bool)))
    loss = objective.loss(model, none, streams).loss
    assert loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize("name", ["mrc", "mrc_kl", "mrfr"])
def test_images_without_texts_will_do(name: str) -> None:
    model, batch = build({name: {}}), replace(random_batch(8), text=None)
    objective = model.objective(name)
    assert objective.needs <= batch.parts
    assert objective(Towers(model, batch), generator()).loss.item() > 0


def test_a_joint_view_has_one_choice_of_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build({"mrc": {"probability": 0.3}, "mrfr": {"probability": 0.3}}), random_batch(9)
    seen = []
    for name in ("mrc", "mrfr"):
        objective = model.objective(name)
        loss = objective.loss
        monkeypatch.setattr(
            objective, "loss", lambda m, view, streams, loss=loss: seen.append(view.regions) or loss(m, view, streams)
        )
    outcomes(model, batch, ["mrc", "mrfr"], lambda name: generator(len(name)), joint=True)
    assert torch.equal(*seen)
    assert seen[0].any()


@pytest.mark.parametrize("name", ["mrc", "mrc_kl"])
def test_classes_cannot_be_predicted_where_nobody_knows_them(name: str) -> None:
    with pytest.raises(PairmillError, match=f"{name} predicts the detector's classes"):
        VisionLanguageModel(model_recipe(objectives={name: {}}), VOCABULARY, FeatureShape(WIDTH, 0))


@pytest.mark.parametrize("name", ["mrc", "mrc_kl"])
def test_the_whole_image_has_no_class(name: str) -> None:
    """It stands among an extractor's regions, with probabilities of zero: it is no target, and dilutes no mean."""
    model, batch = build({name: {"probability": 0.9}}), random_batch(9, size=4)
    assert batch.vision is not None
    values = batch.vision.class_values.clone()
    values[:, 0] = 0
    view = View.of(replace(batch, vision=replace(batch.vision, class_values=values)))
    objective, view, streams = read(model, name, view)
    assert view.regions[:, 0].any()
    without = view.regions.clone()
    without[:, 0] = False
    loss = objective.loss(model, view, streams).loss
    torch.testing.assert_close(loss, objective.loss(model, replace(view, regions=without), streams).loss)
