"""A CLIP of open_clip's: image embeddings, kept, and the score of each pair: the cosine of its image and text."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Clip
from pipeline.signals.images import Measure
from pipeline.signals.judged import JUDGED
from pipeline.store.atomic import digest, file_sha256, replacing
from pipeline.store.sql import parquet, write_parquet
from pipeline.store.table import Shard, Table
from pipeline.weights import weights_folder

VERSION = 1
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Model:
    """What to load. `weights` is a file, or one of open_clip's tags, which names a publication that does not change."""

    architecture: str
    """open_clip's name of it, or a path to a file of its form (`*.json`)."""
    weights: str
    digest: str
    """Of architecture and weights."""
    width: int
    """Dimensions of the joint space."""
    batch_size: int


def find_model(section: Clip | None) -> Model:
    """The recipe's CLIP. Raises PairmillError where it names none, or an architecture that is not known."""
    if section is None:
        raise PairmillError(
            "these rules need embeddings, and the recipe names no CLIP", "add [filter.clip] with model and pretrained"
        )
    configuration = _configuration(section.model)
    places = (Path(section.pretrained), weights_folder() / section.pretrained)
    path = next((place for place in places if place.is_file()), None)
    return Model(
        section.model,
        str(path.resolve()) if path else section.pretrained,
        digest(configuration, file_sha256(path) if path else section.pretrained),
        int(configuration["embed_dim"]),
        section.batch_size,
    )


def _configuration(architecture: str) -> dict[str, Any]:
    """The architecture's file, read without importing open_clip: that takes seconds, and is for measuring only."""
    path = Path(architecture)
    if path.suffix != ".json":
        spec = importlib.util.find_spec("open_clip")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / "model_configs" / f"{path.name}.json"
        if path.stem != architecture or not path.is_file():
            raise PairmillError(
                f"[filter.clip] model: open_clip has no {architecture!r}",
                "see open_clip.list_models(), or name a .json of that form",
            )
    try:
        configuration = json.loads(path.read_text())
        if not all(key in configuration for key in ("embed_dim", "vision_cfg", "text_cfg")):
            raise ValueError("embed_dim, vision_cfg and text_cfg are wanted")
    except (OSError, ValueError, TypeError) as error:
        raise PairmillError(f"[filter.clip] model: {architecture}: {error}", "correct the file") from None
    return dict(configuration)


@dataclass(frozen=True)
class Loaded:
    """A CLIP at work, on the GPU if there is one."""

    model: Any
    preprocess: Any
    tokenizer: Any
    device: Any

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float32 unit vectors of RGB uint8 pictures (h, w, 3)."""
        import torch
        from PIL import Image

        tensor = torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures])
        with torch.inference_mode():
            return _unit(self.model.encode_image(tensor.to(self.device)))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 unit vectors; of a long text the beginning counts, as in the model's training."""
        import torch

        with torch.inference_mode():
            return _unit(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)))


def _unit(states: Any) -> np.ndarray:
    import torch

    return torch.nn.functional.normalize(states.float(), dim=-1).cpu().numpy()


@lru_cache(maxsize=1)
def load(model: Model) -> Loaded:
    """Load without running pickles. One thread a process: the last bits of sums hang on their number."""
    import open_clip
    import torch

    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = model.architecture
    if name.endswith(".json"):
        open_clip.add_model_config(name)
        name = Path(name).stem
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=model.weights, device=device, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever a damaged, foreign or hostile file makes of the readers
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PairmillError(
            f"cannot load {model.weights} into {model.architecture}: {said}",
            "correct [filter.clip] pretrained: a file (also in the folder PAIRMILL_WEIGHTS), or a tag of open_clip's",
        ) from None
    return Loaded(network.eval(), preprocess, tokenizer, device)


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (D,) float32 in CLIP's joint space."""

    model: Model
    name: str = "embeddings"

    @property
    def batch_size(self) -> int:
        return self.model.batch_size

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(EMBEDDING, pa.list_(pa.float32(), self.model.width))])

    @property
    def identity(self) -> Any:
        return ["embeddings", VERSION, self.model.digest, self.model.batch_size]

    def measurer(self) -> Measure:
        loaded = load(self.model)

        def measure(pictures: Sequence[np.ndarray]) -> dict[str, pa.Array]:
            vectors = loaded.images(pictures)
            return {EMBEDDING: pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), self.model.width)}

        return measure


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """The keys of a shard's readable pictures, and their (n, D) float32 vectors."""
    table = pq.read_table(path, columns=["key", EMBEDDING])
    table = table.filter(table[EMBEDDING].is_valid())
    width = table.schema.field(EMBEDDING).type.list_size
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[EMBEDDING].chunks]
    vectors = np.concatenate([np.empty(0, np.float32), *values]).reshape(-1, width)
    return table["key"].to_pylist(), vectors


def score_pairs(job: Job, model: Model, embeddings: Table, table: Table) -> None:
    """Bring `table` (uid, clip_score) up to date for every judged pair with a readable image; a file an image shard."""
    dataset = job.dataset
    common = job.key(VERSION, model.digest, model.batch_size, dataset.pairs, dataset.screened)
    keys = {shard.name: digest(common, shard.files[0].sha256) for shard in embeddings.manifest.shards}
    key = digest("clip_score", keys)
    if table.is_current(key):
        return
    with table.writing(key, keys) as writing:
        staged = dataset.root / ".staging" / "judged.parquet"
        if writing.todo:
            with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
                with replacing(staged) as path:
                    write_parquet(connection, f"SELECT key, uid, text FROM ({JUDGED}) ORDER BY key, uid", path)
        score = partial(
            _score_shard, model=model, judged=staged, embeddings=embeddings.folder, folder=table.folder, keys=keys
        )
        for shard in job.engine.map(score, writing.todo, "filter: clip scores"):
            writing.add(shard)
        writing.commit()
    staged.unlink(missing_ok=True)


def _score_shard(
    name: str, *, model: Model, judged: Path, embeddings: Path, folder: Path, keys: Mapping[str, str]
) -> Shard:
    import duckdb

    images, vectors = read_embeddings(embeddings / f"{name}.parquet")
    place = {key: row for row, key in enumerate(images)}
    rows = pa.table(
        {"key": pa.array([], pa.string()), "uid": pa.array([], pa.string()), "text": pa.array([], pa.string())}
    )
    if images:
        # The staged pairs are sorted by key: all but this shard's row groups are passed over by their statistics.
        with duckdb.connect() as connection:
            connection.execute("SET threads = 1")
            query = f"FROM {parquet([judged])} WHERE key BETWEEN ? AND ? ORDER BY uid"
            found: pa.Table = connection.sql(query, params=[min(images), max(images)]).to_arrow_table()
        rows = found.filter(pa.compute.is_in(found["key"], pa.array(images)))
    texts = sorted(set(rows["text"].to_pylist()))
    loaded = load(model) if texts else None
    of_text: dict[str, np.ndarray] = {}
    for first in range(0, len(texts), model.batch_size):
        part = texts[first : first + model.batch_size]
        assert loaded is not None
        of_text.update(zip(part, loaded.texts(part), strict=True))
    scores = [
        float(vectors[place[key]] @ of_text[text])
        for key, text in zip(rows["key"].to_pylist(), rows["text"].to_pylist(), strict=True)
    ]
    with replacing(folder / f"{name}.parquet") as path:
        pq.write_table(
            pa.table({"uid": rows["uid"], "clip_score": pa.array(scores, pa.float32())}), path, compression="zstd"
        )
    return Shard.of(folder, name, keys[name], [f"{name}.parquet"], {"rows": len(scores)})
