"""What others' programs write and read, told again from what their code does, and sharing nothing with ours."""

import base64
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

Region = dict[str, Any]


def region(random: np.random.Generator, n: int = 4, d: int = 6, classes: int = 7) -> Region:
    """An image as a detector leaves it: boxes in pixels, fp32 features, softmax over background and classes."""
    width, height = (int(side) for side in random.integers(50, 700, 2))
    corners = np.sort(random.random((n, 2, 2)), axis=1).astype(np.float32)
    boxes = corners.reshape(n, 4) * np.array([width, height] * 2, np.float32)
    logits = random.normal(0, 2, (n, classes + 1))
    soft = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    attributes = random.random((n, 5)).astype(np.float32)
    return {
        "width": width,
        "height": height,
        "boxes": boxes,
        "features": random.normal(0, 3, (n, d)).astype(np.float32),
        "soft": soft,
        "objects_id": soft[:, 1:].argmax(1).astype(np.int64),
        "objects_conf": soft[:, 1:].max(1),
        "attrs_id": attributes.argmax(1).astype(np.int64),
        "attrs_conf": attributes.max(1),
    }


def scaled(found: Region) -> np.ndarray:
    """The boxes in [0, 1], one side at a time."""
    return np.array(
        [
            [x1 / found["width"], y1 / found["height"], x2 / found["width"], y2 / found["height"]]
            for x1, y1, x2, y2 in found["boxes"].tolist()
        ],
        np.float32,
    )


LXMERT = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes"]
LXMERT.append("features")
BOTTOM_UP = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]


def write_tsv(path: Path, images: dict[str, Region], fields: list[str] = LXMERT) -> None:
    """As the extraction scripts of LXMERT and of bottom-up attention do."""

    def packed(array: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(array)).decode()

    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fields, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        for name, found in images.items():
            row = {"img_id": name, "image_id": name, "num_boxes": len(found["boxes"])}
            row |= dict.fromkeys(("img_h", "image_h"), found["height"])
            row |= dict.fromkeys(("img_w", "image_w"), found["width"])
            for field in ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features"):
                row[field] = packed(found[field])
            writer.writerow(row)


def load_tsv(path: Path) -> list[dict[str, Any]]:
    """As LXMERT's trainers do, with the check that they make of the boxes."""
    csv.field_size_limit(sys.maxsize)
    rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file, LXMERT, delimiter="\t"):
            assert None not in row
            for field in ("img_h", "img_w", "num_boxes"):
                row[field] = int(row[field])
            for field, shape, dtype in (
                ("objects_id", (-1,), np.int64),
                ("objects_conf", (-1,), np.float32),
                ("attrs_id", (-1,), np.int64),
                ("attrs_conf", (-1,), np.float32),
                ("boxes", (row["num_boxes"], 4), np.float32),
                ("features", (row["num_boxes"], -1), np.float32),
            ):
                row[field] = np.frombuffer(base64.b64decode(row[field]), dtype).reshape(shape)
                assert len(row[field]) == row["num_boxes"]
            boxes = row["boxes"].copy()
            boxes[:, (0, 2)] /= row["img_w"]
            boxes[:, (1, 3)] /= row["img_h"]
            np.testing.assert_array_less(boxes, 1 + 1e-5)
            np.testing.assert_array_less(-boxes, 0 + 1e-5)
            rows.append({**row, "normalised": boxes})
    return rows


def write_uniter(path: Path, found: Region) -> None:
    """As the script in UNITER's container does."""
    boxes = scaled(found)
    np.savez_compressed(
        path,
        norm_bb=np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float16),
        features=found["features"].astype(np.float16),
        conf=found["objects_conf"].reshape(-1, 1).astype(np.float16),
        soft_labels=found["soft"].astype(np.float16),
    )


def load_uniter(path: Path, threshold: float = 0.2, most: int = 100, fewest: int = 10) -> dict[str, np.ndarray]:
    """As UNITER's convert_imgdir.py and its loader do: what is cut by confidence, and the 7-d boxes."""
    with np.load(path, allow_pickle=False) as members:
        arrays = {name: members[name] for name in members.files}
    n = min(most, max(fewest, int((arrays["conf"] > threshold).sum())))
    assert all(array.ndim in (1, 2) for array in arrays.values())
    cut = {name: array[:n].astype(np.float32) for name, array in arrays.items()}
    sides = cut["norm_bb"]
    return {**cut, "position": np.concatenate([sides, sides[:, 4:5] * sides[:, 5:]], axis=1)}


def write_bottom_up_npz(path: Path, found: Region, transposed: bool = False) -> None:
    """As bottom-up-attention.pytorch does, its pickled `info` included."""
    np.savez_compressed(
        path,
        x=found["features"].T if transposed else found["features"],
        bbox=found["boxes"],
        num_bbox=len(found["boxes"]),
        image_h=found["height"],
        image_w=found["width"],
        info={"image_id": path.stem, "objects_id": found["objects_id"]},
    )


def write_volta(path: Path, images: dict[str, Region]) -> None:
    """As VOLTA's tsv_to_h5.py and VL-T5's extraction do."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, found in images.items():
            group = file.create_group(name)
            group["features"] = found["features"]
            group["obj_id"] = found["objects_id"]
            group["obj_conf"] = found["objects_conf"]
            group["attr_id"] = found["attrs_id"]
            group["attr_conf"] = found["attrs_conf"]
            group["boxes"] = found["boxes"]
            group["img_w"] = found["width"]
            group["img_h"] = found["height"]


def _spatial(found: Region) -> np.ndarray:
    boxes = scaled(found)
    return np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], axis=1)


def write_stacked(path: Path, images: dict[str, Region]) -> dict[str, int]:
    """As bottom-up-attention-vqa's converter does; returns id -> position, which it pickles."""
    import h5py

    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([found["features"] for found in images.values()])
        file["image_bb"] = np.stack([found["boxes"] for found in images.values()])
        file["spatial_features"] = np.stack([_spatial(found) for found in images.values()])
    return {name: at for at, name in enumerate(images)}


def write_adaptive(path: Path, images: dict[str, Region]) -> dict[str, int]:
    """As ban-vqa's converter does; returns id -> position, which it pickles."""
    import h5py

    ends = np.cumsum([len(found["boxes"]) for found in images.values()])
    with h5py.File(path, "w") as file:
        file["image_features"] = np.concatenate([found["features"] for found in images.values()])
        file["image_bb"] = np.concatenate([found["boxes"] for found in images.values()])
        file["spatial_features"] = np.concatenate([_spatial(found) for found in images.values()])
        file["pos_boxes"] = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int32)
    return {name: at for at, name in enumerate(images)}
