"""Embeddings and CLIP scores against open_clip called by hand, a picture and a text at a time."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from made_dataset import Image, Inline, jpeg, made_dataset, run_filter, signal, uid_of, verdicts
from PIL import Image as Pillow
from tiny_clip import write_tiny_clip

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE
from pipeline.signals.pictures import decoded
from pipeline.store.dataset import Dataset

TEXTS = ["a cat", "a house by a river", "猫が窓から外を見る", "word " * 300, "a cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def picture(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    return jpeg(np.kron(draw.integers(0, 256, (3, 4, 3)), np.ones((13, 17, 1))).astype(np.uint8))


CONTENTS = {f"http://a/{seed}": picture(seed) for seed in range(9)} | {"http://a/odd": b"no picture"}
PAIRS = [(url, text) for url in CONTENTS for text in sorted(set(TEXTS))] + [("http://a/gone", "a cat")]


def made(folder: Path) -> Dataset:
    images = [Image(url, content) for url, content in CONTENTS.items()]
    return made_dataset(folder, PAIRS, [images[:6], images[6:], [Image("http://a/gone", status="timeout")]], PAIRS[:1])


def by_hand(clip: dict[str, Any]) -> tuple[Any, Any]:
    """Functions of a picture's content and of a text, to unit vectors."""
    open_clip.add_model_config(Path(clip["model"]))
    model, _, preprocess = open_clip.create_model_and_transforms("tiny", pretrained=clip["pretrained"])
    tokenizer = open_clip.get_tokenizer("tiny")
    model.eval()

    def unit(states: torch.Tensor) -> np.ndarray:
        vector = states[0].detach().double().numpy()
        return vector / np.linalg.norm(vector)

    def image(content: bytes) -> np.ndarray:
        return unit(model.encode_image(preprocess(Pillow.fromarray(decoded(content)))[None]))

    return image, lambda text: unit(model.encode_text(tokenizer([text])))


def test_scores_and_embeddings_are_open_clips(tmp_path: Path, clip: dict[str, Any]) -> None:
    dataset = made(tmp_path)
    run_filter(dataset, {"min_clip_score": 0.0}, clip=clip)
    image, text = by_hand(clip)
    expected = {
        uid_of(url, words): float(image(CONTENTS[url]) @ text(words))
        for url, words in PAIRS[1:]
        if url not in ("http://a/odd", "http://a/gone")
    }
    assert np.std(list(expected.values())) > 0.02  # the untrained model tells them apart
    found = {row["uid"]: row["clip_score"] for row in signal(dataset, "clip_score")}
    assert found == pytest.approx(expected, abs=1e-5)
    negative = {uid for uid, score in found.items() if score < 0}
    assert {uid_of(*pair) for pair in verdicts(dataset)} == negative
    assert 0 < len(negative) < len(found)
    embeddings = [row["embedding"] for row in signal(dataset, "embeddings")]
    for content, embedding in zip(CONTENTS.values(), embeddings, strict=True):
        if content == b"no picture":
            assert embedding is None
        else:
            np.testing.assert_allclose(embedding, image(content), atol=1e-5)


def test_another_threshold_or_order_measures_nothing_again(tmp_path: Path, clip: dict[str, Any]) -> None:
    dataset, engine = made(tmp_path), Inline()
    run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=clip)
    done = list(engine.done)
    assert run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=clip) == UP_TO_DATE
    assert run_filter(dataset, {"top_clip_fraction": 0.5, "min_side": 10}, engine, clip=clip) != UP_TO_DATE
    assert engine.done == done
    run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=clip | {"batch_size": 5})
    assert len(engine.done) == 2 * len(done)


def test_other_weights_are_measured_again_wherever_they_lie(tmp_path: Path, clip: dict[str, Any]) -> None:
    dataset, engine = made(tmp_path / "data"), Inline()
    run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=clip)
    done, before = list(engine.done), signal(dataset, "clip_score")
    moved = tmp_path / "moved.pt"
    moved.write_bytes(Path(clip["pretrained"]).read_bytes())
    run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=clip | {"pretrained": str(moved)})
    assert engine.done == done
    other = write_tiny_clip(tmp_path / "other", seed=1)
    run_filter(dataset, {"min_clip_score": 0.1}, engine, clip=other | {"model": clip["model"]})
    assert len(engine.done) == 2 * len(done)
    assert signal(dataset, "clip_score") != before


def test_two_runs_give_the_same_bytes(tmp_path: Path, clip: dict[str, Any]) -> None:
    for name in ("one", "other"):
        run_filter(made(tmp_path / name), {"min_clip_score": 0.1}, clip=clip)
    for table in ("embeddings", "clip_score"):
        for path in (tmp_path / "one" / "signals" / table).glob("*.parquet"):
            assert path.read_bytes() == (tmp_path / "other" / "signals" / table / path.name).read_bytes()


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil-was-here"),)


def test_weights_with_a_pickled_call_in_them_are_refused_and_it_is_not_made(
    tmp_path: Path, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("torch.pt", torch.save),
        ("plain.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        write({"state_dict": Evil()}, tmp_path / name)
        with pytest.raises(PairmillError, match=rf"cannot load .*{name}"):
            run_filter(made(tmp_path / "data"), {"min_clip_score": 0.1}, clip=clip | {"pretrained": name})
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pretrained": "nowhere.pt"}, "nowhere.pt"),
        ({"pretrained": "nosuchtag"}, "nosuchtag"),
        ({"model": "../model_configs/ViT-B-32"}, "ViT-B-32"),
        ({"model": "NoSuchModel"}, "NoSuchModel"),
        ({"model": "hf-hub:a/b"}, "hf-hub"),
        ({"model": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_a_model_that_is_not_there_is_said_so(
    tmp_path: Path, clip: dict[str, Any], change: dict[str, str], said: str
) -> None:
    with pytest.raises(PairmillError, match=said):
        run_filter(made(tmp_path), {"min_clip_score": 0.1}, clip=clip | change)


def test_weights_of_another_model_are_refused(tmp_path: Path, clip: dict[str, Any]) -> None:
    with pytest.raises(PairmillError, match="cannot load"):
        run_filter(made(tmp_path), {"min_clip_score": 0.1}, clip=clip | {"model": "ViT-B-32"})
