"""Choosing for a batch at once is choosing one box after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_regions import overlap

from pipeline.extractors.choosing import RIVALS, Chosen, choose
from pipeline.extractors.detector import Candidates

CLASSES = 3


def candidates_of(seed: int, images: int, anchors: int, side: int) -> Candidates:
    """Boxes with whole corners, some over the edge and some of no area; all scores differ."""
    random = np.random.default_rng(seed)
    low = random.integers(-2, side, (images, 2, anchors))
    boxes = np.concatenate([low, low + random.integers(0, side // 2 + 2, low.shape)], 1)
    logits = random.permutation(images * CLASSES * anchors).reshape(images, CLASSES, anchors) / (images * anchors) - 1.5
    return Candidates(torch.tensor(boxes).float(), torch.tensor(logits).float(), [])


def one_by_one(
    boxes: torch.Tensor, logits: torch.Tensor, extent: list[float], least: int, most: int, confidence: float, iou: float
) -> list[int]:
    """The anchors chosen, in order."""
    w, h = extent
    scores = logits.sigmoid().T.tolist()
    clipped = [
        (min(max(x1, 0), w), min(max(y1, 0), h), min(max(x2, 0), w), min(max(y2, 0), h))
        for x1, y1, x2, y2 in boxes.T.tolist()
    ]
    inside = [
        index
        for index, box in enumerate(clipped)
        if box[2] - box[0] >= min(1, w / 2) and box[3] - box[1] >= min(1, h / 2)
    ]
    ranked = sorted(inside, key=lambda index: -max(scores[index]))[: max(RIVALS, most)]
    standing: list[int] = []
    suppressed: list[int] = []
    for index in ranked:
        own = int(np.argmax(scores[index]))
        better = [other for other in standing if int(np.argmax(scores[other])) == own]
        covered = any(overlap(clipped[other], clipped[index]) > iou for other in better)
        (suppressed if covered else standing).append(index)
    passing = sum(max(scores[index]) >= confidence for index in standing)
    return (standing + suppressed)[: min(max(passing, least), most)]


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7, 40, 330]),
    st.sampled_from([4, 10, 30]),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),  # so that overlaps of whole corners equal them exactly
)
@settings(max_examples=80, deadline=None)
def test_a_batch_at_once_is_one_box_after_the_other(
    seed: int,
    images: int,
    anchors: int,
    side: int,
    least: int,
    more: int,
    confidence: float,
    iou: float,
) -> None:
    candidates = candidates_of(seed, images, anchors, side)
    random = np.random.default_rng(seed)
    extents = torch.tensor(random.integers(1, side + 1, (images, 2))).float()
    how = {"least": least, "most": least + more, "confidence": confidence, "iou": iou}
    found = choose(candidates, extents, **how)  # type: ignore[arg-type]
    for index in range(images):
        extent = extents[index].tolist()
        wanted = one_by_one(candidates.boxes[index], candidates.logits[index], extent, **how)  # type: ignore[arg-type]
        n = int(found.n[index])
        assert n == len(wanted)
        scores = candidates.logits[index].sigmoid().T[wanted]
        torch.testing.assert_close(found.scores[index, :n], scores)  # a sigmoid's last bit is the vector unit's
        assert torch.equal(found.confidences[index, :n], found.scores[index, :n].amax(1))
        assert torch.equal(found.classes[index, :n], scores.argmax(1))
        limits = torch.tensor([*extent, *extent])
        assert torch.equal(found.boxes[index, :n], candidates.boxes[index].T[wanted].clamp(min=0).minimum(limits))


def test_a_chain_of_rivals_is_settled_link_by_link() -> None:
    """Each box overlaps its neighbours alone: the second is suppressed, so the third stands, and so on to the end."""
    x = torch.arange(0, 400, 4.0)
    boxes = torch.stack([x, torch.zeros(100), x + 10, torch.full((100,), 10.0)])[None]
    logits = torch.linspace(3, 1, 100)[None, None]
    found = choose(
        Candidates(boxes, logits, []), torch.tensor([[500.0, 500]]), least=0, most=100, confidence=0.5, iou=0.4
    )
    assert found.n.tolist() == [50]
    assert torch.equal(found.boxes[0, :50, 0], x[::2])


def choose_simply(candidates: Candidates) -> Chosen:
    extents = torch.full((len(candidates.boxes), 2), 30.0)
    return choose(candidates, extents, least=0, most=9, confidence=0.3, iou=0.5)


@pytest.mark.parametrize("what", ["boxes", "logits", "one box", "one logit"])
def test_what_is_nan_is_chosen_and_changes_no_other_image(what: str) -> None:
    clean = choose_simply(candidates_of(0, 2, 40, 30))
    spoilt = candidates_of(0, 2, 40, 30)
    where = {
        "boxes": spoilt.boxes[0],
        "logits": spoilt.logits[0],
        "one box": spoilt.boxes[0, :, spoilt.logits[0].amax(0).argmax()],
        "one logit": spoilt.logits[0, 1, 3],
    }[what]
    where.fill_(torch.nan)
    found = choose_simply(spoilt)
    n = int(found.n[0])
    assert n > 0
    values = found.boxes if "box" in what else found.confidences
    assert values[0, :n].isnan().any()
    n = int(found.n[1])
    assert n == int(clean.n[1])
    assert torch.equal(found.boxes[1, :n], clean.boxes[1, :n])
    assert torch.equal(found.scores[1, :n], clean.scores[1, :n])


def test_nothing_in_the_picture_is_nothing_chosen() -> None:
    boxes = torch.tensor([[[50.0], [50.0], [60.0], [60.0]]])
    found = choose_simply(Candidates(boxes, torch.ones(1, CLASSES, 1), []))
    assert found.n.tolist() == [0]
    assert found.boxes.shape == (1, 0, 4)
