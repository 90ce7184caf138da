"""The stage `embed`: where a dual encoder puts each kept text and image -> `runs/<name>/embeddings.parquet`.

`make sql` searches them, in the view `embeddings_<name>`. A row: `modality` ("text" or "image"), `uid` (of the pair;
none for an image), `key` (of the image), `text`, `split`, and `embedding`, float32 of length 1. Two embeddings' dot
product is what retrieval ranks by.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.store.atomic import replacing
from pipeline.store.dataset import EMBEDDINGS
from pipeline.store.features import FeatureStore
from pipeline.store.table import Table
from pipeline.store.views.features import vector_width
from trainers.data.batch import TextInput, VisionInput
from trainers.data.loader import VisionReader, text_input
from trainers.data.text import Pieces, encode
from trainers.loop.device import best_device, precision
from trainers.network.streams import Stream
from trainers.objectives.joint_space import JointSpace
from trainers.saved import SavedRun, load_run

VERSION = 1
BLOCK = 256
"""Texts or images at once."""
SPLITS = ("train", "validation", "test")
JOINT_SPACES = ("itc", "vse")

_TEXTS = "SELECT uid, key, text, split FROM kept WHERE split IS NOT NULL ORDER BY key, uid"
_IMAGES = (
    "SELECT DISTINCT NULL::VARCHAR AS uid, key, NULL::VARCHAR AS text, split FROM kept "
    "WHERE split IS NOT NULL ORDER BY key"
)


def run(job: Job) -> str:
    """Embed under the selected runs that have a joint space; returns one line, or `UP_TO_DATE`."""
    said = []
    kept = job.dataset.kept_digest(SPLITS, job.recipe.engine.memory_limit)
    for name in job.selected(list(job.recipe.train)):
        recipe = job.recipe.train[name]
        if not any(getattr(recipe.objectives, space) for space in JOINT_SPACES):
            if name in job.only:
                raise PairmillError(
                    f"the run {name!r} has no joint space: it is trained with neither of {' and '.join(JOINT_SPACES)}",
                    "name another run",
                )
            continue
        table, features = job.dataset.run(name), job.dataset.features(recipe.features)
        path = table.folder / EMBEDDINGS
        key = embeddings_key(job, table, kept, features)
        if is_stamped(path, key) and vector_width(path) is not None:
            continue
        started = time.monotonic()
        store = FeatureStore(features)
        texts, images = _write(job, Embedder.of(load_run(table, store), store), path)
        stamp(path, key, time.monotonic() - started)
        job.log("embedded", run=name, texts=texts, images=images)
        said.append(f"{name}: {texts:,} texts and {images:,} images")
    return "; ".join(said) or UP_TO_DATE


def embeddings_key(job: Job, run: Table, kept: str, features: Table) -> str:
    """What a run's embeddings were made from; `kept`: the digest of the kept pairs of all `SPLITS`."""
    return job.key(VERSION, run, kept, features)


class Embedder:
    """A finished run's joint space."""

    def __init__(self, saved: SavedRun, reader: VisionReader, device: torch.device) -> None:
        self.saved, self.reader, self.device = saved, reader, device
        self.model = saved.model.to(device).eval()
        self.pieces = Pieces.of(saved.tokenizer)
        space = next(self.model.objective(name) for name in JOINT_SPACES if name in self.model.objectives)
        assert isinstance(space, JointSpace)
        self.space = space

    @classmethod
    def of(cls, saved: SavedRun, store: FeatureStore) -> "Embedder":
        return cls(saved, VisionReader(store, saved.recipe.vision), best_device())

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """(texts, width) float32, of length 1."""
        sequences = encode(self.saved.tokenizer, texts, self.saved.recipe.text.max_tokens)
        text = text_input(sequences, self.pieces).to(self.device)
        with precision(self.device):
            return self.space.embed_text(self._stream("text", text=text)).cpu().numpy()

    @torch.inference_mode()
    def images(self, keys: list[str]) -> np.ndarray:
        """(images, width) float32, of length 1."""
        vision = self.reader.read(keys).to(self.device)
        with precision(self.device):
            return self.space.embed_vision(self._stream("vision", vision=vision)).cpu().numpy()

    def _stream(self, modality: str, text: TextInput | None = None, vision: VisionInput | None = None) -> Stream:
        """The states that the space is made of."""
        encoder = self.model.encoder
        streams = encoder.alone(self.model.embed(text, vision))
        return (encoder.crossing(streams) if self.space.settings.at == "end" else streams)[modality]


def _write(job: Job, embedder: Embedder, path: Path) -> tuple[int, int]:
    """How many texts and images there are."""
    width = embedder.space.settings.width
    text_columns = [pa.field(name, pa.string()) for name in ("modality", "uid", "key", "text", "split")]
    schema = pa.schema([*text_columns, pa.field("embedding", pa.list_(pa.float32(), width))])
    numbers = {"text": 0, "image": 0}
    with replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as file:
        for modality, block in _blocks(job, embedder.reader.store):
            texts = block["text"].to_pylist()
            found = embedder.texts(texts) if modality == "text" else embedder.images(block["key"].to_pylist())
            columns = {"modality": pa.array([modality] * len(block), pa.string())}
            columns |= {field.name: block[field.name] for field in text_columns[1:]}
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), width)
            file.write_table(pa.table(columns, schema))
            numbers[modality] += len(block)
    return numbers["text"], numbers["image"]


def _blocks(job: Job, store: FeatureStore) -> Iterator[tuple[str, pa.Table]]:
    """(uid, key, text, split) of the kept pairs and images that have features, at most BLOCK at a time."""
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        for modality, query in (("text", _TEXTS), ("image", _IMAGES)):
            for batch in connection.sql(query).to_arrow_reader(BLOCK):
                there = pa.array([key in store for key in batch["key"].to_pylist()], pa.bool_())
                block = pa.Table.from_batches([batch.filter(there)])
                if block.num_rows:
                    yield modality, block
