"""Each objective against a slow reference that was written apart from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, OWN, WIDTH, model_recipe, random_batch
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.batch import Batch, TextInput, VisionInput
from trainers.embeddings import FeatureShape
from trainers.encoder import Streams
from trainers.model import VisionLanguageModel
from trainers.objectives import OBJECTIVES, Objective
from trainers.objectives.itc import ImageTextContrast, contrast
from trainers.objectives.itm import combinations
from trainers.objectives.mrc_kl import divergence

VOCABULARY = 40


def build(objectives: dict[str, dict[str, object]], **over: object) -> VisionLanguageModel:
    torch.manual_seed(1)
    recipe = model_recipe(objectives=objectives, **over)
    return VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, CLASSES)).eval()


class Watched:
    """Records what the model was asked to encode."""

    def __init__(self, model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.text: TextInput | None = None
        self.vision: VisionInput | None = None
        self.streams: Streams = {}
        encode = model.encode

        def watch(text: TextInput | None, vision: VisionInput | None) -> Streams:
            self.text, self.vision = text, vision
            self.streams = encode(text, vision)
            return self.streams

        monkeypatch.setattr(model, "encode", watch)


def run(objective: Objective, model: VisionLanguageModel, batch: Batch, seed: int = 0) -> Tensor:
    return objective(model, batch, torch.Generator().manual_seed(seed)).loss


def test_the_registry_and_the_recipe_name_the_same_objectives() -> None:
    every = {"mlm": {}, "mrc_kl": {}, "mrfr": {}, "itm": {}}
    chosen = model_recipe(objectives=every).objectives
    assert set(OBJECTIVES) == set(type(chosen).model_fields)
    with pytest.raises(ValueError, match="two objectives named 'mlm'"):
        OBJECTIVES.add("mlm")(Objective)


def test_mlm_is_the_mean_cross_entropy_of_the_chosen_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build({"mlm": {"probability": 0.4}}), random_batch(0)
    watched = Watched(model, monkeypatch)
    objective = model.objective("mlm")
    seen: list[Tensor] = []
    logits = objective.logits
    monkeypatch.setattr(objective, "logits", lambda m, states: seen.append(states) or logits(m, states))
    loss = run(objective, model, batch)
    assert watched.text is not None
    # The chosen positions are those whose states went through the head, in order.
    states = watched.streams["text"].states
    terms = []
    for row in range(len(batch)):
        for position in range(states.shape[1]):
            if any(torch.equal(states[row, position], other) for other in seen[0]):
                hidden = objective.transform(states[row, position])
                scores = [
                    (hidden @ model.text.word.weight[word] + objective.bias[word]).item() for word in range(VOCABULARY)
                ]
                highest = max(scores)
                total = highest + math.log(sum(math.exp(score - highest) for score in scores))
                terms.append(total - scores[int(batch.text.tokens[row, position])])
    assert len(terms) == len(seen[0])
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    changed = watched.text.tokens != batch.text.tokens
    assert not (changed & (batch.text.tokens < 5)).any(), "special tokens and padding stay"


@pytest.mark.parametrize("name", ["mrc_kl", "mrfr"])
def test_masked_regions_leave_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is unchanged, the model sees zeros where it must predict, and what stood there changes no state."""
    model, batch = build({name: {"probability": 0.3}}), random_batch(3)
    kept = batch.vision.features.clone()
    watched = Watched(model, monkeypatch)
    run(model.objective(name), model, batch)
    assert torch.equal(batch.vision.features, kept)
    assert watched.vision is not None
    assert watched.vision.masked is not None
    masked = watched.vision.masked
    assert masked.any()
    assert not watched.vision.features[masked].any()
    assert torch.equal(watched.vision.features[~masked], kept[~masked])
    first = watched.streams["vision"].states
    other = Batch(
        batch.uids,
        batch.text,
        VisionInput(**{**vars(batch.vision), "features": torch.where(masked[..., None], kept + 3, kept)}),
        batch.partners,
    )
    run(model.objective(name), model, other)
    assert torch.equal(watched.streams["vision"].states, first)


def test_mrfr_regresses_to_the_features_before_masking(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build({"mrfr": {"probability": 0.3}}), random_batch(4)
    model.vision.mean.fill_(0.5)
    model.vision.deviation.fill_(2.0)
    watched = Watched(model, monkeypatch)
    objective = model.objective("mrfr")
    loss = run(objective, model, batch)
    assert watched.vision is not None
    assert watched.vision.masked is not None
    terms = []
    for row, position in watched.vision.masked.nonzero().tolist():
        hidden = objective.transform(watched.streams["vision"].states[row, position])
        for dimension in range(WIDTH):
            predicted = sum(hidden[unit] * model.vision.project.weight[unit, dimension] for unit in range(len(hidden)))
            wanted = (float(batch.vision.features[row, position, dimension]) - 0.5) / 2.0
            terms.append(((predicted + objective.bias[dimension]).item() - wanted) ** 2)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-3)
    assert loss.item() > 0.05


def test_classes_cannot_be_predicted_where_nobody_knows_them() -> None:
    recipe = model_recipe(objectives={"mrc_kl": {}})
    with pytest.raises(PairmillError, match="do not say which there are"):
        VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, 0))


def test_kl_against_a_slow_sum() -> None:
    torch.manual_seed(0)
    logits, values = torch.randn(6, CLASSES), torch.rand(6, 4) * 0.2
    values[0, 3] = 0.0
    ids = torch.stack([torch.randperm(CLASSES)[:4] for _ in range(6)])
    expected = 0.0
    for row in range(6):
        predicted = logits[row].softmax(0)
        total = float(values[row].sum())
        for place in range(4):
            target = float(values[row, place]) / total
            if target > 0:
                expected += target * math.log(target / float(predicted[ids[row, place]])) / 6
    assert divergence(logits, ids, values).item() == pytest.approx(expected, rel=1e-4)
    certain = torch.full((1, CLASSES), -50.0)
    certain[0, ids[0]] = (values[0] / values[0].sum()).clamp(min=1e-30).log()
    assert divergence(certain, ids[:1], values[:1]).item() == pytest.approx(0.0, abs=1e-5)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(0, 3), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_a_mismatch_is_never_a_true_partner(seed: int, size: int, mismatches: int, density: float) -> None:
    random = torch.Generator().manual_seed(seed)
    partners = (torch.rand(size, size, generator=random) < density) | torch.eye(size, dtype=torch.bool)
    judged = combinations(partners, mismatches, random)
    assert torch.equal(partners[judged.texts, judged.images], judged.labels == 1)
    if mismatches:
        assert int(judged.labels.sum()) == size
    else:
        assert torch.equal(judged.texts, torch.arange(size))
        if not (partners & ~torch.eye(size, dtype=torch.bool)).any():
            assert abs(int(judged.labels.sum()) - size / 2) <= 0.5


@pytest.mark.parametrize("pool", ["text", "concat", "product"])
@pytest.mark.parametrize("mismatches", [0, 2])
def test_itm_is_the_cross_entropy_with_label_1_for_a_match(pool: str, mismatches: int) -> None:
    model, batch = build({"itm": {"pool": pool, "mismatches": mismatches}}), random_batch(5, size=6)
    objective = model.objective("itm")
    loss = run(objective, model, batch, seed=9)
    judged = combinations(batch.partners, mismatches, torch.Generator().manual_seed(9))
    losses: dict[int, list[float]] = {0: [], 1: []}
    for text, image, label in zip(judged.texts, judged.images, judged.labels, strict=True):
        streams = model.encode(batch.text.select(text[None]), batch.vision.select(image[None]))
        mismatch, match = objective.logits(streams)[0].tolist()
        right, wrong = (match, mismatch) if label == 1 else (mismatch, match)
        losses[int(label)].append(math.log(1 + math.exp(wrong - right)))
    each = [sum(losses[label]) / len(losses[label]) for label in (0, 1)]
    everything = losses[0] + losses[1]
    expected = sum(each) / 2 if mismatches else sum(everything) / len(everything)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_contrast_against_a_slow_sum_and_without_false_negatives() -> None:
    torch.manual_seed(0)
    texts, images = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    partners = torch.eye(5, dtype=torch.bool)
    partners[0, 1] = partners[1, 0] = partners[3, 4] = True
    expected = 0.0
    for row in range(5):
        for way in (False, True):
            right = 7.0 * float(texts[row] @ images[row])
            total = 0.0
            for other in range(5):
                text, image = (other, row) if way else (row, other)
                if text == image or not partners[text, image]:
                    total += math.exp(7.0 * float(texts[text] @ images[image]))
            expected += (math.log(total) - right) / 10
    loss, _ = contrast(texts, images, torch.tensor(7.0), partners)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_contrast_equals_open_clips() -> None:
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    texts, images = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=-1)
    loss, _ = contrast(texts, images, torch.tensor(14.3), torch.eye(6, dtype=torch.bool))
    assert loss.item() == pytest.approx(ClipLoss()(images, texts, torch.tensor(14.3)).item(), rel=1e-5)


def test_the_scale_starts_at_one_over_007_and_stops_at_100() -> None:
    model = build({"itc": {"width": 8}}, blocks=[{"attention": [OWN], "weights": "separate"}])
    objective, batch = model.objective("itc"), random_batch(6)
    assert isinstance(objective, ImageTextContrast)
    random = torch.Generator()
    assert objective(model, batch, random).scalars["scale"].item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        objective.log_scale.fill_(20.0)
    assert objective(model, batch, random).scalars["scale"].item() == pytest.approx(100.0)
