"""Parquet: two tables, of pairs and of pictures."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.images import Image
from pipeline.exports.metadata import Field, Kind
from pipeline.exports.parts import Add
from pipeline.exports.staging import Part, Plan

BYTES_A_GROUP = 32 << 20
ROWS_A_GROUP = 1000
"""A row group is closed by the row with which it reaches either: who wants one picture reads its row group."""

PICTURE = [
    ("key", pa.string()),
    ("split", pa.string()),
    ("sha256", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("bytes", pa.int64()),
]
"""Columns of an image's record (`Image.record`)."""
BOXES = pa.list_(
    pa.struct(
        [
            ("extractor", pa.string()),
            ("box", pa.list_(pa.float32())),
            ("label", pa.string()),
            ("confidence", pa.float32()),
        ]
    )
)
_KINDS: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "json": pa.string(),
    "boolean": pa.bool_(),
    "whole": pa.int64(),
    "number": pa.float64(),
}


def caption_columns(plan: Plan) -> list[tuple[str, pa.DataType]]:
    """Columns of a caption's record. Parquet has no struct without fields."""
    columns = [("uid", pa.string()), ("url", pa.string()), ("text", pa.string())]
    scores = pa.struct([(name, pa.float64()) for name in plan.scores])
    metadata = pa.struct([(field.name, _type(field)) for field in plan.metadata])
    return [*columns, *((name, kind) for name, kind in (("scores", scores), ("metadata", metadata)) if len(kind))]


def _type(field: Field) -> pa.DataType:
    kind = _KINDS[field.kind]
    for _ in range(field.lists):
        kind = pa.list_(kind)
    return kind


def part_name(part: Part) -> str:
    return f"{part.split}-{part.number:05d}-of-{part.of:05d}.parquet"


class ParquetTables:
    """`pairs/<split>-NNNNN-of-NNNNN.parquet`, one row a pair; `images/<the same name>`, one row a picture, by `key`.

    Two tables, since several pairs have the same picture, and who asks about texts should not read past pictures.
    """

    @contextmanager
    def part(self, folder: Path, part: Part, plan: Plan) -> Iterator[Add]:
        pairs = pa.schema([*caption_columns(plan), ("key", pa.string()), ("split", pa.string())])
        images = pa.schema([*PICTURE, ("boxes", BOXES), ("jpeg", pa.binary())])
        with ExitStack() as stack:
            add_pair = stack.enter_context(writing_rows(folder / "pairs" / part_name(part), pairs)).add
            add_image = stack.enter_context(writing_rows(folder / "images" / part_name(part), images)).add

            def add(image: Image) -> None:
                for caption in image.captions:
                    add_pair(caption.record | {"key": image.key, "split": image.split}, caption.size)
                add_image(image.record | {"jpeg": image.jpeg}, len(image.jpeg))

            yield add

    def finish(self, folder: Path, plan: Plan) -> None:
        """The tables are all there is."""


class Rows:
    """Rows of a Parquet file, gathered into row groups."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """`size`: about how many bytes it has. Keys that are no columns are passed over."""
        self._waiting.append(row)
        self._bytes += size
        if self._bytes >= BYTES_A_GROUP or len(self._waiting) >= ROWS_A_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, self._writer.schema))
        self._waiting, self._bytes = [], 0


@contextmanager
def writing_rows(path: Path, schema: pa.Schema) -> Iterator[Rows]:
    """A Parquet file with this schema. No dictionaries: of pictures and texts they only take memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        rows = Rows(writer)
        yield rows
        rows.flush()
