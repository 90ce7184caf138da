"""The loop on made-up batches: steps as written down by hand, resumes that change nothing, averages, early stops."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_feed import ALL, MadeFeed, made_recipe, made_training, rarely
from synthetic import CROSS, OWN, model_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import PairmillError
from trainers.data.batch import Batch
from trainers.data.plan import Step
from trainers.loop.losses import Draws
from trainers.loop.optimizer import learning_rate, make_optimizer, set_learning_rate
from trainers.loop.training import Training

Rows = list[tuple[int, str, float]]


def assert_same(one: Training, other: Training) -> None:
    assert one.metrics.rows == other.metrics.rows
    for (name, tensor), same in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name


@pytest.mark.parametrize(
    "over",
    [
        {"mixing": "draw"},
        {"mixing": "sum", "batch": {"size": 8, "accumulate": 2}},
        {"mixing": "joint", "ema": 0.9},
        {
            "blocks": [{"attention": [OWN], "weights": "separate"}, {"attention": [OWN, CROSS], "weights": "separate"}],
            "objectives": {"itc": {"width": 8, "at": "towers", "momentum": {"queue": 24}}, "itm": {"hard": True}},
            "ema": 0.9,
        },
        {"mixing": "draw", "batch": {"size": 8, "accumulate": 2}, "ema": 0.8, "validations": 4}
        | {"early_stop": {"patience": 20}},
    ],
    ids=["draw", "sum-accumulate", "joint-ema", "momentum", "everything"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, over: dict[str, Any]) -> None:
    """Cut off at step 3, in the middle of an epoch, and again at 8, with 20 more to go."""
    recipe = made_recipe(**over)
    whole = made_training(rarely(recipe), tmp_path / "whole")
    whole.run()
    for stop in (3, 8, None):
        resumed = made_training(recipe if stop else rarely(recipe), tmp_path / "parts")
        resumed.run(stop)
    assert_same(resumed, whole)
    assert len({step for step, name, _ in whole.metrics.rows if name == "loss"}) == 28


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 while it writes a checkpoint a step; then it carries on as if nothing had been."""
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import torch; torch.set_num_threads(1)\n"
        "from made_feed import made_recipe, made_training\n"
        "recipe = made_recipe(ema=0.9, steps=3000, early_stop={'patience': 9})\n"
        "made_training(recipe, pathlib.Path(sys.argv[1])).run()"
    )
    folder = tmp_path / "killed"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(Path(__file__).parent), str(root)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (reached := _newest(folder)) or reached < 4:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.003)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    recipe = made_recipe(ema=0.9, steps=3000, early_stop={"patience": 9})
    stop = _newest(folder) + 20
    resumed = made_training(rarely(recipe), folder)
    first = resumed._restore()
    assert 4 <= first < stop
    resumed.run(stop)
    whole = made_training(rarely(recipe), tmp_path / "whole")
    whole.run(stop)
    assert_same(resumed, whole)


def _newest(folder: Path) -> int:
    return max((int(path.stem) for path in folder.glob("key/*.json") if path.stem.isdecimal()), default=0)


def test_a_step_as_written_down(tmp_path: Path) -> None:
    """Two accumulated batches: mean gradient, clipping, the rate, AdamW with decoupled decay, all by hand."""
    recipe = made_recipe(
        steps=3,
        validations=0,
        objectives={"mrc_kl": {"weight": 2}, "mrfr": {"weight": 0.5}},
        batch={"size": 8, "accumulate": 2},
        optimizer={
            "learning_rate": 1e-2,
            "betas": [0.8, 0.9],
            "weight_decay": 0.3,
            "epsilon": 1e-3,  # the keys' biases have a gradient of nothing but rounding
            "clip": 0.5,
            "warmup": 2,
            "heads": 5,
        },
    )
    run, hand = made_training(recipe, tmp_path / "run"), made_training(recipe, tmp_path / "hand")
    run.run()
    feed, settings = MadeFeed(), recipe.optimizer
    heads = {id(parameter) for parameter in hand.model.objectives.parameters()}
    first = {p: torch.zeros_like(p) for p in hand.learnt}
    second = {p: torch.zeros_like(p) for p in hand.learnt}
    losses = []
    for number in range(3):
        hand.model.train()
        gradients: dict[Any, torch.Tensor] = {p: torch.zeros_like(p) for p in hand.learnt}
        total = 0.0
        for planned, batch in feed.batches(2 * number, 2 * number + 2):
            draws = Draws(recipe.seed, "train", planned.number)
            torch.manual_seed(draws.seed_of("dropout"))
            found = hand.losses(batch, ["mrc_kl", "mrfr"], draws)
            loss = 2 * found["loss/mrc_kl"] + 0.5 * found["loss/mrfr"]
            total += loss.item() / 2
            for p, g in zip(hand.learnt, torch.autograd.grad(loss, hand.learnt, allow_unused=True), strict=True):
                if g is not None:
                    gradients[p] += g / 2
        losses.append(total)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
        rate = 1e-2 * ((number + 1) / 2 if number < 2 else 1.0)
        with torch.no_grad():
            for p, g in gradients.items():
                g *= min(1.0, 0.5 / (norm + 1e-6))
                first[p] = 0.8 * first[p] + 0.2 * g
                second[p] = 0.9 * second[p] + 0.1 * g**2
                mean, square = first[p] / (1 - 0.8 ** (number + 1)), second[p] / (1 - 0.9 ** (number + 1))
                own = rate * (5 if id(p) in heads else 1)
                if p.ndim > 1:
                    p *= 1 - own * 0.3
                p -= own * mean / (square.sqrt() + settings.epsilon)
    assert [value for _, name, value in run.metrics.rows if name == "loss"] == pytest.approx(losses, rel=1e-4)
    touched = 0
    for (name, one), other in zip(run.model.named_parameters(), hand.model.parameters(), strict=True):
        if float(first[other].abs().max()) > 0:
            touched += 1
            assert torch.allclose(one, other, atol=2e-5), name
    assert touched > 20


def test_the_average_is_what_is_validated_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the recursion, on copies of the weights after each step."""
    recipe = made_recipe(steps=12, ema=0.5, validations=3)
    run = made_training(recipe, tmp_path)
    slow = {name: p.detach().clone().double() for name, p in run.model.named_parameters()}
    validated: list[dict[str, torch.Tensor]] = []
    step = run._step

    def watched(number: int, feed: Iterator[tuple[Step, Batch]]) -> dict[str, float]:
        values = step(number, feed)
        kept = min(0.5, (1 + number) / (10 + number))
        for name, p in run.model.named_parameters():
            slow[name] = kept * slow[name] + (1 - kept) * p.detach().double()
        return values

    validate = run.validate

    def seen() -> dict[str, float]:
        validated.append({name: p.detach().clone() for name, p in run.model.named_parameters()})
        for name, p in run.model.named_parameters():
            assert torch.allclose(p.double(), slow[name], atol=1e-6), name
        return validate()

    monkeypatch.setattr(run, "_step", watched)
    monkeypatch.setattr(run, "validate", seen)
    run.run()
    assert len(validated) == 3
    for name, p in run.model.named_parameters():
        assert torch.equal(p, validated[-1][name])


def test_an_early_stop_ends_with_the_best_weights(tmp_path: Path) -> None:
    """The best is the highest loss here, an early one: the run ends `patience` validations later, cut off or not."""
    stop = {"patience": 3, "metric": "loss/mrfr", "best": "highest"}
    recipe = made_recipe(
        steps=60, validations=30, early_stop=stop, ema=0.5, optimizer={"learning_rate": 1e-2}, objectives={"mrfr": {}}
    )
    whole = made_training(rarely(recipe), tmp_path / "whole")
    losses = {step: value for step, name, value in whole.run().rows if name == "validation/loss/mrfr"}
    best = max(losses, key=losses.__getitem__)
    assert max(losses) == best + 2 * 3
    assert max(step for step, *_ in whole.metrics.rows) < 59
    assert whole.validate()["validation/loss/mrfr"] == losses[best]
    for cut in (best + 2, best + 4, None):
        resumed = made_training(recipe, tmp_path / "parts")
        resumed.run(cut)
    assert_same(resumed, whole)
    again = made_training(recipe, tmp_path / "parts")
    again.run()
    assert_same(again, whole)


def test_the_ranking_can_stop_a_training(tmp_path: Path) -> None:
    shares = iter([0.1, 0.4, 0.3, 0.2, 0.9])
    recipe = made_recipe(steps=10, validations=10, early_stop={"patience": 2, "metric": "t2i_r10", "best": "highest"})
    run = made_training(recipe, tmp_path, ranking=lambda: {"t2i_r10": next(shares)})
    run.run()
    assert [value for _, name, value in run.metrics.rows if name == "validation/t2i_r10"] == [0.1, 0.4, 0.3, 0.2]


def test_an_early_stop_by_what_nobody_measures(tmp_path: Path) -> None:
    for unknown in ("loss/itc", "t2i_r10", "nonsense"):
        with pytest.raises(PairmillError, match="name one of loss, loss/"):
            made_training(made_recipe(validations=28, early_stop={"patience": 2, "metric": unknown}), tmp_path)
    # What scalars an objective has shows when it is first validated.
    run = made_training(made_recipe(validations=28, early_stop={"patience": 2, "metric": "nonsense/mlm"}), tmp_path)
    with pytest.raises(PairmillError, match="the validation has loss, loss/"):
        run.run()


def test_a_loss_that_is_not_finite_stops_and_leaves_the_uids(tmp_path: Path) -> None:
    broken = made_training(made_recipe(batch={"size": 8, "accumulate": 2}), tmp_path / "checkpoint")
    with torch.no_grad():
        broken.model.vision.project.weight[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in broken.model.state_dict().items()}
    with pytest.raises(PairmillError, match="not finite at step 0"):
        broken.run()
    assert len(json.loads((tmp_path / "failed-batch.json").read_text())["uids"]) == 16
    for name, tensor in broken.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


def test_tensorboard_has_every_scalar_once(tmp_path: Path) -> None:
    recipe = made_recipe(steps=9, validations=3)
    made_training(recipe, tmp_path / "checkpoint", board=tmp_path / "board").run(6)
    os.remove(next((tmp_path / "checkpoint" / "key").glob("6.json")))  # the newest is lost: carries on at 5
    time.sleep(1)  # TensorBoard reads its files by name: the second in which a file was begun, then a counter as text
    resumed = made_training(recipe, tmp_path / "checkpoint", board=tmp_path / "board")
    resumed.run()
    board = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0})
    board.Reload()
    shown = {(event.step, name): event.value for name in board.Tags()["scalars"] for event in board.Scalars(name)}
    assert sum(len(board.Scalars(name)) for name in board.Tags()["scalars"]) == len(shown)
    for step, name, value in resumed.metrics.rows:
        assert shown[step, name] == pytest.approx(value, rel=1e-6), (step, name)
    assert {name for _, name, _ in resumed.speed.curve.rows} <= set(board.Tags()["scalars"])
    assert {step for step, name in shown if name == "padding"} == set(range(9))


class SlowFeed(MadeFeed):
    def batches(self, *arguments: Any, **more: Any) -> Iterator[tuple[Step, Batch]]:
        for made in super().batches(*arguments, **more):
            time.sleep(0.15)
            yield made


def test_waiting_and_padding_are_measured(tmp_path: Path) -> None:
    """Against a feed that takes 0.15 s a batch, two batches a step."""
    recipe = made_recipe(steps=4, validations=0, batch={"size": 8, "accumulate": 2}, checkpoints={"seconds": 1e9})
    run = made_training(recipe, tmp_path, SlowFeed())
    run.run()
    curve = {(step, name): value for step, name, value in run.speed.curve.rows}
    assert run.speed.waited >= 4 * 0.3
    assert run.speed.summary["loader_wait"] == pytest.approx(
        run.speed.waited / (run.speed.waited + run.speed.worked), abs=1e-3
    )
    for step in range(4):
        batches = [batch for _, batch in MadeFeed().batches(2 * step, 2 * step + 2)]
        inputs = [part for batch in batches for part in (batch.text, batch.vision) if part]
        there, places = sum(int(p.present.sum()) for p in inputs), sum(p.present.numel() for p in inputs)
        assert curve[step, "padding"] == pytest.approx(1 - there / places)
        assert curve[step, "tokens/s"] / curve[step, "samples/s"] == pytest.approx(there / 16)
        assert 0 < curve[step, "loader_wait"] < 1
        assert curve[step, "samples/s"] < 16 / 0.3


@given(
    st.integers(0, 20), st.integers(1, 60), st.sampled_from(["linear", "cosine"]), st.floats(0, 0.9), st.floats(1e-6, 1)
)
def test_the_rate_warms_up_and_decays(warmup: int, more: int, decay: str, last: float, top: float) -> None:
    steps = warmup + more
    settings = model_recipe(optimizer={"learning_rate": top, "warmup": warmup, "decay": decay, "last": last}).optimizer
    rates = [learning_rate(settings, step, steps) for step in range(steps + 1)]
    for step, rate in enumerate(rates):
        gone = (step - warmup) / more
        share = (
            (step + 1) / warmup
            if step < warmup
            else last
            + (1 - last)
            * {
                "linear": 1 - gone,
                "cosine": 0.5 + 0.5 * math.cos(gone * math.pi),
            }[decay]
        )
        assert rate == pytest.approx(top * share)
    assert rates[warmup] == pytest.approx(top)
    assert rates[-1] == pytest.approx(top * last, abs=1e-12)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_groups_of_the_optimizer(tmp_path: Path) -> None:
    """No decay on biases and norms; blocks and heads at their own rates; what is not learnt is in none."""
    fused = [{"repeat": 1, "attention": [["text-text"]], "weights": "separate"}] * 2
    fused[1] = {**fused[1], "learning_rate_scale": 3.0}
    recipe = made_recipe(optimizer={"learning_rate": 0.5, "heads": 5.0})
    recipe = recipe.model_copy(update={"encoder": model_recipe(blocks=fused).encoder})
    run = made_training(recipe, tmp_path)
    frozen = run.model.text.position.weight.requires_grad_(False)
    optimizer = make_optimizer(run.model, recipe)
    set_learning_rate(optimizer, 0.5)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
    assert id(frozen) not in rate_of
    assert len(rate_of) == len(list(run.model.parameters())) - 1
    for name, parameter in run.model.named_parameters():
        scale = 5 if name.startswith("objectives.") else 3 if name.startswith("encoder.blocks.1.") else 1
        assert parameter is frozen or rate_of[id(parameter)] == 0.5 * scale, name


def test_a_machine_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(PairmillError, match=r"C\+\+ compiler"):
        made_training(made_recipe(compile=True), tmp_path)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    recipe = made_recipe(steps=4, objectives=ALL)
    plain = made_training(recipe, tmp_path / "plain").run()
    compiled = made_training(recipe.model_copy(update={"compile": True}), tmp_path / "compiled").run()
    assert [row[:2] for row in compiled.rows] == [row[:2] for row in plain.rows]
    assert [row[2] for row in compiled.rows] == pytest.approx([row[2] for row in plain.rows], rel=1e-3)
