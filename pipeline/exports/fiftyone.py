"""FiftyOne's own format, FiftyOneDataset: metadata.json declares the fields, samples.json has a document a picture."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.exports.images import Box, Caption, Image
from pipeline.exports.metadata import Kind
from pipeline.exports.parts import Add
from pipeline.exports.staging import Part, Plan
from pipeline.store.atomic import write_json

VERSION = "1.0.0"
"""Of the format: what is declared here has been the same since, and FiftyOne migrates what is older than itself."""
_PAIR = "fiftyone.core.odm.embedded_document.DynamicEmbeddedDocument"


class FiftyOne:
    """`metadata.json`, `samples.json` and `data/<split>/NNNNN/<key>.jpg`.

    A sample has its split as tag; `boxes_<extractor>`: Detections of objects, [x, y, width, height] in [0, 1];
    `caption`, the first, its scores as `score_<name>` and its metadata as `metadata_<name>`, by which the app sorts and
    filters; `pairs`: every caption with its uid, url, scores and metadata.
    """

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        pictures = folder / "data" / part.split / f"{part.number:05d}"
        pictures.mkdir(parents=True)
        names = _Names.of(plan)
        with open(_documents(folder, part), "w", encoding="utf-8", newline="\n") as documents:

            def add(image: Image) -> None:
                picture = pictures / f"{image.key}.jpg"
                picture.write_bytes(image.jpeg)
                sample = _sample(image, picture.relative_to(folder).as_posix(), names)
                documents.write(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n")

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        declared = {"version": VERSION, "media_type": "image", "sample_fields": _declared(plan)}
        write_json(folder / "metadata.json", declared)
        with open(folder / "samples.json", "w", encoding="utf-8") as samples:
            before = '{"samples": [\n'
            for part in plan.parts:
                path = _documents(folder, part)
                with open(path, encoding="utf-8", newline="\n") as documents:
                    for document in documents:
                        samples.write(before + document.rstrip("\n"))
                        before = ",\n"
                path.unlink()
            samples.write("\n]}\n")


def fields(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Name -> field: the prefix keeps clear of FiftyOne's own, and a field has neither dots nor signs in it."""
    found: dict[str, str] = {}
    for name in names:
        field = prefix + re.sub(r"[^0-9A-Za-z_]", "_", name)
        while field in found.values():
            field += "_"
        found[name] = field
    return found


@dataclass(frozen=True)
class _Names:
    """The fields of scores, metadata and boxes by the names that these have elsewhere."""

    scores: Mapping[str, str]
    metadata: Mapping[str, str]
    boxes: Mapping[str, str]

    @classmethod
    def of(cls, plan: Plan) -> "_Names":
        metadata = fields("metadata_", [field.name for field in plan.metadata])
        return cls(fields("score_", plan.scores), metadata, fields("boxes_", plan.extractors))

    def said(self, caption: Caption) -> dict[str, Any]:
        """What is said of a caption, in the fields of its document."""
        scores = {field: caption.scores[name] for name, field in self.scores.items()}
        return scores | {field: caption.metadata[name] for name, field in self.metadata.items()}


def _documents(folder: Path, part: Part) -> Path:
    return folder / f"{part.split}-{part.number:05d}.jsonl"


def _sample(image: Image, path: str, names: _Names) -> dict[str, Any]:
    found = {name: list(own) for name, own in groupby(image.boxes, key=lambda box: box.extractor)}
    size = {"size_bytes": len(image.jpeg), "mime_type": "image/jpeg", "width": image.width, "height": image.height}
    return {
        "_id": _object_id(image.key),
        "_media_type": "image",
        "_rand": int(_digest(image.key)[:8], 16) / 0x1_0000_0000,
        "filepath": path,
        "tags": [image.split],
        "metadata": {"_cls": "ImageMetadata", **size},
        "key": image.key,
        "sha256": image.sha256,
        "caption": image.text,
        **names.said(image.captions[0]),
        "pairs": [
            {"_cls": "DynamicEmbeddedDocument", "uid": caption.uid, "url": caption.url, "text": caption.text}
            | names.said(caption)
            for caption in image.captions
        ],
        **{field: _detections(image.key, found.get(name, [])) for name, field in names.boxes.items()},
    }


def _detections(key: str, boxes: Sequence[Box]) -> dict[str, Any]:
    return {
        "_cls": "Detections",
        "detections": [
            {
                "_id": _object_id(key, box.extractor, number),
                "_cls": "Detection",
                "attributes": {},
                "tags": [],
                "label": box.label,
                "bounding_box": [box.box[0], box.box[1], box.box[2] - box.box[0], box.box[3] - box.box[1]],
                "confidence": box.confidence,
            }
            for number, box in enumerate(boxes)
            if not box.is_whole_image
        ],
    }


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _object_id(*parts: object) -> dict[str, str]:
    """MongoDB's 96 bits, out of what the thing is, so that the same export has the same bytes."""
    return {"$oid": _digest(*parts)[:24]}


def _declared(plan: Plan) -> list[dict[str, Any]]:
    names = _Names.of(plan)
    said = [_field(field, "Float") for field in names.scores.values()]
    # What a list is of is left open: FiftyOne would refuse one with a null in it.
    said += [_field(names.metadata[own.name], "List" if own.lists else _KINDS[own.kind]) for own in plan.metadata]
    identity = _field("id", "ObjectId") | {"db_field": "_id"}
    tags = _field("tags", "List", of="String")
    size = [_field(name, "Int") for name in ("size_bytes", "width", "height")]
    detection = [
        identity,
        tags,
        _field("label", "String"),
        _field("bounding_box", "List", of="Float"),
        _field("confidence", "Float"),
    ]
    detections = _field("detections", "List", "EmbeddedDocument", "fiftyone.core.labels.Detection", detection)
    pair = [*(_field(name, "String") for name in ("uid", "url", "text")), *said]
    metadata = [_field("mime_type", "String"), *size]
    return [
        identity,
        _field("filepath", "String"),
        tags,
        _field("metadata", "EmbeddedDocument", document="fiftyone.core.metadata.ImageMetadata", inner=metadata),
        *(_field(name, "String") for name in ("key", "sha256", "caption")),
        *said,
        _field("pairs", "List", "EmbeddedDocument", _PAIR, pair),
        *(
            _field(field, "EmbeddedDocument", document="fiftyone.core.labels.Detections", inner=[detections])
            for field in names.boxes.values()
        ),
    ]


_KINDS: Mapping[Kind, str] = {
    "text": "String",
    "json": "String",
    "boolean": "Boolean",
    "whole": "Int",
    "number": "Float",
}


def _field(
    name: str, kind: str, of: str | None = None, document: str | None = None, inner: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """`of`: a list's kind of elements; `document`: the class of embedded ones, with the fields `inner`."""
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}Field",
        "subfield": f"fiftyone.core.fields.{of}Field" if of else None,
        "embedded_doc_type": document,
        "fields": list(inner),
        "db_field": name,
    }
