"""One side of a training step's comparison, in a process of its own: our model or that of `transformers`, BERT-base.

`python -m tests.bench.training_sides SIDE --pairs 16`. It makes its model and one batch, and says how many parameters
it has; then it does one step for each line that it reads, and says how long that took and its peak memory so far.
A step is forward, backward, clipping of the gradients' norm and AdamW, both sides with torch's fused one, which is what
their own trainer takes by default; the losses, the dropout and the shapes are the same, all in float32.
Ours draws what it masks and mismatches anew in each step, and reads float16 features; theirs is given its labels.
"""

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.model_recipe import Checkpoints, ModelRecipe
from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.data.plan import Step
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.training import Feed, Training
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

MODELS = Path("recipes/models")
TOKENS, REGIONS, WIDTH = 20, 36, 2048
VOCABULARY, CLASSES, TOP = 30522, 1600, 10
FIRST_WORD = 1000
CLS, SEP = 2, 3
MASKED = 0.15
RATE, CLIP, DECAY = 1e-5, 1.0, 0.01
NEVER = Checkpoints(seconds=1e9)


def system(model: str, scale: str = "base", **over: Any) -> ModelRecipe:
    """A model of `recipes/models`, by default as it is published, without validations."""
    values: Mapping[str, Any] = tomllib.loads((MODELS / f"{model}.toml").read_text())
    return ModelRecipe.model_validate({**values, "scale": scale, "validations": 0, **over})


def resident_batch(pairs: int, tokens: int = TOKENS, regions: int = REGIONS) -> Batch:
    """Pairs without padding, features as the store has them."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD, VOCABULARY, (pairs, tokens), generator=random)
    words[:, 0], words[:, -1] = CLS, SEP
    corners = torch.rand((pairs, regions, 2, 2), generator=random).sort(2).values.flatten(2)
    values = torch.rand((pairs, regions, TOP), generator=random)
    vision = VisionInput(
        features=torch.randn((pairs, regions, WIDTH), generator=random).clamp(min=0).half(),
        present=torch.ones(pairs, regions, dtype=torch.bool),
        boxes=corners,
        class_ids=torch.randint(CLASSES, (pairs, regions, TOP), generator=random, dtype=torch.int32),
        class_values=0.9 * values / values.sum(-1, keepdim=True),
    )
    text = TextInput(words, torch.ones(pairs, tokens, dtype=torch.bool))
    return Batch(tuple(map(str, range(pairs))), text, vision, torch.eye(pairs, dtype=torch.bool))


class Resident:
    """A feed of these batches, again and again."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(
        self, first: int, stop: int, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Iterator[tuple[Step, Batch]]:
        for number in range(first, stop):
            place = number % len(self._batches)
            yield Step(number, 0, number // len(self._batches), np.arange(0)), self._batches[place]

    def once(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        yield from self._batches


def training(recipe: ModelRecipe, feed: Feed, seed: int = 0, checkpoint: Checkpoint | None = None) -> Training:
    """The loop itself; without `checkpoint` nothing is saved."""
    torch.manual_seed(seed)
    model = VisionLanguageModel(recipe, VOCABULARY, FeatureShape(WIDTH, CLASSES))
    nowhere = Checkpoint(Path(tempfile.gettempdir(), "no checkpoint"), "none")
    recipe = recipe.model_copy(update={"checkpoints": NEVER}) if checkpoint is None else recipe
    return Training(recipe, model, feed, None, checkpoint or nowhere)


def stepping(trained: Training) -> Callable[[], float]:
    """Its steps one by one, each returning its loss."""
    feed = trained.train.batches(0, trained.recipe.steps, 0, 1, False)
    numbers = iter(range(trained.recipe.steps))
    return lambda: trained._step(next(numbers), feed)["loss"]


def ours(model: str, pairs: int, **encoder: Any) -> tuple[int, Callable[[], float]]:
    """Parameters, and a step that returns its loss."""
    recipe = system(model)
    recipe = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=encoder)})
    trained = training(recipe, Resident([resident_batch(pairs)]))
    return _parameters(trained.model), stepping(trained)


def theirs(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[int, Callable[[], float]]:
    """Likewise, of a model that takes labels and returns its loss."""
    model.train()
    parameters = list(model.parameters())
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (DECAY, 0.0), strict=True)],
        lr=RATE,
        fused=True,
    )

    def step() -> float:
        loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return _parameters(model), step


def visualbert(pairs: int) -> tuple[int, Callable[[], float]]:
    from transformers import VisualBertConfig, VisualBertForPreTraining

    batch, random = resident_batch(pairs), torch.Generator().manual_seed(1)
    text, vision = batch.text, batch.vision
    assert text
    assert vision
    nothing = torch.full((pairs, REGIONS), -100)
    inputs = {
        "input_ids": text.tokens,
        "attention_mask": text.present.long(),
        "visual_embeds": vision.values(),
        "visual_attention_mask": vision.present.long(),
        "labels": torch.cat([_labels(text, random), nothing], 1),
        "sentence_image_labels": torch.randint(2, (pairs,), generator=random),
    }
    torch.manual_seed(0)
    return theirs(VisualBertForPreTraining(VisualBertConfig(visual_embedding_dim=WIDTH)), inputs)


def lxmert(pairs: int) -> tuple[int, Callable[[], float]]:
    from transformers import LxmertConfig, LxmertForPreTraining

    batch, random = resident_batch(pairs), torch.Generator().manual_seed(1)
    text, vision = batch.text, batch.vision
    assert text
    assert vision
    assert vision.class_ids is not None
    features = vision.values()
    hidden = (torch.rand(vision.present.shape, generator=random) < MASKED).float()
    inputs = {
        "input_ids": text.tokens,
        "attention_mask": text.present.float(),
        "visual_feats": features * (1 - hidden[..., None]),
        "visual_pos": vision.boxes,
        "visual_attention_mask": vision.present.float(),
        "labels": _labels(text, random),
        "matched_label": torch.randint(2, (pairs,), generator=random),
        "obj_labels": {"obj": (vision.class_ids[..., 0].long(), hidden), "feat": (features, hidden)},
    }
    torch.manual_seed(0)
    # Neither side answers questions or predicts attributes.
    return theirs(LxmertForPreTraining(LxmertConfig(task_qa=False, visual_attr_loss=False)), inputs)


SIDES: Mapping[str, Callable[[int], tuple[int, Callable[[], float]]]] = {
    "our visualbert": lambda pairs: ours("visualbert", pairs),
    "our lxmert": lambda pairs: ours("lxmert", pairs),
    "our visualbert, checkpointing": lambda pairs: ours("visualbert", pairs, checkpointing=True),
    "visualbert": visualbert,
    "lxmert": lxmert,
}


def _labels(text: TextInput, random: torch.Generator) -> torch.Tensor:
    """(B, T): the pieces that are to be predicted, -100 elsewhere."""
    chosen = (torch.rand(text.tokens.shape, generator=random) < MASKED) & (text.tokens >= FIRST_WORD)
    return text.tokens.masked_fill(~chosen, -100)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory() -> int:
    """Bytes that this process had at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--pairs", type=int, default=16)
    options = parser.parse_args()
    parameters, step = SIDES[options.side](options.pairs)
    print(parameters, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        print(time.perf_counter() - started, loss, peak_memory(), flush=True)


if __name__ == "__main__":
    main()
