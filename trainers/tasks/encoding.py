"""Texts into the joint spaces of a dataset's runs, one at a time: what a search by words begins with."""

import json
from collections import OrderedDict
from threading import Lock

from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.job import Job, is_stamped
from pipeline.model_recipe import ModelRecipe
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.embed import SPLITS, Embedder, embeddings_key
from trainers.saved import RECIPE, load_run

HELD = 3
"""Runs whose models are held at once."""


class RunEncoder:
    """Called with a run's name and a text, gives the text's vector (D,) of length 1 in the space of its pictures.

    A run is loaded at its first text, which takes seconds, and held. Any thread may call. Raises PairmillError for a
    run that is not finished, or whose pictures were embedded by another model than it is now, or by none.
    """

    def __init__(self, dataset: Dataset, memory_limit: str = "4GB") -> None:
        self.dataset, self.memory_limit = dataset, memory_limit
        self._held: OrderedDict[tuple[str, str, float], Embedder] = OrderedDict()
        self._lock = Lock()

    def __call__(self, run: str, text: str) -> list[float]:
        with self._lock:  # a model is loaded once, however many ask
            embedder = self._embedder(run)
            return [float(value) for value in embedder.texts([text])[0]]

    def _embedder(self, run: str) -> Embedder:
        path = self.dataset.embeddings().get(run)
        if path is None:
            raise PairmillError(f"the run {run!r} has no embeddings", f"make embed ONLY={run}")
        table = self.dataset.run(run)
        place = (run, table.manifest.digest, path.stat().st_mtime)
        if place not in self._held:
            recipe = ModelRecipe.model_validate(json.loads((table.folder / RECIPE).read_text()))
            features = self.dataset.features(recipe.features)
            job = Job("embed", Recipe(name="embed"), self.dataset, InlineEngine())
            kept = self.dataset.kept_digest(SPLITS, self.memory_limit)
            if not is_stamped(path, embeddings_key(job, table, kept, features)):
                raise PairmillError(
                    f"the run {run!r} was embedded before it, its features or the kept pairs changed",
                    f"make embed ONLY={run}",
                )
            store = FeatureStore(features)
            self._held[place] = Embedder.of(load_run(table, store), store)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(place)
        return self._held[place]
