"""Train a YOLO11n from scratch on compositions of clip art, by ultralytics' own trainer and validator, offline."""

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from tqdm import tqdm

from pipeline.demo import openclipart
from pipeline.demo.detector.composing import Composition, Cutout, backdrop, by_label, compose, read_cutouts
from pipeline.errors import PairmillError
from pipeline.extractors.detector import import_ultralytics
from pipeline.store.atomic import file_sha256, replacing

LICENCE = "AGPL-3.0, as ultralytics asks of what is trained with it; pictures: public domain"
ARCHITECTURE = "yolo11n.yaml"
SPLITS = ("train", "val")
FILES = ("clipart.pt", "clipart.csv", "clipart.json")

OPTIMISER: dict[str, Any] = {
    "optimizer": "AdamW",
    "lr0": 0.0015,
    "lrf": 0.01,
    "cos_lr": True,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "warmup_epochs": 0.5,
    "warmup_bias_lr": 0.0,
    # The compositions are as crowded and as varied as mosaics; what a picture of them lacks is another size.
    "mosaic": 0.0,
    "scale": 0.4,
    "hsv_s": 0.4,
    "hsv_v": 0.3,
}


@dataclass(frozen=True)
class Settings:
    """What a run depends on; by default, as many pictures and epochs as the weights that ship were given.

    `hours` takes the place of `epochs`: ultralytics fits the schedule to them, epoch by epoch.
    """

    pictures: int = 6_000
    held_out_pictures: int = 600
    per_class: int | None = None
    epochs: int = 9
    hours: float | None = None
    image_size: int = 256
    batch: int = 16
    seed: int = 0


def train(source: Path, work: Path, target: Path, settings: Settings) -> dict[str, Any]:
    """Compose, train and validate; write the three files of `FILES` into `target` and return what the JSON says.

    `source`: the folder of the clip art's packages, fetched there if need be. `work`: for the compositions and
    ultralytics' own files; what an earlier run left there goes.
    """
    started = time.time()
    _clear(work)
    classes, cutouts = read_cutouts(openclipart.get(source).png, at_most=settings.per_class)
    for split in SPLITS:
        _write_compositions(cutouts, work, split, settings)
    weights, log, account = (target / name for name in FILES)
    reached = _train(classes, work, weights, settings)
    with replacing(log) as path:
        shutil.copyfile(work / "run/results.csv", path)
    said = {
        "classes": classes,
        "cutouts": {
            split: {name: len(by_label(cutouts, split == "val").get(label, ())) for label, name in enumerate(classes)}
            for split in SPLITS
        },
        **reached,
        "settings": asdict(settings) | {"architecture": ARCHITECTURE} | OPTIMISER,
        "seconds": round(time.time() - started),
        "versions": _versions(),
        "weights": {"file": weights.name, "sha256": file_sha256(weights), "bytes": weights.stat().st_size},
        "licence": LICENCE,
    }
    with replacing(account) as path:
        path.write_text(json.dumps(said, indent=2) + "\n")
    return said


def _clear(work: Path) -> None:
    """Empty the folder of an earlier run; a folder of anything else is none of our business."""
    stamp = work / ".compositions"
    if work.exists() and not stamp.exists() and (not work.is_dir() or any(work.iterdir())):
        raise PairmillError(f"{work} holds something else", "name a new folder for the compositions")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stamp.touch()


def _write_compositions(cutouts: Sequence[Cutout], work: Path, split: str, settings: Settings) -> None:
    """As many pictures as `settings` ask for; each depends on the seed, the split and its own number alone."""
    among = by_label(cutouts, split == "val")
    number = settings.held_out_pictures if split == "val" else settings.pictures
    images, labels = work / "images" / split, work / "labels" / split
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for position in tqdm(range(number), desc=f"composing {split}", unit="picture", disable=None):
        random = np.random.default_rng([settings.seed, SPLITS.index(split), position])
        composition = compose(among, backdrop(settings.image_size, random), random)
        name = images / f"{position:06d}.jpg"
        if not cv2.imwrite(str(name), composition.picture, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise PairmillError(f"cannot write {name}", "is the disk full?")
        (labels / f"{position:06d}.txt").write_text(_lines(composition))


def _lines(composition: Composition) -> str:
    """An object a line as ultralytics reads it: class, centre and size in parts of the picture's."""
    boxes = composition.boxes
    rows = np.column_stack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    return "".join(
        f"{label} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"
        for label, (x, y, width, height) in zip(composition.labels, rows, strict=True)
    )


def _train(classes: list[str], work: Path, weights: Path, settings: Settings) -> dict[str, Any]:
    """Writes `weights`, and leaves `run/results.csv` in `work`; returns what the file of weights reaches."""
    os.environ.setdefault("YOLO_VERBOSE", "true")
    import_ultralytics()
    from ultralytics.data import utils as reading
    from ultralytics.models import YOLO

    data = work / "data.yaml"
    splits = {split: f"images/{split}" for split in SPLITS}
    data.write_text(json.dumps({"path": str(work.resolve()), "names": dict(enumerate(classes))} | splits))
    common = {
        "data": str(data),
        "project": str(work.resolve()),
        "exist_ok": True,
        "plots": False,
        "device": "0" if torch.cuda.is_available() else "cpu",
        "imgsz": settings.image_size,
        "batch": settings.batch,
    }
    detector = YOLO(ARCHITECTURE)
    if not torch.cuda.is_available() and torch.cpu._is_avx512_bf16_supported():
        detector.add_callback("on_train_start", _in_bfloat16)
    # To read a data set's YAML, ultralytics also looks for a font, on the network if need be. Nothing is drawn here.
    with patch.object(reading, "check_font"):
        detector.train(
            **common,
            **OPTIMISER,
            name="run",
            pretrained=False,
            epochs=settings.epochs,
            patience=settings.epochs,
            time=settings.hours,
            nbs=settings.batch,
            seed=settings.seed,
            workers=2,
            amp=False,
        )
        with replacing(weights) as path:
            torch.save(_stripped(work / "run/weights/best.pt"), path)
        reached = YOLO(weights).val(**common, name="val", workers=0).box
    trainer: Any = detector.trainer
    return {
        "mAP50": round(float(reached.map50), 4),
        "mAP50-95": round(float(reached.map), 4),
        "mAP50-95_by_class": {
            classes[label]: round(float(precision), 4)
            for label, precision in zip(reached.ap_class_index, reached.ap, strict=True)
        },
        "epochs_done": trainer.epoch + 1,
    }


def _in_bfloat16(trainer: Any) -> None:
    """Let the network run in bfloat16, half as long again as fast on processors that have it; the loss stays float32.

    On the instance that is trained: the average that is saved was copied from it before and knows nothing of this.
    """
    forward = trainer.model.predict

    def predict(*arguments: Any, **options: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return _as_float32(forward(*arguments, **options))

    trainer.model.predict = predict


def _as_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _as_float32(item) for name, item in value.items()}
    return type(value)(_as_float32(item) for item in value) if isinstance(value, list | tuple) else value


def _stripped(checkpoint: Path) -> dict[str, Any]:
    """The trained network in fp16 and nothing else that a run leaves: no optimiser, no date, no path."""
    from ultralytics import __version__
    from ultralytics.nn.tasks import load_checkpoint

    model, _ = load_checkpoint(str(checkpoint))
    model = model.half()
    model.criterion = None
    model.args = {"task": "detect", "imgsz": model.args["imgsz"]}
    for left_over in ("pt_path", "transforms"):
        model.__dict__.pop(left_over, None)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return {"model": model, "train_args": dict(model.args), "version": __version__, "license": LICENCE}


def _versions() -> dict[str, str]:
    import ultralytics

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
