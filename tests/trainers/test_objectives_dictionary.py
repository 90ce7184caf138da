"""The visual dictionary and the objective over it, against loops; the dictionary on two ranks, too."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import grid_model, scene_batch
from torch import Tensor, distributed, multiprocessing

from pipeline.model_recipe import Dictionary
from trainers.loop.mixing import outcomes
from trainers.network.dictionary import NOWHERE, VisualDictionary
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import Reading
from trainers.objectives.mvm import choose_entries, perplexity

WIDTH = 6
ENTRIES = 5
VISION = {"kind": "grid", "dictionary": {"entries": 7}}


def dictionary(decay: float = 0.99, entries: int = ENTRIES) -> VisualDictionary:
    torch.manual_seed(0)
    return VisualDictionary(Dictionary(entries=entries, decay=decay), WIDTH)


def features(seed: int, images: int = 3, positions: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(images, positions, WIDTH, generator=random) + 1
    return values, torch.rand(images, positions, generator=random) < 0.7


def normalised(vector: Tensor) -> Tensor:
    centred = vector - vector.sum() / WIDTH
    return centred / math.sqrt(float(centred.square().sum()) / WIDTH + 1e-5)


class SlowDictionary:
    """The definition, entry by entry."""

    def __init__(self, entries: Tensor, decay: float) -> None:
        self.entries, self.decay, self.updates = [entry.clone() for entry in entries], decay, 0

    def nearest(self, vector: Tensor) -> int:
        distances = [float((normalised(vector) - entry).square().sum()) for entry in self.entries]
        return distances.index(min(distances))

    def update(self, vectors: list[Tensor]) -> None:
        decay = min(0.1 * self.updates, self.decay)
        numbers = [self.nearest(vector) for vector in vectors]
        for number in set(numbers):
            mine = [normalised(vector) for vector, its in zip(vectors, numbers, strict=True) if its == number]
            self.entries[number] = decay * self.entries[number] + (1 - decay) * sum(mine) / len(mine)
        self.updates += 1


@pytest.mark.parametrize("decay", [0.99, 0.35])
def test_look_up_and_updates_follow_the_definition(decay: float) -> None:
    """Through more updates than the ramp is long."""
    module = dictionary(decay).train()
    slow = SlowDictionary(module.entries, decay)
    for step in range(14):
        values, present = features(step)
        before = module.entries.clone()
        found, numbers = module(values, present)
        for image in range(3):
            for position in range(4):
                number = int(numbers[image, position])
                if present[image, position]:
                    assert number == slow.nearest(values[image, position])
                    torch.testing.assert_close(found[image, position], before[number])
                else:
                    assert number == NOWHERE
                    torch.testing.assert_close(found[image, position], normalised(values[image, position]))
        slow.update(list(values[present]))
        torch.testing.assert_close(module.entries, torch.stack(slow.entries), rtol=1e-4, atol=1e-5)
    assert int(module.updates) == 14


def test_entries_that_are_nobodys_nearest_stay() -> None:
    module = dictionary().train()
    before = module.entries.clone()
    values, _ = features(0, 1, 2)
    _, numbers = module(values, torch.ones(1, 2, dtype=torch.bool))
    idle = [entry for entry in range(ENTRIES) if entry not in numbers]
    assert len(idle) >= 3
    assert torch.equal(module.entries[idle], before[idle])
    assert not torch.equal(module.entries, before)


def test_nothing_is_learnt_outside_of_training_or_from_padding() -> None:
    module = dictionary()
    before = module.entries.clone()
    values, present = features(1)
    for asked in (module.eval(), module.train()):
        asked.nearest(values, present)
    module.eval()(values, present)
    assert torch.equal(module.entries, before)
    assert int(module.updates) == 0
    module.train()(values, torch.zeros_like(present))
    assert torch.equal(module.entries, before)
    other = torch.where(present[..., None], values, values + 100)
    twins = dictionary().train(), dictionary().train()
    twins[0](values, present)
    twins[1](other, present)
    assert torch.equal(twins[0].entries, twins[1].entries)


def test_gradients_pass_straight_through() -> None:
    """As if the features, normalised, had come out of the look-up themselves."""
    module = dictionary().train()
    values, present = features(2)
    values.requires_grad_()
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    (module(values, present)[0] * weights).sum().backward()
    found = values.grad
    values.grad = None
    (torch.nn.functional.layer_norm(values, (WIDTH,)) * weights).sum().backward()
    torch.testing.assert_close(found, values.grad)
    assert not list(module.parameters())


def test_a_checkpoint_carries_the_dictionary() -> None:
    """A copy that was loaded learns on exactly as the original does."""
    module, copy = dictionary().train(), dictionary(entries=ENTRIES).train()
    copy.entries.zero_()
    for step in range(3):
        module(*features(step))
    copy.load_state_dict(module.state_dict())
    for step in range(3, 6):
        module(*features(step))
        copy(*features(step))
    assert torch.equal(module.entries, copy.entries)
    assert int(copy.updates) == 6


def _on_a_rank(rank: int, rendezvous: str, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    module = dictionary().train()
    for step in range(3):
        values, present = features(step, images=4)
        mine = slice(2 * rank, 2 * rank + 2)
        module(values[mine], present[mine])
    torch.save(module.entries, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_learn_one_dictionary(tmp_path: Path) -> None:
    """The same as one process that sees the whole batch."""
    arguments = (f"file://{tmp_path}/meeting", str(tmp_path))
    multiprocessing.start_processes(_on_a_rank, arguments, nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    alone = dictionary().train()
    for step in range(3):
        alone(*features(step, images=4))
    torch.testing.assert_close(first, alone.entries)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_all_positions_of_a_chosen_entry_are_chosen(seed: int, rows: int, length: int, probability: float) -> None:
    random = torch.Generator().manual_seed(seed)
    entries = torch.randint(-1, 4, (rows, length), generator=random)
    chosen = choose_entries(entries, probability, random)
    for row in range(rows):
        picked = {int(number) for number in entries[row][chosen[row]]}
        assert NOWHERE not in picked
        assert chosen[row].tolist() == [int(number) in picked for number in entries[row]]
        assert bool(picked) == bool((entries[row] != NOWHERE).any())


@pytest.mark.parametrize(
    ("entries", "expected"), [([[3, 3], [3, -1]], 1.0), ([[0, 1], [2, 3]], 4.0), ([[-1, -1]], 1.0)]
)
def test_perplexity_is_the_number_of_entries_in_equal_use(entries: list[list[int]], expected: float) -> None:
    assert perplexity(torch.tensor(entries)).item() == pytest.approx(expected)


def test_fifteen_percent_of_the_entries_are_chosen() -> None:
    entries = torch.arange(200).expand(300, 200)
    chosen = choose_entries(entries, 0.15, torch.Generator().manual_seed(0))
    assert abs(chosen.float().mean().item() - 0.15) < 0.005


def test_mvm_predicts_the_numbers_from_before_the_masking() -> None:
    model, batch = grid_model({"mvm": {"probability": 0.3}}, vision=VISION), scene_batch(3, missing=True)
    objective = model.objective("mvm")
    assert isinstance(objective, Reading)
    view = objective.corrupt(View.of(batch), torch.Generator().manual_seed(1))
    streams = model.encode(view.text, view.vision)
    outcome = objective.loss(model, view, streams)
    embedding = model.vision
    projected = embedding.project(embedding.standardized(batch.vision.values()))
    numbers = embedding.dictionary.nearest(projected, batch.vision.present)
    terms = []
    for row, position in view.regions.nonzero().tolist():
        scores = objective.head(streams["vision"].states[row, position]).tolist()
        terms.append(math.log(sum(map(math.exp, scores))) - scores[int(numbers[row, position])])
    assert outcome.loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert torch.equal(view.vision.masked, view.regions)
    for row in range(len(batch)):
        picked = set(numbers[row][view.regions[row]].tolist())
        assert picked
        assert view.regions[row].tolist() == [int(number) in picked for number in numbers[row]]


def test_what_a_masked_cell_was_changes_no_state() -> None:
    model, batch = grid_model({"mvm": {"probability": 0.3}}, vision=VISION), scene_batch(4)
    objective = model.objective("mvm")
    assert isinstance(objective, Reading)
    view = objective.corrupt(View.of(batch), torch.Generator().manual_seed(1))
    other = view.vision.features.masked_fill(view.regions[..., None], 7.0)
    states = model.encode(view.text, view.vision)["vision"].states
    again = model.encode(view.text, replace(view.vision, features=other))["vision"].states
    torch.testing.assert_close(states, again, rtol=0, atol=0)


def test_a_step_moves_the_entries_once_and_not_by_what_is_masked() -> None:
    model, batch = grid_model({"mvm": {"probability": 0.3}}, vision=VISION).train(), scene_batch(5)
    module = model.vision.dictionary
    outcome = model.objective("mvm")(Towers(model, batch), torch.Generator().manual_seed(1))
    assert int(module.updates) == 1
    outcome.loss.backward()
    assert model.vision.project.weight.grad is not None
    assert model.vision.project.weight.grad.abs().sum() > 0
    assert "vision.dictionary.entries" in model.state_dict()
    assert not [name for name, _ in model.named_parameters() if "dictionary" in name or "mvm._embedding" in name]


def test_a_copied_model_masks_by_its_own_dictionary() -> None:
    model, batch = grid_model({"mvm": {}}, vision=VISION), scene_batch(5)
    copied = copy.deepcopy(model)
    copied.vision.dictionary.entries.add_(torch.randn(7, 16, generator=torch.Generator().manual_seed(3)))
    found = [
        each.objective("mvm").corrupt(View.of(batch), torch.Generator()).entries.tolist() for each in (model, copied)
    ]
    assert found[0] != found[1]
    assert found[1] == copied.vision.indices(batch.vision).tolist()


def test_mvm_shares_a_joint_view_with_matching_and_words() -> None:
    over = {"mixing": "joint", "vision": VISION}
    model, batch = grid_model({"mlm": {}, "mvm": {}, "itm": {"mismatches": 1}}, **over), scene_batch(6)
    found = outcomes(model, batch, ["mlm", "mvm", "itm"], lambda name: torch.Generator().manual_seed(1), joint=True)
    assert all(torch.isfinite(outcome.loss) for outcome in found.values())


def test_mvm_learns_a_batch_by_heart() -> None:
    """Chance among the seven entries is 1.95."""
    model, batch = grid_model({"mvm": {"probability": 0.3}}, vision=VISION).train(), scene_batch(7, size=4)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for step in range(200):
        outcome = model.objective("mvm")(Towers(model, batch), torch.Generator().manual_seed(step % 4))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.item())
    assert sum(losses[-10:]) / 10 < 1.0
