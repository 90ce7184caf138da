"""Every kind of detector gives its own boxes, scores and maps; what is none, or would run code, is refused."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_regions import raw_candidates
from small_detectors import ARCHITECTURES, BACKBONE, KINDS, architecture, checkpoint

from pipeline.errors import PairmillError
from pipeline.extractors.detector import Detector, architecture_of, import_ultralytics
from pipeline.recipe import Region
from pipeline.store.atomic import file_sha256
from pipeline.weights import UNTRAINED, Weights, download, find

SIZE = 96
CPU = torch.device("cpu")


def detector_of(path: Path, size: int = SIZE) -> Detector:
    return Detector(Weights(path, "0" * 64), "", size, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_and_maps_are_the_models_own(tmp_path: Path, kind: str) -> None:
    path = checkpoint(tmp_path, kind)
    from ultralytics.nn.tasks import load_checkpoint

    plain, _ = load_checkpoint(str(path))
    detector = detector_of(path)
    random = np.random.default_rng(0)
    squares = [random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(3)]
    batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    found = detector(batch)
    near = 0.02 if kind == "rt-detr" else 2e-3  # its decoder reads maps at places that it computes, layer upon layer
    for index, square in enumerate(squares):
        boxes, logits, maps = raw_candidates(plain, square)
        np.testing.assert_allclose(found.boxes[index].T, np.array(boxes), atol=near)
        np.testing.assert_allclose(found.logits[index].T, logits, atol=near)
        for level, wanted in zip(found.neck, maps, strict=True):
            np.testing.assert_allclose(level[index], wanted, atol=2e-3)
    assert detector.classes == [f"thing {index}" for index in range(7)]
    assert detector.levels == [(16, 12, 12), (24, 6, 6), (32, 3, 3)]
    assert detector.trained
    assert detector.stretches == (kind == "rt-detr")


def test_masks_are_not_computed(tmp_path: Path) -> None:
    detector = detector_of(checkpoint(tmp_path, "segmentation"))
    ran = []
    head = detector.model.model[-1]
    for name, module in head.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    detector(torch.zeros(1, 3, SIZE, SIZE))
    assert {name.split(".")[0] for name in ran if name} == {"cv2", "cv3", "dfl"}


@pytest.mark.parametrize("name", ["yolo", "rt-detr"])
def test_an_architecture_of_the_users_own_is_untrained_and_the_same_every_time(tmp_path: Path, name: str) -> None:
    path = architecture(tmp_path, name)
    section = Region(kind="region", weights=(str(path),), image_size=SIZE)
    weights = find(section)
    assert weights == Weights(path, UNTRAINED, None, architecture_sha256=file_sha256(path))
    pixels = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, second = (Detector(weights, architecture_of(section.weights), SIZE, CPU) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not first.trained
    assert first.name == path.name
    for one, other in zip(first(pixels).neck, second(pixels).neck, strict=True):
        assert torch.equal(one, other)
        assert one.std() > 0.1  # settled: what it sees reaches the neck
    path.write_text(path.read_text() + "\n# changed")
    assert find(section).digests != weights.digests


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolov8n-seg.yaml", "yolo26n.yaml", "yolov10n.yaml", "rtdetr-l.yaml"])
def test_ultralytics_own_architectures_are_built(name: str) -> None:
    detector = Detector(Weights(None, UNTRAINED), name, 64, CPU)
    assert [level[2] for level in detector.levels] == [8, 4, 2]
    assert len(detector.classes) == 80
    found = detector(torch.rand(1, 3, 64, 64))
    assert found.boxes.shape[2] == found.logits.shape[2] == 84
    assert found.boxes.isfinite().all()
    assert found.logits.isfinite().all()


def test_names_and_paths_lead_to_ultralytics_own_architecture() -> None:
    assert architecture_of(["some/folder/yolo11n.pt", "else.pt"]) == "yolo11n.yaml"
    assert architecture_of(["rtdetr-l.yaml"]) == "rtdetr-l.yaml"


def test_an_architecture_is_not_asked_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_ultralytics()
    asked: list[str] = []
    monkeypatch.setenv("PAIRMILL_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("pipeline.weights._online", lambda: True)
    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", lambda path, **_: asked.append(path.name))
    download(Region(kind="region", weights=("rtdetr-l.yaml", "sub/own.pt", "yolo11n.pt")))
    assert asked == ["yolo11n.pt"]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def in_a_file(bomb: Any, path: Path) -> None:
    torch.save(bomb, path)


def in_the_old_format(bomb: Any, path: Path) -> None:
    torch.save({"model": bomb}, path, _use_new_zipfile_serialization=False)


def in_a_bare_pickle(bomb: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=2))


def in_a_whole_detector(bomb: Any, path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model: Any = DetectionModel(str(architecture(path.parent, "yolo")), verbose=False)
    model.names = bomb
    torch.save({"model": model, "train_args": {}}, path)


HIDING = [in_a_file, in_the_old_format, in_a_bare_pickle, in_a_whole_detector]


@pytest.mark.parametrize("hide", HIDING)
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, hide: Callable[[Any, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_ultralytics()
    from ultralytics.nn import tasks

    path = tmp_path / "bomb.pt"
    hide(Bomb(tmp_path / "ran"), path)
    torch.load(path, weights_only=False) if hide is not in_a_bare_pickle else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()  # it does go off, where it is let
    (tmp_path / "ran").unlink()
    monkeypatch.setattr(tasks, "SAFE_LOAD", False)  # as where something imported ultralytics before us
    with pytest.raises(PairmillError, match=r"bomb\.pt"):
        detector_of(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        BACKBONE.format(
            top="activation: __import__('os').system('touch {mark}')", head="  - [[2, 3, 4], 1, Detect, [nc]]"
        ),
        BACKBONE.format(top="", head="  - [-1, 1, os.system, ['touch {mark}']]"),
        BACKBONE.format(top="", head="  - [-1, 1, subprocess, ['touch {mark}']]"),
        BACKBONE.format(top="", head="  - [-1, 1, nn.init.eye_, []]"),
        "backbone: 7",
        "just words",
        "",
        "\x00",
    ],
)
def test_an_architecture_that_would_run_code_or_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("{mark}", str(tmp_path / "ran")))
    with pytest.raises(PairmillError, match=r"own\.yaml"):
        Detector(Weights(path, UNTRAINED), path.name, SIZE, CPU)
    assert not (tmp_path / "ran").exists()


def other_things(folder: Path) -> dict[str, bytes]:
    import_ultralytics()
    saved = {}
    for name, what in {
        "a state dict": {"weight": torch.zeros(3)},
        "a layer": {"model": torch.nn.Linear(2, 2)},
        "no dictionary": torch.nn.Linear(2, 2),
        "a list": [1, 2],
    }.items():
        file = io.BytesIO()
        torch.save(what, file)
        saved[name] = file.getvalue()
    whole = checkpoint(folder, "yolo").read_bytes()
    return saved | {"nothing": b"", "rubbish": b"rubbish" * 99, "half a file": whole[: len(whole) // 2]}


def test_files_that_are_no_detectors_are_refused_by_name(tmp_path: Path) -> None:
    for name, content in other_things(tmp_path).items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(PairmillError, match=name):
            detector_of(path)


@pytest.mark.parametrize("head", ["Classify, [nc]]", "OBB, [nc, 1]]"])
def test_models_that_give_no_upright_boxes_are_refused(tmp_path: Path, head: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(BACKBONE.format(top="", head=f"  - [{'-1' if 'Classify' in head else '[2, 3, 4]'}, 1, {head}"))
    with pytest.raises(PairmillError, match=r"other\.yaml is no detector"):
        Detector(Weights(path, UNTRAINED), path.name, SIZE, CPU)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    text = ARCHITECTURES["yolo"].replace(
        "  - [[2, 3, 4]",
        "  - [-1, 1, nn.Upsample, [None, 2, nearest]]\n  - [[-1, 3], 1, Concat, [1]]\n  - [[2, 6, 4]",
    )
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert Detector(Weights(path, UNTRAINED), "", 64, CPU).levels[1] == (56, 4, 4)
    with pytest.raises(PairmillError, match=r"own\.yaml does not run at 80 pixels"):
        Detector(Weights(path, UNTRAINED), "", 80, CPU)


def test_there_is_no_such_architecture() -> None:
    with pytest.raises(PairmillError, match=r"absent\.yaml"):
        Detector(Weights(None, UNTRAINED), architecture_of(["sub/absent.pt"]), SIZE, CPU)
