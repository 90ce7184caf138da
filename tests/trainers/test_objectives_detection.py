"""Set matching and the detection loss: against loops, every assignment there is, torchvision and transformers."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CLASSES, grid_model, scene_batch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from pipeline.errors import PairmillError
from trainers.data.batch import VisionInput
from trainers.network.embeddings import FeatureShape
from trainers.network.towers import Towers
from trainers.objectives.detection import set_loss
from trainers.objectives.regions import detected_classes
from trainers.objectives.set_matching import Matches, centred, corners, generalized_iou, match

DECODER = {"layers": 1, "queries": 6}


def random_boxes(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.rand((*shape, 2, 2), generator=random).sort(-2).values.flatten(-2)


def slow_giou(first: list[float], second: list[float]) -> float:
    across = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    down = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    shared = across * down
    union = (first[2] - first[0]) * (first[3] - first[1]) + (second[2] - second[0]) * (second[3] - second[1]) - shared
    width = max(first[2], second[2]) - min(first[0], second[0])
    height = max(first[3], second[3]) - min(first[1], second[1])
    around = width * height
    return (shared / union if union else 0.0) - ((around - union) / around if around else 0.0)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_generalized_iou_of_each_two(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    first, second = random_boxes((4,), random), random_boxes((3,), random)
    second[0] = first[0]
    found = generalized_iou(first[:, None], second[None])
    for row in range(4):
        for column in range(3):
            expected = slow_giou(first[row].tolist(), second[column].tolist())
            assert found[row, column].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(found, generalized_box_iou(first, second))
    assert found[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_boxes_without_area_have_an_overlap_that_is_a_number() -> None:
    point, line, square = torch.tensor([[0.5] * 4, [0.2, 0.3, 0.8, 0.3], [0.0, 0.0, 1.0, 1.0]])
    for first in (point, line, square):
        for second in (point, line, square):
            value = generalized_iou(first, second)
            assert torch.isfinite(value)
            assert -1 <= value <= 1
    boxes = torch.stack([point, line]).requires_grad_()
    generalized_iou(boxes, square).sum().backward()
    assert boxes.grad is not None
    assert torch.isfinite(boxes.grad).all()


def test_corners_and_centres_are_inverse() -> None:
    boxes = random_boxes((5, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(corners(centred(boxes)), boxes)
    torch.testing.assert_close(centred(torch.tensor([0.1, 0.2, 0.5, 0.8])), torch.tensor([0.3, 0.5, 0.4, 0.6]))


def slow_costs(logits: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor) -> list[list[float]]:
    """Of one image: (Q, C + 1), (Q, 4), (O,), (O, 4)."""
    costs = []
    for query in range(len(logits)):
        chances = logits[query].exp() / logits[query].exp().sum()
        costs.append(
            [
                5 * sum(abs(float(a) - float(b)) for a, b in zip(boxes[query], targets[object_], strict=True))
                - float(chances[classes[object_]])
                - 2 * slow_giou(corners(boxes[query]).tolist(), corners(targets[object_]).tolist())
                for object_ in range(len(targets))
            ]
        )
    return costs


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_the_assignment_is_the_cheapest_of_all(seed: int, queries: int, objects: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, queries, CLASSES + 1, generator=random)
    boxes = torch.rand(2, queries, 4, generator=random)
    classes = torch.randint(0, CLASSES, (2, objects + 1), generator=random)
    targets = centred(random_boxes((2, objects + 1), random))
    present = torch.ones(2, objects + 1, dtype=torch.bool)
    present[0, int(torch.randint(0, objects + 1, (), generator=random))] = False
    matches = match(logits, boxes, classes, targets, present)
    for image in range(2):
        mine = matches.images == image
        rows, columns = matches.queries[mine].tolist(), matches.objects[mine].tolist()
        there = present[image].nonzero()[:, 0].tolist()
        assert len(set(rows)) == len(rows) == min(queries, len(there))
        assert len(set(columns)) == len(columns)
        assert set(columns) <= set(there)
        costs = slow_costs(logits[image], boxes[image], classes[image], targets[image])
        found = sum(costs[row][column] for row, column in zip(rows, columns, strict=True))
        if queries <= len(there):
            ways = ([costs[q][o] for q, o in enumerate(way)] for way in permutations(there, queries))
        else:
            ways = (
                [costs[q][o] for q, o in zip(way, there, strict=True)]
                for way in permutations(range(queries), len(there))
            )
        cheapest = min(sum(way) for way in ways)
        assert found == pytest.approx(cheapest, abs=1e-4)
        peer = linear_sum_assignment([[row[o] for o in there] for row in costs]) if there else ((), ())
        assert found == pytest.approx(sum(costs[q][there[o]] for q, o in zip(*peer, strict=True)), abs=1e-4)


def matched_example(seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    present = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    return (
        torch.randn(3, 5, CLASSES + 1, generator=random),
        torch.rand(3, 5, 4, generator=random),
        torch.randint(0, CLASSES, (3, 3), generator=random),
        centred(random_boxes((3, 3), random)),
        present,
    )


def test_the_loss_against_loops() -> None:
    logits, boxes, classes, targets, present = matched_example()
    matches = match(logits, boxes, classes, targets, present)
    outcome = set_loss(logits, boxes, classes, targets, matches, int(present.sum()))
    pairs = {
        (image, query): object_
        for image, query, object_ in zip(
            matches.images.tolist(), matches.queries.tolist(), matches.objects.tolist(), strict=True
        )
    }
    assert len(pairs) == 4
    total, weights, distance, apart = 0.0, 0.0, 0.0, 0.0
    for image in range(3):
        for query in range(5):
            log_chances = logits[image, query].log_softmax(0)
            object_ = pairs.get((image, query))
            weight = 0.1 if object_ is None else 1.0
            weights += weight
            total -= weight * float(log_chances[CLASSES if object_ is None else classes[image, object_]])
            if object_ is not None:
                box, target = boxes[image, query], targets[image, object_]
                distance += float((box - target).abs().sum()) / 4
                apart += (1 - slow_giou(corners(box).tolist(), corners(target).tolist())) / 4
    assert outcome.loss.item() == pytest.approx(total / weights + 5 * distance + 2 * apart, rel=1e-4)


def test_matching_and_losses_equal_those_of_transformers() -> None:
    """The Hungarian matcher and the DETR losses there; they were written by the authors of the paper."""
    peer = pytest.importorskip("transformers.loss.loss_for_object_detection")
    logits, boxes, classes, targets, present = matched_example(4)
    labels = [
        {"class_labels": classes[image][present[image]], "boxes": targets[image][present[image]]} for image in range(3)
    ]
    matcher = peer.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    theirs = matcher({"logits": logits, "pred_boxes": boxes}, labels)
    matches = match(logits, boxes, classes, targets, present)
    for image, (queries, objects) in enumerate(theirs):
        mine = matches.images == image
        assert matches.queries[mine].tolist() == queries.tolist()
        assert matches.objects[mine].tolist() == objects.tolist()
    criterion = peer.ImageLoss(matcher, CLASSES, eos_coef=0.1, losses=["labels", "boxes"])
    losses = criterion({"logits": logits, "pred_boxes": boxes}, labels)
    outcome = set_loss(logits, boxes, classes, targets, matches, int(present.sum()))
    assert outcome.scalars["class_loss"].item() == pytest.approx(losses["loss_ce"].item(), rel=1e-5)
    assert outcome.scalars["l1"].item() == pytest.approx(losses["loss_bbox"].item(), rel=1e-5)
    assert outcome.scalars["giou_loss"].item() == pytest.approx(losses["loss_giou"].item(), rel=1e-5)


def test_images_without_objects_still_teach_that_there_is_nothing() -> None:
    logits = torch.randn(2, 4, CLASSES + 1, requires_grad=True)
    boxes = torch.rand(2, 4, 4, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    matches = match(logits, boxes, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 4), none)
    outcome = set_loss(logits, boxes, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 4), matches, 0)
    assert isinstance(matches, Matches)
    assert len(matches.images) == 0
    assert outcome.loss.item() == pytest.approx(-logits.log_softmax(-1)[..., -1].mean().item(), rel=1e-5)
    outcome.loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_diverged_prediction_makes_the_loss_no_number_and_no_crash() -> None:
    logits, boxes, classes, targets, present = matched_example()
    boxes[0, 2] = torch.nan
    matches = match(logits, boxes, classes, targets, present)
    logits[0] = torch.nan
    assert set_loss(logits, boxes, classes, targets, matches, 4).loss.isnan()


def test_the_class_is_the_most_probable_and_not_the_first() -> None:
    regions = VisionInput(
        features=torch.zeros(1, 2, 3),
        present=torch.ones(1, 2, dtype=torch.bool),
        class_ids=torch.tensor([[[4, 7], [2, 5]]], dtype=torch.int32),
        class_values=torch.tensor([[[0.1, 0.6], [0.5, 0.5]]]),
    )
    assert detected_classes(regions).tolist() == [[7, 2]]
    assert detected_classes(regions, torch.tensor([[True, False]])).tolist() == [7]


def test_the_objective_learns_to_find_the_objects_of_one_batch() -> None:
    model, batch = grid_model({"detection": {}}, decoder=DECODER), scene_batch(1, size=3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    objective, losses = model.objective("detection"), []
    for _ in range(150):
        outcome = objective(Towers(model, batch), torch.Generator())
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.scalars["accuracy"] > 0.9


def test_detection_works_without_a_text() -> None:
    model, batch = grid_model({"detection": {}}, decoder=DECODER), replace(scene_batch(2), text=None)
    objective = model.objective("detection")
    assert objective.needs <= batch.parts
    assert torch.isfinite(objective(Towers(model, batch), torch.Generator()).loss)


def test_detection_says_when_nobody_knows_the_classes() -> None:
    with pytest.raises(PairmillError, match="detection predicts the detector's classes"):
        grid_model({"detection": {}}, decoder=DECODER, detector=FeatureShape(5, 0))
