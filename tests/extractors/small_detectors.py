"""Checkpoints of small detectors with made-up weights, of every kind of head that regions are read from."""

from pathlib import Path
from typing import Any

import torch

from pipeline.extractors.detector import import_ultralytics, settle

BACKBONE = """
nc: 7
{top}
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
{head}
"""
THREE = "[[2, 3, 4], 1, "
ARCHITECTURES = {
    "yolo": BACKBONE.format(top="", head=f"  - {THREE}Detect, [nc]]"),
    "end to end": BACKBONE.format(top="end2end: True\nreg_max: 1", head=f"  - {THREE}Detect, [nc]]"),
    "fused end to end": BACKBONE.format(top="end2end: True\nreg_max: 1", head=f"  - {THREE}Detect, [nc]]"),
    "v10": BACKBONE.format(top="", head=f"  - {THREE}v10Detect, [nc]]"),
    "segmentation": BACKBONE.format(top="", head=f"  - {THREE}Segment, [nc, 8, 16]]"),
    "segmentation 26": BACKBONE.format(top="end2end: True", head=f"  - {THREE}Segment26, [nc, 8, 16]]"),
    "pose": BACKBONE.format(top="kpt_shape: [5, 3]", head=f"  - {THREE}Pose, [nc, [5, 3]]]"),
    "world": BACKBONE.format(top="", head=f"  - {THREE}WorldDetect, [nc, 512, False]]"),
    "yoloe": BACKBONE.format(top="", head=f"  - {THREE}YOLOEDetect, [nc, 64, True]]"),
    "rt-detr": BACKBONE.format(
        top="", head="  - [-1, 1, AIFI, [32, 4]]\n  - [[2, 3, 5], 1, RTDETRDecoder, [nc, 32, 60, 4, 4, 2]]"
    ),
}
KINDS = list(ARCHITECTURES)


def architecture(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.yaml"
    path.write_text(ARCHITECTURES[kind])
    return path


def checkpoint(folder: Path, kind: str) -> Path:
    """A file as ultralytics' trainer writes it."""
    import_ultralytics()
    from ultralytics.nn import tasks

    path = architecture(folder, kind)
    models = {"rt-detr": tasks.RTDETRDetectionModel, "world": tasks.WorldModel}
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        if kind == "yoloe":
            model: Any = _yoloe(path)
        else:
            build: Any = models.get(kind, tasks.DetectionModel)
            model = build(str(path), verbose=False, **({"nc": 7} if kind == "world" else {}))
            settle(model)
        with torch.no_grad():  # scores that differ, and some of them high
            for name, values in model.named_parameters():
                if "cv3." in name and values.ndim == 4 and len(values) == 7:
                    values.normal_(0, 0.3)
                if ("score_head" in name and values.ndim == 2) or "bbox_head" in name:
                    values.normal_(0, 0.4)
                if ("score_head" in name and values.ndim == 1) or ("cv3." in name and values.shape == (7,)):
                    values.fill_(-1.0)
    model.names = {index: f"thing {index}" for index in range(7)}
    if kind == "fused end to end":
        model.model[-1].end2end = True
        model.eval().fuse(verbose=False)
    path = path.with_suffix(".pt")
    torch.save({"model": model.half(), "train_args": {}}, path)
    return path


def _yoloe(path: Path) -> Any:
    """With the embeddings of seven classes set, as `set_classes` leaves it; its constructor expects another width."""
    from ultralytics.nn import tasks

    class Named(tasks.YOLOEModel):
        pe = torch.nn.functional.normalize(torch.randn(1, 7, 64), dim=2)

    model = Named(str(path), verbose=False)
    settle(model)
    made = tasks.YOLOEModel.__new__(tasks.YOLOEModel)
    made.__dict__ = model.__dict__
    made.pe = Named.pe
    return made
