"""Contrasts in a joint space: against open_clip's number and against slow references written apart from them."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, FUSED, OWN, WIDTH, model_recipe, random_batch
from torch import Tensor, distributed, multiprocessing
from torch.nn.functional import normalize

from pipeline.store.dataset import Dataset
from trainers.data.batch import Batch
from trainers.data.sources import open_sources
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.objectives import Outcome
from trainers.objectives.gathering import Everyone
from trainers.objectives.itc import ImageTextContrast, Temperature, contrast
from trainers.objectives.joint_space import JointSpace
from trainers.objectives.momentum import Queue
from trainers.objectives.vse import hinge

VOCABULARY = 40
DUAL = [{"attention": [OWN], "weights": "separate"}]
THEN_FUSED = [*DUAL, {"attention": [FUSED], "weights": "shared"}]


def build(objectives: dict[str, Any], blocks: list[dict[str, Any]] = DUAL, **encoder: Any) -> VisionLanguageModel:
    torch.manual_seed(1)
    sizes = {"hidden": 16, "heads": 2, "feedforward": 24, "dropout": 0.0, "initializer": 0.3, "blocks": blocks}
    recipe = model_recipe(objectives=objectives, encoder={**sizes, **encoder})
    return VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, CLASSES)).eval()


def space(model: VisionLanguageModel, name: str = "itc") -> JointSpace:
    objective = model.objective(name)
    assert isinstance(objective, JointSpace)
    return objective


def itc(model: VisionLanguageModel) -> ImageTextContrast:
    objective = model.objective("itc")
    assert isinstance(objective, ImageTextContrast)
    return objective


def run(model: VisionLanguageModel, name: str, batch: Batch) -> Outcome:
    return model.objective(name)(Towers(model, batch), torch.Generator().manual_seed(0))


def shuffled_partners(seed: int, size: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(size, size, generator=random) < 0.2) | torch.eye(size, dtype=torch.bool)


def slow_contrast(similarities: Tensor, partners: Tensor, smoothing: float) -> float:
    """From logits (B, B); a term for each text, then for each image."""
    size, total = len(similarities), 0.0
    similarities = similarities.detach()
    for rows, barred in ((similarities, partners), (similarities.t(), partners.t())):
        for row in range(size):
            there = [other for other in range(size) if other == row or not barred[row, other]]
            whole = math.log(sum(math.exp(rows[row, other]) for other in there))
            for other in there:
                target = smoothing / len(there) + (1 - smoothing) * (other == row)
                total += target * (whole - float(rows[row, other])) / (2 * size)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contrast_against_a_slow_sum_and_without_false_negatives(seed: int, smoothing: float) -> None:
    torch.manual_seed(seed)
    texts, images = normalize(torch.randn(2, 7, 8), dim=-1)
    partners = shuffled_partners(seed, 7)
    loss, _ = contrast(texts, images, torch.tensor(7.0), partners, smoothing)
    assert loss.item() == pytest.approx(slow_contrast(7.0 * texts @ images.t(), partners, smoothing), rel=1e-5)


def test_contrast_equals_open_clips() -> None:
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    texts, images = normalize(torch.randn(2, 6, 8), dim=-1)
    loss, _ = contrast(texts, images, torch.tensor(14.3), torch.eye(6, dtype=torch.bool))
    assert loss.item() == pytest.approx(ClipLoss()(images, texts, torch.tensor(14.3)).item(), rel=1e-5)


def test_a_batch_of_partners_only_costs_nothing_and_is_a_number() -> None:
    torch.manual_seed(0)
    texts, images = normalize(torch.randn(2, 4, 8), dim=-1).requires_grad_()
    for smoothing in (0.0, 0.1):
        loss, _ = contrast(texts, images, torch.tensor(5.0), torch.ones(4, 4, dtype=torch.bool), smoothing)
        assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("at", ["towers", "end"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_recipes_place_is_what_is_projected(at: str, bias: bool) -> None:
    model = build({"itc": {"width": 8, "at": at, "bias": bias, "temperature": 0.2}}, THEN_FUSED)
    batch, objective = random_batch(3), itc(model)
    passed = model.encoder if at == "end" else model.encoder.alone
    embedded = []
    for name, first in (("text", model.text(batch.text)), ("vision", model.vision(batch.vision))):
        stream = passed({name: first})[name]
        rows = []
        for row in range(len(batch)):
            there = stream.states[row][stream.present[row]]
            state = there[0] if name == "text" else there.mean(0)
            layer = objective.get_submodule(name)
            projected = layer.weight @ state + (layer.bias if bias else 0)
            rows.append(projected / projected.square().sum().sqrt())
        embedded.append(torch.stack(rows))
    expected = slow_contrast(5.0 * embedded[0] @ embedded[1].t(), batch.partners, 0.0)
    assert run(model, "itc", batch).loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_scale_starts_at_one_over_007_and_stops_at_100() -> None:
    model, batch = build({"itc": {"width": 8}}), random_batch(6)
    assert run(model, "itc", batch).scalars["scale"].item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        itc(model).scale.log_scale.fill_(20.0)
    assert run(model, "itc", batch).scalars["scale"].item() == pytest.approx(100.0)


@pytest.mark.parametrize(("bounds", "start"), [((0.01, 100.0), 1.0), ((0.001, 0.5), 0.07)])
def test_a_temperature_that_left_its_bounds_comes_back(bounds: tuple[float, float], start: float) -> None:
    """Beyond a bound a clamped value has no gradient; the parameter is brought back to the bound and can leave it."""
    temperature = Temperature(start, True, bounds)
    with torch.no_grad():
        temperature.log_scale.fill_(30.0)
    scale = temperature()
    assert scale.item() == pytest.approx(1 / bounds[0], rel=1e-4)
    again = temperature()  # a second objective of the same step asks as well
    (scale + again).backward()
    assert temperature.log_scale.grad is not None
    assert temperature.log_scale.grad.item() == pytest.approx(2 / bounds[0], rel=1e-4)
    fixed = Temperature(start, False, bounds)
    assert not fixed.log_scale.requires_grad
    assert fixed().item() == pytest.approx(1 / start)


def test_texts_that_are_said_otherwise_are_contrasted_in_the_images_space() -> None:
    batch = random_batch(3)
    said = replace(batch, translation=random_batch(4).text, vision=None, partners=shuffled_partners(1, 5))
    for own in (None, 0.5):
        settings = {} if own is None else {"temperature": own}
        model = build({"itc": {"width": 8, "smoothing": 0.1, "temperature": 0.25}, "bitext": settings})
        first = [space(model).embed_text(model.encode(text, None)["text"]) for text in (said.text, said.translation)]
        expected = slow_contrast((4.0 if own is None else 2.0) * first[0] @ first[1].t(), said.partners, 0.1)
        assert run(model, "bitext", said).loss.item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_hinge_against_loops(seed: int, size: int, hardest: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    similarities = 2 * torch.rand(size, size, generator=random) - 1
    partners = shuffled_partners(seed, size)
    total = 0.0
    for row in range(size):
        true = float(similarities[row, row])
        images = [max(0.0, 0.2 - true + float(similarities[row, k])) for k in range(size) if not partners[row, k]]
        texts = [max(0.0, 0.2 - true + float(similarities[k, row])) for k in range(size) if not partners[k, row]]
        total += sum(max([0.0, *costs]) if hardest else sum(costs) for costs in (images, texts)) / size
    assert hinge(similarities, partners, 0.2, hardest).item() == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_vse_is_the_hinge_of_the_cosines() -> None:
    model, batch = build({"vse": {"width": 8, "margin": 0.3}}), random_batch(2)
    streams = model.encode(batch.text, batch.vision)
    texts, images = space(model, "vse").embed_text(streams["text"]), space(model, "vse").embed_vision(streams["vision"])
    expected = hinge(texts @ images.t(), batch.partners, 0.3).item()
    assert run(model, "vse", batch).loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


class SlowMomentum:
    """ALBEF's contrast by the book: copies of all weights in a dictionary, lists for queues, a term at a time."""

    def __init__(self, model: VisionLanguageModel, decay: float, queue: int, soft: float, at: str) -> None:
        self.twin = copy.deepcopy(model)
        self.decay, self.size, self.soft, self.at = decay, queue, soft, at
        self.texts: list[Tensor] = []
        self.images: list[Tensor] = []
        self.steps = 0

    def embedded(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        passed = model.encoder if self.at == "end" else model.encoder.alone
        text, vision = passed({"text": model.text(batch.text)}), passed({"vision": model.vision(batch.vision)})
        return space(model).embed_text(text["text"]), space(model).embed_vision(vision["vision"])

    @torch.no_grad()
    def loss(self, model: VisionLanguageModel, batch: Batch) -> float:
        weights = dict(model.named_parameters())
        for name, twin in self.twin.named_parameters():
            if "twins" not in name:
                twin.copy_(weights[name] if self.steps == 0 else self.decay * twin + (1 - self.decay) * weights[name])
        self.steps += 1
        scale = 1 / 0.07
        texts, images = self.embedded(model, batch)
        old_texts, old_images = self.embedded(self.twin, batch)
        total = 0.0
        for queries, twins, keys, partners in (
            (texts, old_texts, [*old_images, *self.images], batch.partners),
            (images, old_images, [*old_texts, *self.texts], batch.partners.t()),
        ):
            for row in range(len(batch)):
                logits = [scale * float(queries[row] @ key) for key in keys]
                theirs = [scale * float(twins[row] @ key) for key in keys]
                whole = math.log(sum(math.exp(logit) for logit in logits))
                their_whole = sum(math.exp(logit) for logit in theirs)
                number = int(partners[row].sum())
                for place in range(len(keys)):
                    true = 1 / number if place < len(batch) and partners[row, place] else 0.0
                    target = self.soft * math.exp(theirs[place]) / their_whole + (1 - self.soft) * true
                    total -= target * (logits[place] - whole) / (2 * len(batch))
        self.texts = [*self.texts, *old_texts][-self.size :] if self.size else []
        self.images = [*self.images, *old_images][-self.size :] if self.size else []
        return total


@pytest.mark.parametrize("at", ["towers", "end"])
@pytest.mark.parametrize(("queue", "soft"), [(0, 0.4), (8, 0.4), (12, 0.0), (64, 1.0)])
def test_momentum_and_queue_against_lists(queue: int, soft: float, at: str) -> None:
    momentum = {"decay": 0.8, "queue": queue, "soft": soft}
    model = build({"itc": {"width": 8, "at": at, "learnt": False, "momentum": momentum}}, THEN_FUSED)
    slow = SlowMomentum(model, 0.8, queue, soft, at)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    seen = []
    for step in range(6):
        batch = random_batch(step, size=5)
        batch = replace(batch, partners=shuffled_partners(step, 5))
        expected = slow.loss(model, batch)
        loss = run(model, "itc", batch).loss
        assert loss.item() == pytest.approx(expected, rel=2e-4), step
        seen.append(expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, "itc", batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "only training moves"


def test_twins_are_not_learnt_but_saved_and_carry_on() -> None:
    momentum = {"decay": 0.9, "queue": 16, "soft": 0.4, "ramp": 3}
    model = build({"itc": {"width": 8, "momentum": momentum}}, THEN_FUSED)
    objective = itc(model)
    assert objective.twins is not None
    assert not any(parameter.requires_grad for parameter in objective.twins.parameters())
    assert len(objective.twins.encoder.blocks) == 1, "the fusion needs no twin"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    model.train()

    def step(trained: VisionLanguageModel, learning: torch.optim.Optimizer, seed: int) -> float:
        loss = run(trained, "itc", random_batch(seed)).loss
        learning.zero_grad()
        loss.backward()
        learning.step()
        return loss.item()

    for seed in range(3):
        step(model, optimizer, seed)
    other = build({"itc": {"width": 8, "momentum": momentum}}, THEN_FUSED).train()
    other.load_state_dict(model.state_dict())
    other_optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.3)
    for seed in range(3, 8):
        assert step(other, other_optimizer, seed) == step(model, optimizer, seed)


def test_the_first_step_takes_weights_and_statistics_that_came_after_the_building() -> None:
    model = build({"itc": {"width": 8, "momentum": {"queue": 4}}})
    with torch.no_grad():
        model.text.word.weight.add_(1.0)
        model.vision.mean.fill_(0.5)
    model.train()
    run(model, "itc", random_batch(0))
    twins = itc(model).twins
    assert twins is not None
    assert torch.equal(twins.text.word.weight, model.text.word.weight)
    assert torch.equal(twins.vision.mean, model.vision.mean)


def test_soft_targets_come_in_over_the_ramp() -> None:
    model = build({"itc": {"width": 8, "momentum": {"soft": 0.6, "ramp": 2, "queue": 0}}}).train()
    shares = []
    for seed in range(4):
        run(model, "itc", random_batch(seed))
        twins = itc(model).twins
        assert twins is not None
        shares.append(twins.soft.item())
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.6])


@given(st.integers(0, 9), st.lists(st.integers(1, 12), max_size=8))
@settings(max_examples=80, deadline=None)
def test_a_queue_holds_the_newest(size: int, batches: list[int]) -> None:
    queue, everything = Queue(size, 1), []
    for rows in batches:
        new = torch.arange(len(everything), len(everything) + rows).float()[:, None]
        everything += new[:, 0].tolist()
        queue.put(new, -new)
    newest = sorted(everything[-size:]) if size else []
    assert sorted(queue.texts[queue.filled][:, 0].tolist()) == newest
    assert torch.equal(queue.images, -queue.texts)


MOMENTUM = {"width": 8, "momentum": {"queue": 12, "soft": 0.4, "decay": 0.5}}
RANKED: dict[str, tuple[dict[str, Any], tuple[range, range]]] = {
    "even": ({"width": 8}, (range(4), range(4, 8))),
    "uneven": ({"width": 8}, (range(5), range(5, 8))),
    "shared": ({"width": 8}, (range(5), range(3, 8))),
    "momentum": (MOMENTUM, (range(4), range(4, 8))),
    "momentum shared": (MOMENTUM, (range(5), range(3, 8))),
}
"""itc's settings, and which rows of a batch each of two ranks has."""


def _two_steps(how: dict[str, Any], batch: Batch) -> tuple[VisionLanguageModel, list[float]]:
    """Gradients of two batches' losses, added up; the last losses."""
    model = build({"itc": how, "vse": {"width": 8}}).train()
    for _ in range(2):
        losses = [run(model, name, batch).loss for name in ("itc", "vse")]
        torch.stack(losses).sum().backward()
    return model, [loss.item() for loss in losses]


def _ranked_batch() -> Batch:
    return replace(random_batch(0, size=8), partners=shuffled_partners(0, 8))


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    whole, found = _ranked_batch(), {}
    for name, (how, parts) in RANKED.items():
        rows, every = torch.tensor(parts[rank]), torch.tensor([*parts[0], *parts[1]])
        own = Batch(
            uids=tuple(whole.uids[row] for row in rows),
            text=whole.text.select(rows),
            vision=whole.vision.select(rows),
            partners=whole.partners[rows][:, rows],
            everywhere=whole.partners[rows][:, every],
        )
        model, losses = _two_steps(how, own)
        gradients = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
        for gradient in gradients.values():
            distributed.all_reduce(gradient)
            gradient /= 2
        found[name] = {"losses": losses, "gradients": gradients, "state": model.state_dict()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", RANKED)
def test_two_ranks_are_one_batch(ranks: list[dict[str, Any]], case: str) -> None:
    """The mean of the ranks' gradients, as data parallelism takes it, is the whole batch's; so is what is kept."""
    first, second = (rank[case] for rank in ranks)
    model, losses = _two_steps(RANKED[case][0], _ranked_batch())
    for place, loss in enumerate(losses):
        assert first["losses"][place] == second["losses"][place] == pytest.approx(loss, rel=1e-5)
    gradients = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    assert gradients.keys() == first["gradients"].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=2e-4, atol=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(first["state"][name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(first["state"][name], second["state"][name])


def test_each_rank_knows_who_is_whose_partner_everywhere(dataset: Dataset) -> None:
    """Of 5 rows on 3 ranks the last two share one: it is no negative of itself."""
    recipe = model_recipe(batch={"size": 5})
    mixture = open_sources(recipe, dataset, "1GB").train
    steps = [list(mixture.batches(0, 4, rank, 3)) for rank in range(3)]
    for whole, *ranks in zip(mixture.batches(0, 4), *steps, strict=True):
        place = {uid: row for row, uid in enumerate(whole[1].uids)}
        every = [place[uid] for _, batch in ranks for uid in batch.uids]
        assert whole[1].everywhere is None
        for _, batch in ranks:
            rows = [place[uid] for uid in batch.uids]
            assert batch.everywhere is not None
            assert torch.equal(batch.everywhere, whole[1].partners[rows][:, every])


def test_alone_nothing_is_gathered() -> None:
    batch, rows = random_batch(0, size=3), torch.randn(3, 2, requires_grad=True)
    everyone = Everyone(batch)
    assert everyone.rows(rows) is rows
    assert everyone.partners is batch.partners
