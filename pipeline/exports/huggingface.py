"""A dataset as Hugging Face's `datasets` opens it, from the folder or from the hub once it is there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.exports.images import Image
from pipeline.exports.parts import Add
from pipeline.exports.staging import Part, Plan
from pipeline.exports.tables import BOXES, PICTURE, caption_columns, part_name, writing_rows

CARD = "README.md"
_FOLDER = "data"
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores its feature `Image`."""
_TEXT = """
# Image-text pairs

Kept pairs of a dataset made by PairMill: {images:,} images with {pairs:,} captions.

* `image`: the picture as it was stored, with its `width`, `height` and `bytes`; `sha256` is of the original on the web.
* `text`: the first of the captions.
* `captions`: every text that was kept of the picture: `uid`, `url`, `text`, `scores` (what was measured of the pair),
  `metadata` (what the lists say of it; `file`, `row`: where it stood in them; `original`: the text before cleaning).
* `boxes`: regions of each extractor, `box` as x1, y1, x2, y2 in [0, 1]; the whole image has no label.
* `split`: by a hash of the original, so that no picture and no copy of it stands in two.

The texts and pictures are their authors'; the urls say where they are from.
"""


class HuggingFace:
    """`data/<split>-NNNNN-of-NNNNN.parquet`, one row an image with its bytes, and README.md: the dataset's card."""

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        info = {"info": {"features": {field.name: _feature(field.type) for field in _schema(plan)}}}
        schema = _schema(plan).with_metadata({"huggingface": json.dumps(info)})
        with writing_rows(folder / _FOLDER / part_name(part), schema) as rows:

            def add(image: Image) -> None:
                picture = {"bytes": image.jpeg, "path": f"{image.key}.jpg"}
                rows.add(image.record | {"image": picture}, image.size)

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        from huggingface_hub.repocard_data import DatasetCardData

        sizes = {
            split: sum((folder / _FOLDER / part_name(part)).stat().st_size for part in parts)
            for split, parts in plan.of_splits().items()
        }
        images = {split: sum(part.images for part in parts) for split, parts in plan.of_splits().items()}
        described = {
            "features": [{"name": field.name} | _in_card(field.type) for field in _schema(plan)],
            "splits": [{"name": name, "num_bytes": sizes[name], "num_examples": images[name]} for name in sizes],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        }
        files = [{"split": split, "path": f"{_FOLDER}/{split}-*"} for split in sizes]
        header = DatasetCardData(
            task_categories=["image-to-text", "text-to-image"],
            configs=[{"config_name": "default", "data_files": files}],
            dataset_info=described,
        )
        text = _TEXT.format(images=sum(images.values()), pairs=sum(part.pairs for part in plan.parts))
        (folder / CARD).write_text(f"---\n{header.to_yaml()}\n---\n{text}", encoding="utf-8")


def _schema(plan: Plan) -> pa.Schema:
    captions = pa.list_(pa.struct(caption_columns(plan)))
    return pa.schema([("image", _IMAGE), ("text", pa.string()), *PICTURE, ("captions", captions), ("boxes", BOXES)])


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A type as Parquet's metadata name it for `datasets`."""
    if kind.equals(_IMAGE):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": _word(kind), "_type": "Value"}


def _in_card(kind: pa.DataType) -> dict[str, Any]:
    """The same as the card names it."""
    if kind.equals(_IMAGE):
        return {"dtype": "image"}
    if pa.types.is_list(kind):
        inner = _in_card(kind.value_type)
        return {"list": inner.get("struct") or inner.get("dtype") or inner}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name} | _in_card(field.type) for field in kind]}
    return {"dtype": _word(kind)}


def _word(kind: pa.DataType) -> str:
    """`datasets` says float32 where Arrow says float."""
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
