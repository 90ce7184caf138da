"""Object-guided masked vision modelling: where objects lie, which is hidden, and what is predicted of it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import GRID, OBJECT_WIDTH, grid_input, grid_model, scene_batch, separate_widths

from pipeline.errors import PairmillError
from trainers.loop.mixing import outcomes
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import Reading
from trainers.objectives.omvm import choose_object
from trainers.objectives.regions import cells_inside, known_grid, mean_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_inside(row: int, column: int, grid: tuple[int, int], box: list[float]) -> bool:
    """Whether a cell is a box's: its centre is inside, or no cell's is and it has the box's own centre."""
    rows, columns = grid

    def holds(r: int, c: int) -> bool:
        x, y = (c + 0.5) / columns, (r + 0.5) / rows
        return box[0] <= x <= box[2] and box[1] <= y <= box[3]

    if any(holds(r, c) for r in range(rows) for c in range(columns)):
        return holds(row, column)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return (row, column) == (min(int(y * rows), rows - 1), min(int(x * columns), columns - 1))


@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_cells_lie_in_a_box_as_loops_say(seed: int, side: float) -> None:
    random = generator(seed)
    vision = grid_input(3, random, missing=True)
    first = torch.rand(3, 4, 2, generator=random) * (1 - side)
    boxes = torch.cat([first, first + side * torch.rand(3, 4, 2, generator=random)], -1)
    inside = cells_inside(vision, GRID, boxes)
    for image in range(3):
        for number in range(4):
            box = boxes[image, number].tolist()
            for position in range(12):
                row, column = vision.cells[image, position].tolist()
                expected = bool(vision.present[image, position]) and slow_inside(row, column, GRID, box)
                assert bool(inside[image, number, position]) == expected


def test_a_box_at_the_far_corner_and_the_whole_image() -> None:
    vision = grid_input(1, generator())
    boxes = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    inside = cells_inside(vision, GRID, boxes)[0]
    assert inside[0].nonzero().flatten().tolist() == [11]
    assert inside[1].all()
    assert inside[2].nonzero().flatten().tolist() == [0]


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_hidden_object_covers_some_and_not_all(seed: int, density: float) -> None:
    random = generator(seed)
    present = torch.rand(4, 6, generator=random) < 0.8
    inside = (torch.rand(4, 3, 6, generator=random) < density) & present[:, None]
    hidden = choose_object(inside, present, random)
    for row in range(4):
        covered = [int(inside[row, number].sum()) for number in range(3)]
        candidates = [number for number in range(3) if 0 < covered[number] < int(present[row].sum())]
        assert int(hidden[row]) in (candidates or [-1])


def test_each_candidate_is_hidden_as_often() -> None:
    inside = torch.zeros(4000, 3, 6, dtype=torch.bool)
    inside[:, 0, :2] = inside[:, 2, 3:5] = True
    hidden = choose_object(inside, torch.ones(4000, 6, dtype=torch.bool), generator())
    assert set(hidden.tolist()) == {0, 2}
    assert abs((hidden == 0).float().mean().item() - 0.5) < 0.03


def test_mean_of_groups() -> None:
    states, members = torch.randn(2, 5, 3), torch.rand(2, 4, 5) < 0.4
    members[0, 1] = False
    found = mean_of(states, members)
    for row in range(2):
        for group in range(4):
            mine = states[row][members[row, group]]
            torch.testing.assert_close(found[row, group], mine.mean(0) if len(mine) else torch.zeros(3))


def read(model: VisionLanguageModel, view: View, seed: int = 1) -> tuple[Reading, View, Streams]:
    objective = model.objective("omvm")
    assert isinstance(objective, Reading)
    view = objective.corrupt(view, generator(seed))
    return objective, view, model.encode(view.text, view.vision)


@pytest.mark.parametrize("encoder", [None, separate_widths()])
@pytest.mark.parametrize("missing", [False, True])
def test_the_loss_against_loops(encoder: dict[str, object] | None, missing: bool) -> None:
    model = grid_model({"omvm": {}}, **({"encoder": encoder} if encoder else {}))
    batch = scene_batch(2, size=6, missing=missing)
    objective, view, streams = read(model, View.of(batch))
    errors, classes = [], []
    for row, number in enumerate(view.hidden_object.tolist()):
        if number < 0:
            assert not view.vision.masked[row].any()
            continue
        box = batch.objects.boxes[row, number].tolist()
        cells = [
            position
            for position in range(12)
            if batch.vision.present[row, position]
            and slow_inside(*batch.vision.cells[row, position].tolist(), GRID, box)
        ]
        assert view.vision.masked[row].nonzero().flatten().tolist() == cells
        pooled = sum(streams["vision"].states[row, position] for position in cells) / len(cells)
        predicted, wanted = objective.features(pooled).tolist(), batch.objects.features[row, number].tolist()
        errors.append(sum((a - b) ** 2 for a, b in zip(predicted, wanted, strict=True)) / OBJECT_WIDTH)
        scores, values = objective.classes(pooled).tolist(), batch.objects.class_values[row, number].tolist()
        true = int(batch.objects.class_ids[row, number, values.index(max(values))])
        classes.append(math.log(sum(map(math.exp, scores))) - scores[true])
    assert len(errors) >= 3
    outcome = objective.loss(model, view, streams)
    expected = sum(errors) / len(errors) + sum(classes) / len(classes)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-4)


def test_what_stood_in_the_box_changes_no_state_and_the_batch_is_unchanged() -> None:
    model, batch = grid_model({"omvm": {}}), scene_batch(3)
    kept = batch.vision.features.clone()
    _, view, streams = read(model, View.of(batch))
    assert view.vision.masked.any()
    assert torch.equal(batch.vision.features, kept)
    other = replace(batch.vision, features=torch.where(view.vision.masked[..., None], kept + 3, kept))
    _, again, same = read(model, View.of(replace(batch, vision=other)))
    torch.testing.assert_close(streams["vision"].states, same["vision"].states, rtol=0, atol=0)
    assert torch.equal(view.hidden_object, again.hidden_object)


def test_rows_that_do_not_match_are_not_predicted_and_objects_follow_their_images() -> None:
    model, batch = grid_model({"omvm": {}}), scene_batch(4, size=4)
    images = torch.tensor([2, 1, 0, 3])
    matched = torch.tensor([False, True, False, True])
    objective, view, streams = read(model, View.of(batch).combined(torch.arange(4), images, matched))
    assert torch.equal(view.objects.boxes, batch.objects.boxes[images])
    whole = objective.loss(model, view, streams).loss
    hidden = view.hidden_object.masked_fill(~matched, -1)
    only = objective.loss(model, replace(view, hidden_object=hidden), streams).loss
    assert whole.item() == pytest.approx(only.item())
    nobody = replace(view, matched=torch.zeros(4, dtype=torch.bool))
    loss = objective.loss(model, nobody, streams).loss
    assert loss.item() == 0.0
    loss.backward()


def test_images_without_objects_take_no_part() -> None:
    model, batch = grid_model({"omvm": {}}), scene_batch(5, size=3)
    none = replace(batch.objects, present=torch.zeros_like(batch.objects.present))
    objective, view, streams = read(model, View.of(replace(batch, objects=none)))
    assert view.hidden_object.tolist() == [-1, -1, -1]
    assert objective.loss(model, view, streams).loss.item() == 0.0


def test_it_shares_a_joint_view() -> None:
    model, batch = grid_model({"mlm": {}, "omvm": {}, "pra": {}, "itm": {}}, mixing="joint"), scene_batch(6)
    names = ["mlm", "omvm", "pra", "itm"]
    found = outcomes(model, batch, names, lambda name: generator(len(name)), joint=True)
    assert all(torch.isfinite(outcome.loss) for outcome in found.values())


def test_it_learns_a_batch_by_heart() -> None:
    model, batch = grid_model({"omvm": {}}), scene_batch(7, size=4)
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for step in range(120):
        loss = model.objective("omvm")(Towers(model, batch), generator(step % 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("shape", [None, FeatureShape(5, 0)])
def test_unknown_classes_are_refused(shape: FeatureShape | None) -> None:
    with pytest.raises(PairmillError, match="omvm predicts the detector's classes"):
        grid_model({"omvm": {}}, detector=shape)


def test_regions_have_no_cells() -> None:
    with pytest.raises(PairmillError, match="region features have none"):
        known_grid("omvm", FeatureShape(5, 3))
