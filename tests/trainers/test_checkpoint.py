"""Checkpoints and files of tensors that were damaged, are another's, or hold one tensor twice."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_feed import made_recipe, made_training, rarely
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.model_recipe import EarlyStop
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.metrics import Metrics
from trainers.loop.stopping import EarlyStopping
from trainers.loop.tensor_file import SHARED, read_tensors, write_tensors

RECIPE = made_recipe(
    steps=9,
    validations=9,
    ema=0.5,
    objectives={"mrfr": {}},
    early_stop={"patience": 8},
    checkpoints={"seconds": 0, "keep": 3},
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training after 6 steps; read-only."""
    torch.set_num_threads(1)  # before the fixture of every test does: sums are to be in one order
    folder = tmp_path_factory.mktemp("stopped") / "checkpoint"
    made_training(RECIPE, folder).run(6)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "checkpoint"))


def test_so_many_are_kept_and_their_best_weights(folder: Path) -> None:
    assert Checkpoint(folder, "key").steps() == [4, 5, 6]
    names = {path.name for path in (folder / "key").iterdir()}
    referred = {json.loads((folder / "key" / f"{step}.json").read_text())["stopping"]["step"] for step in (4, 5, 6)}
    pairs = [
        f"{stem}{end}" for stem in (4, 5, 6, *(f"best-{b}" for b in referred)) for end in (".json", ".safetensors")
    ]
    assert names == {"metrics.jsonl", *pairs}


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (["6.safetensors"], 5),
        (["6.json"], 5),
        (["6.json", "5.safetensors"], 4),
        (["6.safetensors", "5.json", "4.safetensors"], 0),
    ],
)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "garbage"])
def test_what_is_damaged_is_passed_over(folder: Path, damage: list[str], left: int, how: str) -> None:
    for name in damage:
        path = folder / "key" / name
        content = bytearray(path.read_bytes())
        if how == "gone":
            path.unlink()
        else:
            content[len(content) // 2] ^= 4
            path.write_bytes({"flipped": content, "cut": content[:-9], "garbage": b"[1]"}[how])
    again = made_training(RECIPE, folder)
    assert again.checkpoint.restore(again.state) == left
    assert {step for step, *_ in again.metrics.rows} == set(range(left))


def test_after_damage_the_training_is_the_same(folder: Path, tmp_path: Path) -> None:
    with open(folder / "key" / "6.safetensors", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x01\x02")
    again, whole = made_training(RECIPE, folder), made_training(rarely(RECIPE), tmp_path / "whole")
    assert again.run().rows == whole.run().rows
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_without_its_best_weights_a_checkpoint_is_none(folder: Path) -> None:
    for path in (folder / "key").glob("best-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    again = made_training(RECIPE, folder)
    assert again.checkpoint.restore(again.state) == 0


def test_a_checkpoint_of_another_key_counts_as_none_and_goes(folder: Path) -> None:
    other = made_training(RECIPE, folder)
    other.checkpoint = Checkpoint(folder, "other")
    assert other.checkpoint.restore(other.state) == 0
    assert (folder / "key").exists()
    other.checkpoint.save(other.state, 1)
    assert not (folder / "key").exists()
    assert Checkpoint(folder, "other").steps() == [1]


def test_curves_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    metrics, path = Metrics(), tmp_path / "metrics.jsonl"
    for step in range(5):
        metrics.add(step, {"loss": step})
        metrics.append_new(path)
    with open(path, "a") as file:
        file.write('[5, "lo')
    again = Metrics()
    again.restore(path, 3)
    assert again.rows == [(0, "loss", 0.0), (1, "loss", 1.0), (2, "loss", 2.0)]
    again.add(3, {"loss": 7})
    again.append_new(path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*map(list, again.rows)]


@given(owners=st.lists(st.sampled_from("abcde"), min_size=1, max_size=12))
def test_tensors_under_several_names(owners: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names that share a tensor, views of others, and empty ones come back as they were; each is kept once."""
    made = {owner: torch.randn(3, 4) for owner in set(owners)}
    tensors = {f"n{i}": made[owner] for i, owner in enumerate(owners)}
    tensors |= {"turned": made[owners[0]].t(), "row": made[owners[0]][1].clone(), "empty": torch.zeros(0, 2)}
    tensors |= {"scalar": torch.tensor(3.5), "other empty": torch.zeros(0)}
    path = tmp_path_factory.getbasetemp() / "tensors.safetensors"
    write_tensors(path, tensors)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert path.stat().st_size < 48 * (len(made) + 1) + 100 * (len(tensors) + 2)


@pytest.mark.parametrize("shared", ["[", "[]", '{"a": 3}', '{"a": "nothing"}', "3"])
def test_a_hostile_list_of_shared_names(tmp_path: Path, shared: str) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", {SHARED: shared})
    with pytest.raises(ValueError, match=r"."):
        read_tensors(tmp_path / "x.safetensors")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(SafetensorError):
        read_tensors(tmp_path / "x.safetensors")


values = st.one_of(st.floats(-9, 9), st.just(float("nan")), st.sampled_from([1.0, 2.0]))


@given(st.lists(values, max_size=30), st.integers(1, 5), st.sampled_from(["lowest", "highest"]))
def test_early_stopping_beside_a_search_through_all(found: list[float], patience: int, best: str) -> None:
    stopping = EarlyStopping(EarlyStop.model_validate({"patience": patience, "metric": "x", "best": best}))
    for step, value in enumerate(found):
        copy = EarlyStopping(stopping.settings)
        copy.load_state(json.loads(json.dumps(stopping.state())))
        stopping = copy
        stopping.judge(step, {"validation/x": value})
        seen = [(v if best == "highest" else -v, -s) for s, v in enumerate(found[: step + 1]) if v == v]
        place = -max(seen)[1] if seen else None
        assert stopping.step == place
        assert stopping.waited == step - (place if place is not None else -1)
        assert stopping.over == (stopping.waited >= patience)
