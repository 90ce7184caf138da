"""Word-region alignment: IPOT against plain loops, and against the exact assignment as its limit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from synthetic import CLASSES, WIDTH, model_recipe, random_batch
from torch import Tensor

from trainers.loop.mixing import outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.objectives.itm import ImageTextMatching, combinations
from trainers.objectives.wra import distances, plan


def slow_plan(cost: list[list[float]], beta: float, iterations: int) -> list[list[float]]:
    """IPOT's algorithm 1 by loops, between two uniform distributions."""
    rows, columns = len(cost), len(cost[0])
    kernel = [[math.exp(-value / beta) for value in row] for row in cost]
    found = [[1.0] * columns for _ in range(rows)]
    right = [1 / columns] * columns
    for _ in range(iterations):
        weighed = [[kernel[i][j] * found[i][j] for j in range(columns)] for i in range(rows)]
        left = [1 / rows / sum(weighed[i][j] * right[j] for j in range(columns)) for i in range(rows)]
        right = [1 / columns / sum(weighed[i][j] * left[i] for i in range(rows)) for j in range(columns)]
        found = [[left[i] * weighed[i][j] * right[j] for j in range(columns)] for i in range(rows)]
    return found


def slow_distance(words: Tensor, positions: Tensor) -> float:
    """(n, hidden) and (m, hidden), nothing padded."""
    words, positions = words.detach(), positions.detach()
    cost = [
        [1 - float(word @ position) / float(word.norm() * position.norm()) for position in positions] for word in words
    ]
    moved = slow_plan(cost, 0.5, 50)
    return sum(moved[i][j] * cost[i][j] for i in range(len(words)) for j in range(len(positions)))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_distances_against_loops_whatever_is_padded(seed: int, longest: int, most: int) -> None:
    random = torch.Generator().manual_seed(seed)
    words, positions = torch.randn(3, longest, 5, generator=random), torch.randn(3, most, 5, generator=random)
    texts, images = (torch.rand(3, length, generator=random) < 0.7 for length in (longest, most))
    texts[:, 0] = images[:, -1] = True
    moved = distances(words, texts, positions, images)
    for row in range(3):
        expected = slow_distance(words[row][texts[row]], positions[row][images[row]])
        assert moved[row].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_many_iterations_find_the_exact_assignment() -> None:
    random = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(4, 9, 9, generator=random, dtype=torch.float64)
    there = torch.ones(4, 9, dtype=torch.bool)
    moved = plan(cost, there, there, beta=0.05, iterations=2000)
    for row in range(4):
        best = linear_sum_assignment(cost[row].numpy())
        exact = torch.zeros(9, 9, dtype=torch.float64)
        exact[best[0], best[1]] = 1 / 9
        torch.testing.assert_close(moved[row], exact, rtol=0, atol=1e-6)


def test_a_plan_moves_every_word_and_position_by_an_equal_share() -> None:
    random = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(2, 5, 8, generator=random)
    rows, columns = torch.arange(5) < torch.tensor([[5], [2]]), torch.arange(8) < torch.tensor([[3], [8]])
    moved = plan(cost, rows, columns, iterations=200)
    torch.testing.assert_close(moved.sum(2), rows / rows.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moved.sum(1), columns / columns.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)


def test_a_text_without_words_moves_nothing_and_the_gradient_is_a_number() -> None:
    words, positions = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(2, 2, 4, requires_grad=True)
    there = torch.ones(2, 3, dtype=torch.bool)
    there[0] = False
    moved = distances(words, there, positions, torch.ones(2, 2, dtype=torch.bool))
    moved.sum().backward()
    assert moved[0].item() == 0
    assert moved[1].item() == pytest.approx(1.0, abs=1e-4), "zeros are at right angles to everything"
    assert torch.isfinite(words.grad).all()
    assert torch.isfinite(positions.grad).all()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("first", ["none", "token"])
def test_alignment_draws_matches_near_and_pushes_mismatches_away(joint: bool, first: str) -> None:
    torch.manual_seed(1)
    vision = {"kind": "region", "first": first}
    objectives = {"itm": {"alignment": 0.1}}
    recipe = model_recipe(objectives=objectives, vision=vision, mixing="joint" if joint else "sum")
    model = VisionLanguageModel(recipe, 40, FeatureShape(WIDTH, CLASSES)).eval()
    batch, objective = random_batch(5, size=6), model.objective("itm")
    assert isinstance(objective, ImageTextMatching)

    def seeded(name: str = "itm") -> torch.Generator:
        return torch.Generator().manual_seed(3)

    found = (
        outcomes(model, batch, ["itm"], seeded, joint)["itm"] if joint else objective(Towers(model, batch), seeded())
    )
    judged = combinations(batch.partners, 0, seeded())
    terms, losses = [], []
    for text, image, label in zip(judged.texts, judged.images, judged.labels, strict=True):
        tokens, regions = batch.text.select(text[None]), batch.vision.select(image[None])
        streams = model.encode(tokens, regions)
        words = [at for at, token in enumerate(tokens.tokens[0].tolist()) if token not in (0, 2, 3)]
        lead = first == "token"
        moved = slow_distance(streams["text"].states[0][words], streams["vision"].states[0][lead:][regions.present[0]])
        terms.append(moved if label else -moved)
        losses.append(torch.nn.functional.cross_entropy(objective.logits(streams), label[None]).item())
    assert found.scalars["alignment"].item() == pytest.approx(sum(terms) / 6, rel=1e-3, abs=1e-4)
    assert found.loss.item() == pytest.approx(sum(losses) / 6 + 0.1 * sum(terms) / 6, rel=1e-3)
