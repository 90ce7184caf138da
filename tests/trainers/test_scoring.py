"""Every kind of model's scores against encoding each text with each image by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import CLASSES, FUSED, OWN, WIDTH, model_recipe

from pipeline.errors import PairmillError
from pipeline.model_recipe import Objectives
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.data.loader import VisionReader, text_input
from trainers.data.samples import Catalogue
from trainers.data.sequences import Sequences
from trainers.data.tags import image_tags
from trainers.data.text import Pieces, encode, train_tokenizer
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.objectives.itm import ImageTextMatching
from trainers.objectives.joint_space import JointSpace
from trainers.objectives.tag_contrast import ObjectTagContrast
from trainers.tasks.scoring import ImageTags, Scorer, why_not

TEXTS = ["a red cat", "house, blue, drawing number 7", "a green tree", "a black flag", "white", "a yellow car", "face"]
THEN_FUSED = [{"attention": [OWN], "weights": "separate"}, {"attention": [FUSED], "weights": "shared"}]
TOKENIZER = train_tokenizer([*TEXTS, *(f"class {number}" for number in range(CLASSES))], 200)


def build(
    store: FeatureStore, objectives: dict[str, Any], tags: int = 0, **encoder: Any
) -> tuple[VisionLanguageModel, Scorer, list[str]]:
    torch.manual_seed(1)
    text = {"vocabulary": 200, "max_tokens": 20, "tags": tags}
    sizes = {"hidden": 16, "heads": 2, "feedforward": 24, "initializer": 0.3, "blocks": THEN_FUSED}
    recipe = model_recipe(objectives=objectives, text=text, encoder={**sizes, **encoder})
    model = VisionLanguageModel(recipe, TOKENIZER.get_vocab_size(), FeatureShape(WIDTH, CLASSES)).eval()
    catalogue = Catalogue.of(store)
    images = ImageTags(catalogue, image_tags(store, TOKENIZER, tags)) if tags else None
    scorer = Scorer(model, VisionReader(store, recipe.vision), torch.device("cpu"), Pieces.of(TOKENIZER), images)
    keys = [key.decode() for key in catalogue.keys[[5, 0, 9, 3, 17, 2, 30, 31, 8]].tolist()]
    return model, scorer, keys


def one_by_one(score: Callable[[str, str], float], keys: list[str]) -> np.ndarray:
    with torch.no_grad():
        return np.array([[score(text, key) for key in keys] for text in TEXTS], np.float32)


def tokens() -> list[tuple[int, ...]]:
    return encode(TOKENIZER, TEXTS, 20)


def cosine(model: VisionLanguageModel, scorer: Scorer, name: str) -> Callable[[str, str], float]:
    space = model.objective(name)
    assert isinstance(space, JointSpace)
    passed = model.encoder if space.settings.at == "end" else model.encoder.alone

    def score(text: str, key: str) -> float:
        said = model.embed(text_input(encode(TOKENIZER, [text], 20), scorer.pieces), None)
        seen = model.embed(None, scorer.reader.read([key]))
        return float(space.embed_text(passed(said)["text"])[0] @ space.embed_vision(passed(seen)["vision"])[0])

    return score


def match(model: VisionLanguageModel, scorer: Scorer, name: str) -> Callable[[str, str], float]:
    head = model.objective(name)
    assert isinstance(head, ImageTextMatching | ObjectTagContrast)

    def score(text: str, key: str) -> float:
        behind = None if scorer.tags is None else scorer.tags.behind([key])
        said = text_input(Sequences.of(encode(TOKENIZER, [text], 20)), scorer.pieces, behind)
        chances = head.logits(model.encode(said, scorer.reader.read([key])))[0].softmax(0)
        return float(torch.logit(chances[1].double(), 1e-12))

    return score


@pytest.mark.parametrize(
    ("name", "how"),
    [("itc", {"width": 8}), ("itc", {"width": 8, "at": "end"}), ("vse", {"width": 8}), ("itc", {"momentum": {}})],
    ids=["towers", "end", "vse", "momentum"],
)
def test_cosines(region_store: FeatureStore, name: str, how: dict[str, Any]) -> None:
    model, scorer, keys = build(region_store, {name: how})
    expected = one_by_one(cosine(model, scorer, name), keys)
    assert np.allclose(scorer.scores(tokens(), keys), expected, atol=1e-5)
    assert np.allclose(scorer.pairs(tokens(), keys[: len(TEXTS)]), expected.diagonal(), atol=1e-5)


@pytest.mark.parametrize(
    ("objectives", "tags", "encoder"),
    [
        ({"itm": {}}, 0, {}),
        ({"itm": {"pool": "product"}}, 0, {"blocks": [{"attention": [FUSED], "weights": "shared"}]}),
        ({"itm": {}}, 12, {}),
        ({"itm": {}}, 0, {"causal": True}),
        ({"tag_contrast": {"classes": 3}, "mlm": {}}, 12, {}),
        ({"tag_contrast": {"classes": 3}, "itm": {}}, 12, {}),
    ],
    ids=["towers", "single stream", "tags", "causal", "three classes", "itm before tags"],
)
def test_matches(region_store: FeatureStore, objectives: dict[str, Any], tags: int, encoder: dict[str, Any]) -> None:
    model, scorer, keys = build(region_store, objectives, tags, **encoder)
    expected = one_by_one(match(model, scorer, "itm" if "itm" in objectives else "tag_contrast"), keys)
    assert expected.std() > 1e-3, "the head must tell them apart"
    assert np.allclose(scorer.scores(tokens(), keys), expected, rtol=1e-3, atol=1e-4)
    chances = 1 / (1 + np.exp(-expected.diagonal()))
    assert np.allclose(scorer.pairs(tokens(), keys[: len(TEXTS)]), chances, atol=1e-4)


@pytest.mark.parametrize("again", [1, 2, 4, 100])
def test_the_best_by_cosine_are_ranked_by_the_matching_head(region_store: FeatureStore, again: int) -> None:
    model, scorer, keys = build(region_store, {"itc": {"width": 8}, "itm": {"hard": True, "rerank": again}})
    similar = one_by_one(cosine(model, scorer, "itc"), keys)
    judged = one_by_one(match(model, scorer, "itm"), keys)
    wanted = np.zeros_like(similar, bool)
    for text in range(len(TEXTS)):
        wanted[text, np.argsort(-similar[text])[:again]] = True
    for image in range(len(keys)):
        wanted[np.argsort(-similar[:, image])[:again], image] = True
    found = scorer.scores(tokens(), keys)
    assert np.array_equal(found, scorer.scores(tokens(), keys, rerank=again))
    if not wanted.all():
        assert found[wanted].min() > found[~wanted].max()
        assert np.allclose(found[~wanted], similar[~wanted], atol=1e-5)
    shift = found[wanted] - judged[wanted]
    assert np.ptp(shift) < 1e-3, "the head's own order"
    assert np.allclose(scorer.scores(tokens(), keys, rerank=0), similar, atol=1e-5)


def test_models_that_cannot_score_say_so(region_store: FeatureStore) -> None:
    for objectives, tags in (({"mlm": {}}, 0), ({"tag_contrast": {"classes": 2}}, 12)):
        _, scorer, keys = build(region_store, objectives, tags)
        assert why_not(Objectives.model_validate(objectives))
        with pytest.raises(PairmillError, match="no joint space and no head"):
            scorer.scores(tokens(), keys)
    for objectives in ({"itc": {}}, {"vse": {}}, {"itm": {}}, {"tag_contrast": {"classes": 3}}):
        assert why_not(Objectives.model_validate(objectives)) is None


def test_an_image_that_the_detector_has_not_seen_is_named(dataset: Dataset, region_store: FeatureStore) -> None:
    _, scorer, keys = build(region_store, {"itm": {}}, tags=8)
    assert scorer.tags is not None
    with pytest.raises(PairmillError, match="not seen the image 999999999"):
        scorer.tags.behind([*keys, "999999999"])
