"""What the benchmarks of training stand on: equal work on both sides, and that unequal work is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LxmertConfig, LxmertForPreTraining, VisualBertConfig, VisualBertForPreTraining

from tests.bench import training_resume
from tests.bench.training_loading import LONGEST, MEAN, SHORTEST, made_texts, random_batches
from tests.bench.training_resume import AFTER, BEFORE, apart
from tests.bench.training_sides import CLASSES, CLS, SEP, VOCABULARY, WIDTH, Resident, resident_batch, system
from tests.bench.training_steps import PARAMETERS_ALIKE, Side, _agree, _check_losses
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel


def _visualbert() -> Any:
    return VisualBertForPreTraining(VisualBertConfig(visual_embedding_dim=WIDTH))


def _lxmert() -> Any:
    return LxmertForPreTraining(LxmertConfig(task_qa=False, visual_attr_loss=False))


@pytest.mark.parametrize(("name", "peer"), [("visualbert", _visualbert), ("lxmert", _lxmert)])
def test_both_sides_are_models_of_one_size_with_one_dropout(name: str, peer: Callable[[], Any]) -> None:
    recipe = system(name)
    with torch.device("meta"):
        ours, theirs = VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, CLASSES)), peer()
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert abs(counts[0] / counts[1] - 1) < PARAMETERS_ALIKE
    said, encoder = theirs.config, recipe.encoder
    assert (encoder.hidden, encoder.heads, encoder.feedforward) == (
        said.hidden_size,
        said.num_attention_heads,
        said.intermediate_size,
    )
    assert encoder.dropout == said.hidden_dropout_prob == said.attention_probs_dropout_prob
    assert encoder.attention_dropout is None
    assert said.vocab_size == VOCABULARY


def test_a_resident_batch_has_no_padding() -> None:
    batch = resident_batch(3, tokens=6, regions=4)
    assert batch.text
    assert batch.vision
    assert batch.text.present.all()
    assert batch.vision.present.all()
    assert batch.text.tokens.shape == (3, 6)
    assert (batch.text.tokens[:, 0] == CLS).all()
    assert (batch.text.tokens[:, -1] == SEP).all()
    assert batch.vision.features.shape == (3, 4, WIDTH)
    assert batch.vision.features.dtype == torch.float16
    assert batch.vision.boxes is not None
    assert (batch.vision.boxes[..., :2] <= batch.vision.boxes[..., 2:]).all()


def test_a_resident_feed_gives_its_batches_by_turns() -> None:
    batches = [resident_batch(1, tokens=4, regions=2), resident_batch(2, tokens=4, regions=2)]
    given = [(step.number, len(batch)) for step, batch in Resident(batches).batches(3, 6)]
    assert given == [(3, 2), (4, 1), (5, 2)]


def test_sides_of_other_sizes_and_other_losses_are_no_comparison() -> None:
    one, other = Side("one"), Side("other")
    one.parameters, other.parameters = 100, 101
    _agree(one, other)
    other.parameters = 110
    with pytest.raises(AssertionError, match="parameters"):
        _agree(one, other)
    one.losses, other.losses = [5.0, 4.0], [5.001, 4.0]
    _check_losses(one, other)
    other.losses = [5.1, 4.0]
    with pytest.raises(AssertionError, match="differ"):
        _check_losses(one, other)


def test_the_first_steps_warm_up() -> None:
    side = Side("one")
    side.seconds = [100.0, 50.0, 3.0, 1.0, 2.0]
    assert side.median == 2


def test_made_texts_have_the_lengths_that_they_are_said_to_have() -> None:
    texts = made_texts(4000)
    assert texts.lengths.min() == SHORTEST
    assert texts.lengths.max() == LONGEST
    assert abs(texts.lengths.mean() - MEAN) < 1
    assert all(text[0] == CLS and text[-1] == SEP for text in texts)


def test_random_batches_hold_every_pair_once() -> None:
    batches = random_batches(103, 10)
    assert max(map(len, batches)) <= 10
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))


def test_a_resumed_run_that_differs_or_lacks_a_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = BEFORE + AFTER

    def processes(later: dict[int, float]) -> Callable[..., dict[int, float]]:
        def losses(name: str, images: int, folder: Path, stop: int, seed: int) -> dict[int, float]:
            return later if seed else {step: 5.0 for step in range(stop)}

        return losses

    same = {step: 5.0 for step in range(steps)}
    monkeypatch.setattr(training_resume, "_in_its_own_process", processes(same))
    assert apart("visualbert", 1).met
    monkeypatch.setattr(training_resume, "_in_its_own_process", processes(same | {steps - 1: 5.0001}))
    assert not apart("visualbert", 1).met
    monkeypatch.setattr(training_resume, "_in_its_own_process", processes({0: 5.0}))
    with pytest.raises(AssertionError, match="losses"):
        apart("visualbert", 1)
