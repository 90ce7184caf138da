"""WebDataset tars, a folder a split: as `webdataset` reads them, and as open_clip's trainer does."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.exports.images import Image
from pipeline.exports.parts import Add
from pipeline.exports.staging import Part, Plan
from pipeline.store.atomic import write_json

SIZES = "sizes.json"


class WebDataset:
    """`<split>/NNNNN.tar`, a sample an image: `<key>.jpg`, `<key>.txt` (the first caption), `<key>.json` (all else)."""

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        with _tar(folder, part) as tar:

            def add(image: Image) -> None:
                record = json.dumps(image.record, ensure_ascii=False, allow_nan=False)
                _add_sample(tar, image.key, {"jpg": image.jpeg, "txt": image.text.encode(), "json": record.encode()})

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        """The tars are all there is."""


class OpenClip:
    """`<split>/NNNNN.tar`, a sample a pair: `<uid>.jpg`, `<uid>.txt`; `<split>/sizes.json`, how many each tar has.

    open_clip reads one text a sample: a picture stands there once for each of its captions.
    """

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        with _tar(folder, part) as tar:

            def add(image: Image) -> None:
                for caption in image.captions:
                    _add_sample(tar, caption.uid, {"jpg": image.jpeg, "txt": caption.text.encode()})

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        for split, parts in plan.of_splits().items():
            write_json(folder / split / SIZES, {_name(part): part.pairs for part in parts})


def _name(part: Part) -> str:
    return f"{part.number:05d}.tar"


@contextmanager
def _tar(folder: Path, part: Part) -> Iterator[tarfile.TarFile]:
    path = folder / part.split / _name(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def _add_sample(tar: tarfile.TarFile, name: str, files: Mapping[str, bytes]) -> None:
    for suffix, content in files.items():
        member = tarfile.TarInfo(f"{name}.{suffix}")
        member.size, member.mode = len(content), 0o444
        tar.addfile(member, io.BytesIO(content))
