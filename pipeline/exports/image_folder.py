"""Pictures as files, and a line of JSON about each: Hugging Face's imagefolder, and what anyone can read."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.exports.images import Image
from pipeline.exports.parts import Add
from pipeline.exports.staging import Part, Plan

METADATA = "metadata.jsonl"


class ImageFolder:
    """`<split>/images/NNNNN/<key>.jpg` and `<split>/metadata.jsonl`: `file_name`, `text` (the first caption), all else.

    `file_name` is relative to the folder of the split. A folder of pictures has at most an image shard's.
    """

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        place = folder / part.split
        pictures = place / "images" / f"{part.number:05d}"
        pictures.mkdir(parents=True)
        with open(_lines(folder, part), "w", encoding="utf-8", newline="\n") as lines:

            def add(image: Image) -> None:
                picture = pictures / f"{image.key}.jpg"
                picture.write_bytes(image.jpeg)
                record = {"file_name": picture.relative_to(place).as_posix(), **image.record}
                lines.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        for split, parts in plan.of_splits().items():
            with open(folder / split / METADATA, "wb") as whole:
                for part in parts:
                    with open(_lines(folder, part), "rb") as lines:
                        shutil.copyfileobj(lines, whole)
                    _lines(folder, part).unlink()


def _lines(folder: Path, part: Part) -> Path:
    return folder / part.split / f"{part.number:05d}.jsonl"
